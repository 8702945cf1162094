//! How much is signed for each node within an hour. What is signed is written down, so a node that somebody has taken
//! over could fill the disk of the audit log, and with it stop the CA for all others.
//!
//! A node gets what its entries account for, many times over: all of its SVIDs anew, again and again, as rotations and
//! restarts want them. Entries that are new or changed bring their share at once, whatever was used up before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::authority::Lifetimes;
use crate::model::{Entry, Node};
use crate::registry::Snapshot;
use crate::{Error, NodeName, now_ms};

/// Within which a node that has used up everything has all of it again.
const HOUR: Duration = Duration::from_secs(3600);
/// How often entries are counted anew, at most. What changes meanwhile is granted as it comes.
const COUNT: Duration = Duration::from_secs(600);
/// SVIDs of every node in an hour, its own among them, and of each of its entries: so often may all be renewed at once.
const SVIDS: f64 = 256.0;
const RENEWALS: f64 = 16.0;
/// JWT-SVIDs of every node in an hour, and of each of its entries; and the audiences that one is renewed for in time.
const JWTS: f64 = 512.0;
const JWTS_EACH: f64 = 64.0;
const AUDIENCES: f64 = 10.0;
/// JWT-SVIDs of one node in an hour, however many its entries are.
const MAX_JWTS: f64 = 100_000.0;

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Svid,
    Jwt,
}

/// What nodes have left. Nodes of the registry alone are in it.
#[derive(Debug, Default)]
pub(super) struct Allowances(Mutex<HashMap<NodeName, Arc<Mutex<Allowance>>>>);

impl Allowances {
    /// Takes one for a node that was admitted; an error if it has none left.
    pub(super) fn take(
        &self,
        now: &Snapshot,
        node: &Node,
        life: &Lifetimes,
        what: What,
    ) -> Result<(), Error> {
        let at = Instant::now();
        let own = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match all.get(&node.name) {
                Some(own) => Arc::clone(own),
                None => {
                    let fresh = Arc::new(Mutex::new(Allowance::new(now, node, life, at)));
                    all.insert(node.name.clone(), Arc::clone(&fresh));
                    fresh
                }
            }
        };
        let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
        own.follow(now, node, life, at);
        let bucket = match what {
            What::Svid => &mut own.svids,
            What::Jwt => &mut own.jwts,
        };
        bucket.take(at).map_err(|wait| Error::TooMuch {
            node: node.name.clone(),
            what: match what {
                What::Svid => "SVIDs",
                What::Jwt => "JWT-SVIDs",
            },
            most: bucket.most as u64,
            wait: wait.as_secs() + 1,
        })
    }
}

#[derive(Debug)]
struct Allowance {
    svids: Bucket,
    jwts: Bucket,
    /// Of the entries that are accounted for.
    revision: u64,
    counted: Instant,
}

impl Allowance {
    fn new(now: &Snapshot, node: &Node, life: &Lifetimes, at: Instant) -> Self {
        let share = Share::of_all(now, node, life);
        Self {
            svids: Bucket::full(share.svids, at),
            jwts: Bucket::full(share.jwts, at),
            revision: now.revisions.entries,
            counted: at,
        }
    }

    /// Grants what new and changed entries bring.
    fn follow(&mut self, now: &Snapshot, node: &Node, life: &Lifetimes, at: Instant) {
        if self.revision == now.revisions.entries {
            return;
        }
        let changed = now.entries.since(node, self.revision, now_ms());
        self.revision = now.revisions.entries;
        let (svids, jwts) = (self.svids.most, self.jwts.most);
        if changed.is_none() || at.duration_since(self.counted) >= COUNT {
            let share = Share::of_all(now, node, life);
            self.svids.resize(share.svids, at);
            self.jwts.resize(share.jwts, at);
            self.counted = at;
        }
        match changed {
            Some(changed) => {
                for entry in &changed.changed {
                    let share = Share::of_entry(entry, life);
                    self.svids.left += share.svids;
                    self.jwts.left = (self.jwts.left + share.jwts).min(MAX_JWTS);
                }
            }
            // Too much to be told one by one: what they are more than before.
            None => {
                self.svids.left += (self.svids.most - svids).max(0.0);
                self.jwts.left += (self.jwts.most - jwts).max(0.0);
            }
        }
    }
}

/// What something accounts for in an hour.
#[derive(Debug, Clone, Copy)]
struct Share {
    svids: f64,
    jwts: f64,
}

impl Share {
    fn of_all(now: &Snapshot, node: &Node, life: &Lifetimes) -> Self {
        let own = Self {
            svids: SVIDS + 2.0 * renewals(life.node),
            jwts: JWTS,
        };
        let entries = now.entries_of(node);
        let all = entries.iter().fold(own, |all, entry| {
            let one = Self::of_entry(entry, life);
            Self {
                svids: all.svids + one.svids,
                jwts: all.jwts + one.jwts,
            }
        });
        Self {
            jwts: all.jwts.min(MAX_JWTS),
            ..all
        }
    }

    fn of_entry(entry: &Entry, life: &Lifetimes) -> Self {
        let ttl = |own: Option<u32>, default: u64| own.map_or(default, u64::from);
        Self::of(
            ttl(entry.workload_ttl_seconds, life.workload),
            life.proof,
            ttl(entry.jwt_ttl_seconds, life.jwt),
        )
    }

    /// A proof SVID and one for the workload, each renewed at half its life (seconds) and twice over, and what
    /// rotations and restarts want; JWT-SVIDs for several audiences.
    fn of(workload: u64, proof: u64, jwt: u64) -> Self {
        Self {
            svids: RENEWALS + 2.0 * (renewals(workload) + renewals(proof)),
            jwts: JWTS_EACH + AUDIENCES * renewals(jwt),
        }
    }
}

/// How often something that lives so long (seconds) is renewed in an hour.
fn renewals(life: u64) -> f64 {
    2.0 * HOUR.as_secs_f64() / (life.max(1) as f64)
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    /// What it holds, and what flows in within an hour. Grants may lift `left` above it.
    most: f64,
    at: Instant,
}

impl Bucket {
    fn full(most: f64, at: Instant) -> Self {
        Self {
            left: most,
            most,
            at,
        }
    }

    fn refill(&mut self, now: Instant) {
        let hours = now.duration_since(self.at).as_secs_f64() / HOUR.as_secs_f64();
        self.left = (self.left + self.most * hours).min(self.most.max(self.left));
        self.at = now;
    }

    fn resize(&mut self, most: f64, now: Instant) {
        self.refill(now);
        self.most = most;
    }

    /// Takes one, or says when there will be one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(HOUR.mul_f64((1.0 - self.left) / self.most.max(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(bucket: &mut Bucket, now: Instant) -> usize {
        std::iter::repeat_with(|| bucket.take(now))
            .take_while(Result::is_ok)
            .count()
    }

    #[test]
    fn what_is_used_up_comes_back_within_an_hour_and_not_more_of_it() {
        let start = Instant::now();
        let mut bucket = Bucket::full(3600.0, start);
        assert_eq!(drain(&mut bucket, start), 3600);
        let wait = bucket.take(start).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(drain(&mut bucket, start + Duration::from_secs(60)), 60);
        assert_eq!(drain(&mut bucket, start + 10 * HOUR), 3600);
    }

    #[test]
    fn what_was_granted_does_not_vanish_and_does_not_come_again() {
        let start = Instant::now();
        let mut bucket = Bucket::full(100.0, start);
        bucket.left += 50.0;
        assert_eq!(drain(&mut bucket, start + HOUR), 150);
        assert_eq!(drain(&mut bucket, start + 5 * HOUR), 100);
    }

    #[test]
    fn all_svids_may_be_renewed_ten_times_in_an_hour_and_short_ones_whenever_they_are_due() {
        let life = Lifetimes::default();
        let share = Share::of(life.workload, life.proof, life.jwt);
        // A proof SVID and a workload's.
        assert!(share.svids >= 2.0 * 10.0, "{share:?}");
        // Of the shortest lives that an entry may ask for: what half lives take, twice over.
        let share = Share::of(60, life.proof, 60);
        assert!(share.svids >= 2.0 * 120.0, "{share:?}");
        assert!(share.jwts >= 10.0 * 120.0, "{share:?}");
    }
}
