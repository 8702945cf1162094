//! Refusals in the audit log: each at first, then as a number, since neither strangers nor a node that somebody has
//! taken over must be able to fill the disk with them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::state::State;
use crate::audit::Act;
use crate::{Error, NodeName};

/// Refusals of one source that are written down at once, and how long it takes until it may have one more.
const BURST: u32 = 10;
const EVERY: Duration = Duration::from_secs(60);
/// Sources that are told apart; those beyond are taken for one.
const MAX_SOURCES: usize = 1024;
const ELSEWHERE: &str = "elsewhere";
/// The name of the act that tells how many more there were.
const ACT: &str = "calls.refused";

/// What was refused of late.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<String, Source>>);

#[derive(Debug)]
struct Source {
    /// Refusals that were written down and still count; one is forgotten each [`EVERY`].
    written: u32,
    since: Instant,
    /// Refusals that are in no log yet.
    untold: u64,
}

impl Source {
    fn new(now: Instant) -> Self {
        Self {
            written: 0,
            since: now,
            untold: 0,
        }
    }

    fn forget(&mut self, now: Instant) {
        while self.written > 0 && now.duration_since(self.since) >= EVERY {
            self.written -= 1;
            self.since += EVERY;
        }
        if self.written == 0 {
            self.since = now;
        }
    }
}

impl Refusals {
    /// One more refusal of `source`. Is it to be written down, and with how many before it that were not?
    fn judge(&self, source: &str, now: Instant) -> Option<u64> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = sources.len() < MAX_SOURCES || sources.contains_key(source);
        let name = if room { source } else { ELSEWHERE };
        let source = sources
            .entry(name.to_owned())
            .or_insert_with(|| Source::new(now));
        source.forget(now);
        if source.written >= BURST {
            source.untold += 1;
            return None;
        }
        source.written += 1;
        Some(std::mem::take(&mut source.untold))
    }

    /// The act, if it is to be written down, with how many there were before.
    fn told(&self, source: &str, act: Act) -> Option<Act> {
        Some(match self.judge(source, Instant::now())? {
            0 => act,
            more => act.with("refused_before", more),
        })
    }

    /// What is in no log yet, by source; forgets those of whom nothing was heard for long.
    fn settle(&self, now: Instant) -> Vec<(String, u64)> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut untold = Vec::new();
        sources.retain(|name, source| {
            source.forget(now);
            let count = std::mem::take(&mut source.untold);
            if count > 0 {
                untold.push((name.clone(), count));
            }
            source.written > 0 || count > 0
        });
        untold
    }
}

impl State {
    /// Writes down that somebody was refused who has shown nothing that we know, unless `source` has been often of
    /// late: then it counts.
    pub(super) async fn refused(&self, source: &str, act: Act) -> Result<(), Error> {
        match self.refusals.told(source, act) {
            None => Ok(()),
            Some(act) => self.audit.record(vec![act]).await,
        }
    }

    /// The act of refusing a node, if it is to be written down and not only counted.
    pub(super) fn refused_node(&self, node: &NodeName, act: Act) -> Option<Act> {
        self.node_refusals.told(node.as_str(), act)
    }

    /// Writes down what has only been counted.
    pub(super) async fn settle_refusals(&self) -> Result<(), Error> {
        let now = Instant::now();
        let (strangers, nodes) = (self.refusals.settle(now), self.node_refusals.settle(now));
        let acts: Vec<Act> = strangers
            .into_iter()
            .chain(nodes)
            .map(|(source, count)| {
                Act::refused(
                    ACT,
                    source,
                    "",
                    format!("{count} more calls like those before"),
                )
                .with("count", count)
            })
            .collect();
        if acts.is_empty() {
            return Ok(());
        }
        self.audit.record(acts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let written = (0..1000)
            .filter(|_| refusals.judge("192.0.2.1", now).is_some())
            .count();
        assert_eq!(written, BURST as usize);
        assert!(refusals.judge("192.0.2.2", now).is_some(), "another source");
        let told = refusals.settle(now);
        assert_eq!(told, [("192.0.2.1".to_owned(), 1000 - u64::from(BURST))]);
        assert!(refusals.settle(now).is_empty(), "told once");
    }

    #[test]
    fn who_was_quiet_for_a_while_is_written_down_again_with_what_was_not() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        for _ in 0..BURST + 3 {
            refusals.judge("a", start);
        }
        assert_eq!(refusals.judge("a", start + EVERY), Some(3));
        assert_eq!(refusals.judge("a", start + EVERY), None);
    }

    #[test]
    fn sources_without_end_cost_no_memory_without_end() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for number in 0..10 * MAX_SOURCES {
            refusals.judge(&number.to_string(), now);
        }
        let kept = refusals.0.lock().unwrap().len();
        assert!(kept <= MAX_SOURCES + 1, "{kept}");
        let elsewhere = 9 * MAX_SOURCES as u64 - u64::from(BURST);
        assert_eq!(refusals.settle(now), [(ELSEWHERE.to_owned(), elsewhere)]);
        assert!(refusals.settle(now + EVERY * (BURST + 1)).is_empty());
        assert!(refusals.0.lock().unwrap().is_empty(), "all are forgotten");
    }
}
