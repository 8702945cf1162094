//! The core's snapshot on the disk. What a step permits or tells others may only be done once it is stored: an agent
//! that died and came back without knowing of it would give the same numbers to others. So a disk that refuses holds
//! back everything but what forbids, until it takes the snapshot again; `Effect::unless_stored` says what that is.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::RunError;
use super::agent::Agent;
use crate::core::{CloseReason, Effect, Event};
use crate::files::{self, FileError};

/// Between two attempts: a snapshot of many peers takes its time, and there may be many steps.
const PAUSE: Duration = Duration::from_millis(50);

/// Where the snapshot is, and since when the disk has refused it.
#[derive(Debug)]
pub(super) struct Stored {
    path: PathBuf,
    refused: Option<Refused>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    since: Instant,
    tried: Instant,
}

impl Stored {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            refused: None,
        }
    }

    /// Whether there is something to store before the next step: it says so, or an earlier one did in vain.
    pub(super) fn is_due(&self, effects: &[Effect]) -> bool {
        self.refused.is_some() || effects.first() == Some(&Effect::Persist)
    }
}

impl Agent {
    /// Stores what the core is about to rely on. False if the disk does not have it.
    pub(super) fn store(&mut self) -> bool {
        let now = Instant::now();
        let refused = self.stored.refused;
        if refused.is_some_and(|refused| now < refused.tried + PAUSE) {
            return false;
        }
        match self.write_snapshot() {
            Ok(()) => {
                if let Some(refused) = self.stored.refused.take() {
                    let lasted = refused.since.elapsed();
                    tracing::warn!(?lasted, "the snapshot is stored again");
                }
                true
            }
            Err(error) => {
                let since = refused.map_or(now, |refused| refused.since);
                self.stored.refused = Some(Refused { since, tried: now });
                if refused.is_none() {
                    tracing::error!(%error, "the snapshot is not stored");
                    self.alarm(format!(
                        "{error}: until this can be stored nothing new is let through and no session is renewed; what \
                         is established goes on, what is revoked is cut"
                    ));
                }
                false
            }
        }
    }

    fn write_snapshot(&self) -> Result<(), FileError> {
        files::write_volatile_json(&self.stored.path, &self.core.snapshot())
    }

    /// One effect of a step that is not stored: done if it only forbids; otherwise the core hears why not.
    pub(super) async fn carry_out_unstored(
        &mut self,
        effect: Effect,
        events: &mut VecDeque<Event>,
    ) -> Result<(), RunError> {
        let Some(instead) = effect.unless_stored() else {
            return self.carry_out(effect, events).await;
        };
        match instead {
            // Once for all: the core writes everything again.
            Event::NotWritten { .. } => {
                if !events.iter().any(|e| matches!(e, Event::NotWritten { .. })) {
                    events.push_back(instead);
                }
            }
            Event::Disconnected { conn } => {
                self.net.close(conn, CloseReason::NotWritten);
                events.push_back(instead);
            }
            instead => events.push_back(instead),
        }
        Ok(())
    }
}
