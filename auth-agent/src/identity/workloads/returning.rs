//! Workloads that were served when an earlier run of the agent ended. Until they ask again they use the SVIDs and the
//! bundle that they had, whatever this run holds by then: a rotation waits for them, a while.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest pause that clients make between two attempts to connect.
const PATIENCE: Duration = Duration::from_secs(30);

/// Their entries.
#[derive(Debug)]
pub(super) struct Returning {
    entries: HashSet<Arc<str>>,
    until: Instant,
}

impl Returning {
    pub(super) fn new(entries: HashSet<Arc<str>>) -> Self {
        Self {
            entries,
            until: Instant::now() + PATIENCE,
        }
    }

    /// Who is still awaited.
    pub(super) fn entries(&self) -> &HashSet<Arc<str>> {
        &self.entries
    }

    /// These are served now. True: just now the last one has come back, or is awaited no longer.
    pub(super) fn served(&mut self, served: &HashSet<Arc<str>>) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        self.entries.retain(|entry| !served.contains(entry));
        if Instant::now() >= self.until {
            self.entries.clear();
        }
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> HashSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn all_are_awaited_and_nobody_for_ever() {
        let mut returning = Returning::new(set(&["a", "b"]));
        assert!(!returning.served(&set(&["a", "c"])));
        assert_eq!(returning.entries(), &set(&["b"]));
        assert!(returning.served(&set(&["b"])));
        assert!(!returning.served(&set(&["b"])), "once");

        let mut returning = Returning::new(set(&["a"]));
        returning.until = Instant::now();
        assert!(returning.served(&set(&[])));
    }

    #[test]
    fn where_nobody_was_served_nobody_is_awaited() {
        assert!(!Returning::new(HashSet::new()).served(&set(&["a"])));
    }
}
