//! Which SVIDs this node's workloads should have, which they have, and which are due. No clock, no keys made, no I/O.
//!
//! SVIDs of entries that name this node as their parent are kept ready, up to a bound; those of the other entries are
//! asked for when a workload that they match asks for its identity, and dropped when nobody needs them any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use handfast_ca::model::Selector;

use super::held::Held;
use crate::identity::selectors::{Demands, matches};
use crate::identity::{KnownEntry, renew_at};

/// SVIDs that are kept ready though nobody has asked yet.
const MAX_READY: usize = 4096;
/// SVIDs in all.
const MAX_HELD: usize = 16_384;
/// Seconds before something that failed is asked for again.
const RETRY: u64 = 10;
/// Seconds after which a request is taken for lost.
const LOST: u64 = 60;
/// Seconds that an SVID is kept which nobody needs any more.
const IDLE: u64 = 600;
/// Seconds that an identity which its entry no longer names is served while the CA signs the new one.
const CHANGING: u64 = 5;

/// Entries and SVIDs of one node.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By age, then key: the order of a workload's identities.
    entries: Vec<Arc<KnownEntry>>,
    by_id: HashMap<Arc<str>, Arc<KnownEntry>>,
    /// Entries by the hash of one selector that must be there as it is written, sorted. Lists, since they are made
    /// anew at each change anyway, and take no more than they hold.
    by_selector: Vec<(u64, Arc<KnownEntry>)>,
    hashes: RandomState,
    /// Entries that have no such one.
    patterns: Vec<Arc<KnownEntry>>,
    demands: Demands,
    /// Kept ready.
    ready: Vec<Arc<str>>,
    /// How many workloads that are served an entry matches.
    users: HashMap<Arc<str>, usize>,
    /// Boxed: a map that grows has room for twice as many as it holds.
    held: HashMap<Arc<str>, Box<Held>>,
    /// Not to be asked for before; also what is being asked for.
    not_before: HashMap<Arc<str>, u64>,
    /// What the CA would not sign, in its words.
    refused: HashMap<Arc<str>, String>,
    retired: HashSet<Arc<str>>,
}

/// How an entry's SVID stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Standing<'a> {
    /// There it is.
    Held(&'a Held),
    /// It is being asked for, or will be.
    Pending,
    /// The CA would not sign it.
    Refused,
}

impl Table {
    /// Takes all entries anew. Returns the SVIDs that are dropped because their entries are gone.
    pub(super) fn set_entries(
        &mut self,
        entries: impl IntoIterator<Item = Arc<KnownEntry>>,
        node: &str,
        now: u64,
    ) -> Vec<Arc<str>> {
        let before = std::mem::take(&mut self.by_id);
        self.by_selector.clear();
        self.patterns.clear();
        self.demands = Demands::default();
        for entry in entries {
            // One that has not changed stays the one that it is, key and all: memory for one list only.
            let (id, entry) = match before.get_key_value(entry.id.as_str()) {
                Some((id, known)) if *known == entry => (Arc::clone(id), Arc::clone(known)),
                Some((id, _)) => (Arc::clone(id), entry),
                None => (entry.id.as_str().into(), entry),
            };
            self.insert(id, entry);
        }
        self.by_id.shrink_to_fit();
        self.by_selector.sort_unstable_by_key(|(hash, _)| *hash);
        self.by_selector.shrink_to_fit();
        self.entries = self.by_id.values().map(Arc::clone).collect();
        self.entries.sort_unstable_by(|one, other| {
            (one.created_at_ms, &one.id).cmp(&(other.created_at_ms, &other.id))
        });
        let ready = self.entries.iter();
        self.ready = ready
            .filter(|entry| entry.parent_id.as_deref() == Some(node))
            .take(MAX_READY)
            .filter_map(|entry| self.by_id.get_key_value(entry.id.as_str()))
            .map(|(id, _)| Arc::clone(id))
            .collect();
        self.ready.shrink_to_fit();
        self.after_entries(&before, now)
    }

    fn insert(&mut self, id: Arc<str>, entry: Arc<KnownEntry>) {
        self.demands = self.demands.or(Demands::of(entry.selectors()));
        let exact = entry.selectors().find(|(kind, _)| *kind != "cgroup");
        match exact {
            Some(selector) => {
                let hash = self.hashes.hash_one(selector);
                self.by_selector.push((hash, Arc::clone(&entry)));
            }
            None => self.patterns.push(Arc::clone(&entry)),
        }
        self.by_id.insert(id, entry);
    }

    /// Entries of which this may be the selector: others with the same hash are among them.
    fn with_selector(&self, selector: &Selector) -> impl Iterator<Item = &Arc<KnownEntry>> {
        let hash = self
            .hashes
            .hash_one((selector.kind.as_str(), selector.value.as_str()));
        let begin = self.by_selector.partition_point(|(known, _)| *known < hash);
        let from = self.by_selector.iter().skip(begin);
        from.take_while(move |(known, _)| *known == hash)
            .map(|(_, entry)| entry)
    }

    /// SVIDs follow their entries: dropped with them, asked for anew where the CA would sign something else.
    fn after_entries(
        &mut self,
        before: &HashMap<Arc<str>, Arc<KnownEntry>>,
        now: u64,
    ) -> Vec<Arc<str>> {
        let by_id = &self.by_id;
        for (id, held) in &mut self.held {
            if let Some(entry) = by_id.get(id)
                && !entry.signs_the_same(&held.entry)
                && held.changing_since.is_none()
            {
                held.changing_since = Some(now);
            }
        }
        // What was refused or has failed may be granted to a changed entry.
        let same = |id: &Arc<str>| by_id.get(id).is_some() && by_id.get(id) == before.get(id);
        self.refused.retain(|id, _| same(id));
        self.not_before.retain(|id, _| same(id));
        let gone: Vec<Arc<str>> = self
            .held
            .keys()
            .filter(|id| !by_id.contains_key(*id))
            .cloned()
            .collect();
        for id in &gone {
            self.held.remove(id);
        }
        gone
    }

    /// What these entries need to have looked at.
    pub(super) fn demands(&self) -> Demands {
        self.demands
    }

    /// The entries that match, in the order of a workload's identities.
    pub(super) fn matching(&self, found: &[Selector], now: u64) -> Vec<Arc<str>> {
        let exact = found
            .iter()
            .flat_map(|selector| self.with_selector(selector));
        let matching: BTreeMap<(u64, &str), &Arc<KnownEntry>> = exact
            .chain(&self.patterns)
            .filter(|entry| !entry.is_over(now) && matches(entry.selectors(), found))
            .map(|entry| ((entry.created_at_ms, entry.id.as_str()), entry))
            .collect();
        matching
            .into_keys()
            .filter_map(|(_, id)| self.by_id.get_key_value(id))
            .map(|(id, _)| Arc::clone(id))
            .collect()
    }

    /// All entries, the oldest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<KnownEntry>> {
        self.entries.iter()
    }

    /// An entry.
    pub(super) fn entry(&self, id: &str) -> Option<&Arc<KnownEntry>> {
        self.by_id.get(id)
    }

    /// How the SVID of an entry stands.
    pub(super) fn standing(&self, id: &str, now: u64) -> Standing<'_> {
        let held = self.held.get(id).filter(|held| {
            let entry = self.by_id.get(id);
            let names_another = entry.is_some_and(|entry| entry.spiffe_id != held.entry.spiffe_id);
            // Who matches now may never have been who matched then.
            let for_others = entry.is_some_and(|entry| entry.selectors != held.entry.selectors);
            let too_long = held
                .changing_since
                .is_some_and(|since| now >= since + CHANGING || self.refused.contains_key(id));
            held.svid.not_after > now && !(names_another && (too_long || for_others))
        });
        match held {
            Some(held) => Standing::Held(held),
            None if self.refused.contains_key(id) => Standing::Refused,
            None => Standing::Pending,
        }
    }

    /// Has the CA refused to sign what the entry names now?
    pub(super) fn is_refused(&self, id: &str) -> bool {
        self.refused.contains_key(id)
    }

    /// Is this very SVID the one that is held for its entry?
    pub(super) fn holds(&self, held: &Held) -> bool {
        let now = self.held.get(held.entry.id.as_str());
        now.is_some_and(|now| now.serial == held.serial)
    }

    /// A workload is served with these entries, or (`false`) no longer.
    pub(super) fn serve(&mut self, ids: &[Arc<str>], serve: bool, now: u64) {
        for id in ids {
            let users = self.users.entry(Arc::clone(id)).or_default();
            *users = if serve {
                *users + 1
            } else {
                users.saturating_sub(1)
            };
            if *users == 0 {
                self.users.remove(id);
                if let Some(held) = self.held.get_mut(id) {
                    held.idle_since = now;
                }
            }
        }
    }

    /// Entries whose SVIDs are to be asked for now, the most urgent first, at most `limit`. They count as being asked
    /// for until they are accepted or have failed.
    pub(super) fn due(&mut self, now: u64, limit: usize) -> Vec<Arc<KnownEntry>> {
        let mut due: BTreeSet<(u8, Arc<str>)> = BTreeSet::new();
        for id in self.users.keys() {
            if let Some(urgency) = self.urgency(id, now) {
                due.insert((urgency, Arc::clone(id)));
            }
        }
        for id in &self.ready {
            if !self.users.contains_key(id)
                && let Some(urgency) = self.urgency(id, now)
            {
                due.insert((urgency + 10, Arc::clone(id)));
            }
        }
        let mut entries = Vec::new();
        for (_, id) in due.into_iter().take(limit) {
            if let Some(entry) = self.by_id.get(&id) {
                entries.push(Arc::clone(entry));
                self.not_before.insert(id, now + LOST);
            }
        }
        entries
    }

    /// How urgent an entry's next SVID is (0 most); none if it is not due.
    fn urgency(&self, id: &Arc<str>, now: u64) -> Option<u8> {
        let entry = self.by_id.get(id)?;
        let waits = self.not_before.get(id).is_some_and(|until| now < *until);
        if waits || entry.is_over(now) {
            return None;
        }
        match self.held.get(id) {
            None if self.held.len() >= MAX_HELD => None,
            None => Some(0),
            Some(held) if held.changing_since.is_some() => Some(1),
            // Revoked: nobody is served with it any more.
            Some(held) if held.renew_at == 0 => Some(1),
            Some(held) if self.retired.contains(&held.authority) => Some(2),
            // Another one would live no longer.
            Some(held) if entry.ends_by(held.svid.not_after) => None,
            Some(held) => (now >= held.renew_at).then_some(3),
        }
    }

    /// Takes an SVID in that was verified. False: its entry is gone, or is another by now.
    pub(super) fn accept(&mut self, id: &Arc<str>, mut held: Held, now: u64) -> bool {
        let current = self
            .by_id
            .get_key_value(id)
            .filter(|(_, entry)| entry.signs_the_same(&held.entry));
        // The table's own key: what came along is a copy for the asking alone.
        let Some(id) = current.map(|(id, _)| Arc::clone(id)) else {
            // Due again at once.
            self.not_before.remove(id);
            return false;
        };
        self.refused.remove(&id);
        // An authority that was retired and signs all the same is asked again after a pause.
        match self.retired.contains(&held.authority) {
            true => self.not_before.insert(Arc::clone(&id), now + RETRY),
            false => self.not_before.remove(&id),
        };
        held.idle_since = now;
        self.held.insert(id, Box::new(held));
        true
    }

    /// An SVID that an earlier run has left.
    pub(super) fn adopt(&mut self, id: &str, mut held: Held, now: u64) -> bool {
        let Some((id, entry)) = self.by_id.get_key_value(id) else {
            return false;
        };
        if !entry.signs_the_same(&held.entry) || held.svid.not_after <= now {
            return false;
        }
        held.idle_since = now;
        held.renew_at = held.renew_at.min(renew_at(now, held.svid.not_after));
        self.held.insert(Arc::clone(id), Box::new(held));
        true
    }

    /// The CA was not reached: everything that was asked for is due when it is.
    pub(super) fn not_issued(&mut self, ids: &[Arc<str>], now: u64) {
        for id in ids {
            self.not_before.insert(Arc::clone(id), now + RETRY);
        }
    }

    /// The CA is reached: what had to wait for it is due.
    pub(super) fn reached(&mut self) {
        let refused = &self.refused;
        self.not_before.retain(|id, _| refused.contains_key(id));
    }

    /// The clock was ahead and was set right: nothing may wait until it is as late again.
    pub(super) fn set_back(&mut self, now: u64) {
        self.not_before.clear();
        for held in self.held.values_mut() {
            held.idle_since = held.idle_since.min(now);
            held.changing_since = held.changing_since.map(|since| since.min(now));
        }
    }

    /// The CA will not sign this.
    pub(super) fn refuse(&mut self, id: &Arc<str>, because: String, now: u64) {
        self.not_before.insert(Arc::clone(id), now + RETRY);
        if self.by_id.contains_key(id) {
            self.refused.insert(Arc::clone(id), because);
        }
    }

    /// What is signed by these is replaced.
    pub(super) fn retire(&mut self, authorities: impl IntoIterator<Item = String>) {
        let retired: HashSet<Arc<str>> = authorities.into_iter().map(Arc::from).collect();
        if retired != self.retired {
            self.retired = retired;
            // What is being asked for may still come from one of these.
            let refused = &self.refused;
            self.not_before.retain(|id, _| refused.contains_key(id));
        }
    }

    /// Certificates that are revoked are replaced: their identities may live on under other keys.
    pub(super) fn replace_denied(&mut self, denied: impl Fn(&Held) -> bool) {
        let refused = &self.refused;
        for (id, held) in self.held.iter_mut().filter(|(_, held)| denied(held)) {
            // Once: the list is long, and heard often.
            if std::mem::take(&mut held.renew_at) > 0 && !refused.contains_key(id) {
                self.not_before.remove(id);
            }
        }
    }

    /// Entries whose SVIDs workloads have, and what those hang on.
    pub(super) fn served(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let held = self.held.iter();
        held.filter(|(id, _)| self.users.contains_key(*id))
            .map(|(id, held)| (Arc::clone(id), Arc::clone(&held.authority)))
            .collect()
    }

    /// Is this one retired?
    pub(super) fn is_retired(&self, authority: &str) -> bool {
        self.retired.contains(authority)
    }

    /// What the SVIDs here hang on.
    pub(super) fn authorities(&self) -> BTreeSet<Arc<str>> {
        self.held
            .values()
            .map(|held| Arc::clone(&held.authority))
            .collect()
    }

    /// Drops SVIDs that nobody needs, and those that are over. Returns their entries.
    pub(super) fn tidy(&mut self, now: u64) -> Vec<Arc<str>> {
        let ready: HashSet<&Arc<str>> = self.ready.iter().collect();
        let full = self.held.len() >= MAX_HELD;
        let gone: Vec<Arc<str>> = self
            .held
            .iter()
            .filter(|(id, held)| {
                let unused = !ready.contains(id) && !self.users.contains_key(*id);
                // An idle SVID would keep a retired authority in use.
                let idle =
                    full || now >= held.idle_since + IDLE || self.retired.contains(&held.authority);
                let over = self.by_id.get(*id).is_none_or(|entry| entry.is_over(now));
                held.svid.not_after <= now || over || (unused && idle)
            })
            .map(|(id, _)| Arc::clone(id))
            .collect();
        for id in &gone {
            self.held.remove(id);
        }
        // Room for all that were asked for at once is needed no longer.
        self.not_before.shrink_to(2 * self.not_before.len());
        gone
    }

    /// Every SVID with its entry's key.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.held.iter().map(|(id, held)| (id, held.as_ref()))
    }

    /// Entries whose time came to an end between two moments (unix seconds).
    pub(super) fn ended(&self, after: u64, now: u64) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.is_over(now) && !entry.is_over(after))
    }

    /// SVIDs whose entry names another identity, and which are served no longer than this moment.
    pub(super) fn changed_out(&self, after: u64, now: u64) -> bool {
        self.held.values().any(|held| {
            held.changing_since
                .is_some_and(|since| (after + 1..=now).contains(&(since + CHANGING)))
        })
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
pub(super) mod tests;
