//! Workloads that were served when an earlier run of the agent ended. Until they ask again they use the SVIDs and the
//! bundle that they had, whatever this run holds by then: a rotation waits for them, a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keep::Has;

/// The longest pause that clients make between two attempts to connect.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who has asked again has taken in by then what it was told.
const TAKING_IN: Duration = Duration::from_secs(1);

/// Their entries, each with what they have.
#[derive(Debug)]
pub(super) struct Returning {
    entries: HashMap<Arc<str>, Has>,
    until: Instant,
    over: bool,
}

impl Returning {
    pub(super) fn new(entries: HashMap<Arc<str>, Has>) -> Self {
        Self {
            over: entries.is_empty(),
            entries,
            until: Instant::now() + PATIENCE,
        }
    }

    /// Who is still awaited.
    pub(super) fn entries(&self) -> &HashMap<Arc<str>, Has> {
        &self.entries
    }

    /// These are served at this moment. True, once: nobody is awaited any more.
    pub(super) fn served(&mut self, served: &HashMap<Arc<str>, Has>, now: Instant) -> bool {
        if self.over {
            return false;
        }
        if !self.entries.is_empty() {
            self.entries.retain(|entry, _| !served.contains_key(entry));
            if self.entries.is_empty() {
                self.until = self.until.min(now + TAKING_IN);
            }
        }
        self.over = now >= self.until;
        if self.over {
            self.entries.clear();
        }
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> HashMap<Arc<str>, Has> {
        let has = || Has {
            bundle: 7,
            authority: "ca".into(),
        };
        names.iter().map(|name| (Arc::from(*name), has())).collect()
    }

    fn awaited(names: &[&str]) -> Returning {
        Returning::new(set(names))
    }

    #[test]
    fn all_are_awaited_until_they_have_taken_in_what_they_are_told() {
        let now = Instant::now();
        let mut returning = awaited(&["a", "b"]);
        assert!(!returning.served(&set(&["a", "c"]), now));
        assert_eq!(returning.entries().keys().count(), 1);
        assert!(!returning.served(&set(&["b"]), now));
        assert!(returning.served(&set(&["b"]), now + TAKING_IN));
        assert!(!returning.served(&set(&["b"]), now + TAKING_IN), "once");
    }

    #[test]
    fn nobody_is_awaited_for_ever_and_nobody_who_was_not_served() {
        let now = Instant::now();
        let mut returning = awaited(&["a"]);
        assert!(!returning.served(&set(&[]), now));
        assert!(returning.served(&set(&[]), now + 2 * PATIENCE));
        assert!(!awaited(&[]).served(&set(&["a"]), now + 2 * PATIENCE));
    }
}
