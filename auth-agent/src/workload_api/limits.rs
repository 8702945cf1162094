//! How much of this endpoint one caller can take: everybody on the node may connect, so nobody may take it all.
//!
//! Connections and calls are each shared out along the tree of control groups, and below a group by user: no branch
//! may hold more than what is left to all others together. So one container, one unit or one user always leaves half
//! of what its parent has to the next, whatever it forks: neither more processes nor groups below its own nor other
//! users make its share larger. A process has a bound of its own beside that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Peer;

/// Levels of the tree that are told apart; what lies deeper shares with its last named ancestor.
const MAX_DEPTH: usize = 16;

/// What callers may hold at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all. Each costs two descriptors.
    pub connections: usize,
    /// Connections that every group and user may hold while there are any, however deep in the tree.
    pub least_connections: usize,
    /// Connections of one process.
    pub process_connections: usize,
    /// Calls in all, streams included.
    pub calls: usize,
    /// Calls that every group and user may hold while there are any.
    pub least_calls: usize,
    /// Calls of one process, streams included.
    pub process_calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            least_connections: 64,
            process_connections: 64,
            calls: 16_384,
            least_calls: 256,
            process_calls: 256,
        }
    }
}

/// Who holds how much.
#[derive(Debug)]
pub(super) struct Ledger {
    connections: Mutex<Shares>,
    calls: Mutex<Shares>,
}

/// One thing that is shared out.
#[derive(Debug)]
struct Shares {
    all: usize,
    least: usize,
    of_process: usize,
    held: usize,
    /// By branch of the tree.
    branches: HashMap<Box<str>, usize>,
    processes: HashMap<u32, usize>,
}

/// A place that was taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    ledger: Arc<Ledger>,
    what: What,
    group: Arc<str>,
    process: u32,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Connection,
    Call,
}

/// Whose bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("the endpoint holds as much as it can")]
    Endpoint,
    #[error("this container, unit or user holds its share of the endpoint")]
    Group,
    #[error("this process holds as much as one process may")]
    Process,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let shares = |all, least, of_process| {
            Mutex::new(Shares {
                all,
                least,
                of_process,
                held: 0,
                branches: HashMap::new(),
                processes: HashMap::new(),
            })
        };
        Arc::new(Self {
            connections: shares(
                limits.connections,
                limits.least_connections,
                limits.process_connections,
            ),
            calls: shares(limits.calls, limits.least_calls, limits.process_calls),
        })
    }

    /// A place for one more connection.
    pub(super) fn connection(self: &Arc<Self>, peer: &Peer) -> Result<Place, Full> {
        self.take(What::Connection, peer.group(), peer.pid())
    }

    /// A place for one more call, from before its first byte is read until its last one is written.
    pub(super) fn call(self: &Arc<Self>, peer: &Peer) -> Result<Place, Full> {
        self.take(What::Call, peer.group(), peer.pid())
    }

    fn take(self: &Arc<Self>, what: What, group: &Arc<str>, process: u32) -> Result<Place, Full> {
        self.shares(what).take(group, process)?;
        Ok(Place {
            ledger: Arc::clone(self),
            what,
            group: Arc::clone(group),
            process,
        })
    }

    fn shares(&self, what: What) -> MutexGuard<'_, Shares> {
        match what {
            What::Connection => &self.connections,
            What::Call => &self.calls,
        }
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    fn take(&mut self, group: &str, process: u32) -> Result<(), Full> {
        if self.processes.get(&process).copied().unwrap_or(0) >= self.of_process {
            return Err(Full::Process);
        }
        // What a branch's parent could still take.
        let mut left = self.all.saturating_sub(self.held);
        if left == 0 {
            return Err(Full::Endpoint);
        }
        for branch in branches(group) {
            let held = self.branches.get(branch).copied().unwrap_or(0);
            if held >= left.max(self.least) {
                return Err(Full::Group);
            }
            // Each place that it takes is one less for the others, so it comes half the way to them.
            left = left.saturating_sub(held) / 2;
        }
        self.held += 1;
        *self.processes.entry(process).or_default() += 1;
        for branch in branches(group) {
            match self.branches.get_mut(branch) {
                Some(held) => *held += 1,
                None => {
                    self.branches.insert(branch.into(), 1);
                }
            }
        }
        Ok(())
    }

    fn give_back(&mut self, group: &str, process: u32) {
        self.held = self.held.saturating_sub(1);
        if let Some(held) = self.processes.get_mut(&process) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.processes.remove(&process);
            }
        }
        for branch in branches(group) {
            if let Some(held) = self.branches.get_mut(branch) {
                *held = held.saturating_sub(1);
                if *held == 0 {
                    self.branches.remove(branch);
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shares = self.ledger.shares(self.what);
        shares.give_back(&self.group, self.process);
    }
}

/// A group's branches from the root of the tree down, itself the last: `/a`, `/a/b`, `/a/b` and the user.
fn branches(group: &str) -> impl Iterator<Item = &str> {
    let ends = group.char_indices().skip(1);
    let ends = ends.filter(|&(_, c)| matches!(c, '/' | Peer::USER));
    let above = ends.filter_map(|(at, _)| group.get(..at));
    above.take(MAX_DEPTH).chain(std::iter::once(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/kube.slice/pod-a/container\u{0}0";
    const OTHER: &str = "/kube.slice/pod-b/container\u{0}0";

    fn ledger(calls: usize, least: usize, of_process: usize) -> Arc<Ledger> {
        Ledger::new(Limits {
            calls,
            least_calls: least,
            process_calls: of_process,
            ..Limits::default()
        })
    }

    fn take(ledger: &Arc<Ledger>, group: &str, process: u32) -> Result<Place, Full> {
        ledger.take(What::Call, &group.into(), process)
    }

    /// All that a group gets, by as many processes as it likes.
    fn hog(ledger: &Arc<Ledger>, groups: &[String]) -> Vec<Place> {
        let mut places = Vec::new();
        // Nobody else's processes.
        let first = ledger.calls.lock().unwrap().held * 1000;
        for (process, group) in groups.iter().cycle().enumerate() {
            let process = u32::try_from(first + process).unwrap();
            match take(ledger, group, process) {
                Ok(place) => places.push(place),
                // Another of its groups may have room left.
                Err(_) if !process.is_multiple_of(64) => {}
                Err(_) => break,
            }
        }
        places
    }

    #[test]
    fn a_group_has_its_branches_and_deeper_ones_than_are_told_apart_share() {
        let all: Vec<&str> = branches("/a/b\u{0}7").collect();
        assert_eq!(all, ["/a", "/a/b", "/a/b\u{0}7"]);
        assert_eq!(branches("\u{0}7").collect::<Vec<_>>(), ["\u{0}7"]);
        let deep = "/x".repeat(100) + "\u{0}7";
        assert_eq!(branches(&deep).count(), MAX_DEPTH + 1);
    }

    #[test]
    fn a_process_has_a_bound_of_its_own_and_places_come_back() {
        let ledger = ledger(100, 8, 2);
        let places: Vec<Place> = (0..2).map(|_| take(&ledger, ROOT, 1).unwrap()).collect();
        assert_eq!(take(&ledger, ROOT, 1).unwrap_err(), Full::Process);
        assert!(take(&ledger, ROOT, 2).is_ok());
        drop(places);
        assert!(take(&ledger, ROOT, 1).is_ok());
        let calls = ledger.calls.lock().unwrap();
        assert_eq!(calls.held, 0);
        assert!(calls.branches.is_empty() && calls.processes.is_empty());
    }

    #[test]
    fn one_container_of_root_cannot_take_the_share_of_another() {
        let ledger = ledger(1024, 8, 1);
        let greedy = hog(&ledger, &[ROOT.to_owned()]);
        assert!(greedy.len() >= 64, "{}", greedy.len());
        assert_eq!(take(&ledger, ROOT, 9999).unwrap_err(), Full::Group);
        let modest: Vec<_> = (5000..5048).map(|p| take(&ledger, OTHER, p)).collect();
        assert!(
            modest.iter().all(Result::is_ok),
            "the same user, another container"
        );
    }

    #[test]
    fn groups_below_its_own_and_other_users_make_no_share_larger() {
        let plain = ledger(1024, 8, 1);
        let one = hog(&plain, &[ROOT.to_owned()]).len();
        let split = ledger(1024, 8, 1);
        let groups: Vec<String> = (0..64)
            .map(|n| format!("/kube.slice/pod-a/container/sub{n}\u{0}{n}"))
            .collect();
        let many = hog(&split, &groups);
        // The container itself, one level above its users, has twice what one user in it has.
        assert!(many.len() <= 2 * one + 1, "{} against {one}", many.len());
        assert!(take(&split, OTHER, 9999).is_ok());
    }

    #[test]
    fn users_without_groups_leave_one_another_half() {
        let ledger = ledger(1024, 8, 1);
        let first = hog(&ledger, &["\u{0}1".to_owned()]);
        assert_eq!(first.len(), 512);
        let second = hog(&ledger, &["\u{0}2".to_owned()]);
        assert_eq!(second.len(), 256);
        assert!(take(&ledger, "\u{0}3", 9999).is_ok());
    }

    #[test]
    fn the_deepest_group_has_the_least_and_nobody_anything_when_all_is_taken() {
        let ledger = ledger(24, 8, 1);
        let deep = hog(&ledger, &["/a/b/c/d/e/f/g/h\u{0}0".to_owned()]);
        assert_eq!(deep.len(), 8);
        let others: Vec<Place> = (100..116)
            .map(|user| take(&ledger, &format!("\u{0}{user}"), user).unwrap())
            .collect();
        assert_eq!(take(&ledger, "\u{0}9", 9).unwrap_err(), Full::Endpoint);
        drop(others);
        assert!(take(&ledger, "\u{0}9", 9).is_ok());
    }
}
