//! The core's snapshot on the disk. What a step permits or tells others may only be done once it is stored: an agent
//! that died and came back without knowing of it would give the same numbers to others. So a disk that refuses holds
//! back everything but what forbids, until it takes the snapshot again; `Effect::unless_stored` says what that is.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::RunError;
use super::agent::Agent;
use crate::core::{CloseReason, Effect, Event, Journal, Snapshot};
use crate::files::{self, FileError};

/// Between two attempts: a snapshot of many peers takes its time, and there may be many steps.
const PAUSE: Duration = Duration::from_millis(50);

/// Changes fill a file up to this, or to twice what it began with: then it is written anew.
const ROOM: u64 = 64 * 1024;

/// Where the snapshot is, and since when the disk has refused it.
#[derive(Debug)]
pub(super) struct Stored {
    path: PathBuf,
    /// What the file says, to be gone on from; none if it has to be written anew.
    file: Option<Written>,
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Written {
    file: File,
    snapshot: Snapshot,
    length: u64,
    /// A file that is longer than this is written anew.
    full: u64,
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
            file: None,
            refused: None,
        }
    }

    /// What an earlier agent has stored.
    pub(super) fn read(path: &Path) -> Result<Option<Snapshot>, FileError> {
        let Some(text) = files::read(path)? else {
            return Ok(None);
        };
        let journal = Journal::read(&text).map_err(|error| FileError::Content {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        if journal.torn {
            tracing::info!(path = %path.display(), "the last agent died while it stored a step, which it has not done");
        }
        Ok(Some(journal.snapshot))
    }

    /// Adds what has changed to the file; writes it anew where that is not possible, or where it has become long.
    fn write(&mut self, snapshot: Snapshot) -> Result<(), FileError> {
        let unfit = |error: serde_json::Error| FileError::Content {
            path: self.path.clone(),
            message: error.to_string(),
        };
        if let Some(mut written) = self.file.take().filter(Written::has_room) {
            let next = Journal::next(&written.snapshot, &snapshot).map_err(unfit)?;
            if let Some(line) = next {
                written.add(&line, &self.path)?;
                written.snapshot = snapshot;
                self.file = Some(written);
                return Ok(());
            }
        }
        let whole = Journal::whole(&snapshot).map_err(unfit)?;
        files::write_volatile(&self.path, &whole)?;
        let length = whole.len() as u64;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = file.ok().map(|file| Written {
            file,
            snapshot,
            length,
            full: ROOM.max(length.saturating_mul(2)),
        });
        Ok(())
    }

    /// Whether there is something to store before the next step: it says so, or an earlier one did in vain.
    pub(super) fn is_due(&self, effects: &[Effect]) -> bool {
        self.refused.is_some() || effects.first() == Some(&Effect::Persist)
    }
}

impl Written {
    /// Whether it is still the file of that name, and may become longer.
    fn has_room(&self) -> bool {
        let there = self.file.metadata().is_ok_and(|file| file.nlink() > 0);
        there && self.length < self.full
    }

    fn add(&mut self, line: &[u8], path: &Path) -> Result<(), FileError> {
        let added = self.file.write_all(line);
        match added {
            Ok(()) => self.length += line.len() as u64,
            // Half a line must not become the beginning of the next one. If it stays, it ends the file, and is not read.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        added.map_err(files::io("write", path))
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
        let snapshot = self.core.snapshot();
        match self.stored.write(snapshot) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::{Identity, IdentityNumber, IdentitySnapshot};
    use crate::wire::BootId;

    fn snapshot(identities: u32) -> Snapshot {
        let identities = (0..identities).map(|number| IdentitySnapshot {
            number: IdentityNumber(256 + number),
            identity: Arc::new(Identity {
                spiffe_id: format!("spiffe://example.org/{number}"),
                labels: Default::default(),
            }),
            not_after: 1,
            revoked: false,
        });
        Snapshot {
            version: 1,
            node: "spiffe://example.org/handfast/node/a".to_owned(),
            boot_id: BootId([1; 16]),
            next_identity: 512,
            next_peer: 2,
            generation: 3,
            identities: Arc::new(identities.collect()),
            peers: Vec::new(),
            removals: Default::default(),
            rests: Vec::new(),
        }
    }

    #[test]
    fn what_is_added_is_read_again_and_the_file_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.json");
        let mut stored = Stored::new(path.clone());
        let mut longest = 0;
        for round in 0..2_000 {
            let now = snapshot(200 + round % 7);
            stored.write(now.clone()).unwrap();
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
            if round % 100 == 0 {
                assert_eq!(Stored::read(&path).unwrap(), Some(now));
            }
        }
        assert!(longest < 2 * ROOM, "{longest}");
    }

    #[test]
    fn a_file_that_was_taken_away_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.json");
        let mut stored = Stored::new(path.clone());
        stored.write(snapshot(1)).unwrap();
        std::fs::remove_file(&path).unwrap();
        stored.write(snapshot(2)).unwrap();
        assert_eq!(Stored::read(&path).unwrap(), Some(snapshot(2)));
    }

    #[test]
    fn after_a_disk_that_refused_nothing_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.json");
        let mut stored = Stored::new(path.clone());
        stored.write(snapshot(1)).unwrap();
        // A descriptor that takes no bytes stands for the full disk.
        let written = stored.file.as_mut().unwrap();
        written.file = File::open(&path).unwrap();
        assert!(stored.write(snapshot(2)).is_err());
        assert_eq!(Stored::read(&path).unwrap(), Some(snapshot(1)));
        stored.write(snapshot(3)).unwrap();
        assert_eq!(Stored::read(&path).unwrap(), Some(snapshot(3)));
    }
}
