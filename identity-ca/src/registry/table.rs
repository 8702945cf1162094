//! All entries in memory, by parent: a change costs what it changes, and a
//! node's entries cost what applies to that node.
//!
//! One table for the life of a server, read under a short lock. What has
//! changed lately is remembered in order, so that a stream can be told the
//! difference.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use spiffe::SpiffeId;

use crate::model::{Entry, Node};
use crate::names::is_reserved;

/// Changes that are remembered one by one.
const MAX_LOG: usize = 4096;

/// What has changed for a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) changed: Vec<Arc<Entry>>,
    pub(crate) removed: Vec<String>,
}

impl Difference {
    /// Is there none?
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct EntryTable(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: HashSet<ById>,
    /// Where they apply: none for every node.
    by_parent: HashMap<Option<SpiffeId>, HashSet<ById>>,
    by_identity: HashMap<SpiffeId, HashSet<ById>>,
    /// (unix milliseconds, ID) of those that end.
    ends: BTreeSet<(u64, String)>,
    log: VecDeque<Logged>,
    /// Differences since an earlier number cannot be told.
    floor: u64,
}

#[derive(Debug)]
struct Logged {
    number: u64,
    before: Option<Arc<Entry>>,
    after: Option<Arc<Entry>>,
}

impl EntryTable {
    /// An empty table that is to be filled up to `number`; of what came later
    /// it can tell the difference.
    pub(super) fn new(number: u64) -> Self {
        let inner = Inner {
            floor: number,
            ..Inner::default()
        };
        Self(RwLock::new(inner))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Puts in an entry that nobody has been told of.
    pub(super) fn fill(&self, entry: Entry) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.put(entry, 0);
    }

    /// Puts entries in (each with the number of its change) and takes others out.
    pub(super) fn apply(&self, changed: Vec<(Entry, u64)>, deleted: Vec<(String, u64)>) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let gone: HashSet<&str> = deleted.iter().map(|(id, _)| id.as_str()).collect();
        let changed: Vec<_> = changed
            .into_iter()
            .filter(|(entry, _)| !gone.contains(entry.id.as_str()))
            .collect();
        // In the order of their numbers, since the log is.
        let mut all: Vec<(u64, Result<Entry, String>)> = changed
            .into_iter()
            .map(|(entry, number)| (number, Ok(entry)))
            .chain(deleted.into_iter().map(|(id, number)| (number, Err(id))))
            .collect();
        all.sort_by_key(|(number, _)| *number);
        for (number, change) in all {
            match change {
                Ok(entry) => inner.put(entry, number),
                Err(id) => inner.remove(&id, number),
            }
        }
    }

    /// An entry, if it applies to a node at this time.
    pub(crate) fn entry_of(&self, node: &Node, id: &str, now_ms: u64) -> Option<Arc<Entry>> {
        let inner = self.read();
        let entry = &inner.entries.get(id)?.0;
        let live = !entry.is_expired(now_ms) && inner.applies(entry, node);
        live.then(|| Arc::clone(entry))
    }

    /// The entries that apply to a node at this time, ordered by identity.
    pub(crate) fn entries_of(&self, node: &Node, now_ms: u64) -> Vec<Arc<Entry>> {
        let inner = self.read();
        let mut found: HashSet<ById> = HashSet::new();
        let mut parents = vec![None, Some(node.spiffe_id.clone())];
        while let Some(parent) = parents.pop() {
            for entry in inner.by_parent.get(&parent).into_iter().flatten() {
                // Other entries may stand below this one.
                let below = Some(entry.0.spiffe_id.clone());
                if found.insert(entry.clone()) && inner.by_parent.contains_key(&below) {
                    parents.push(below);
                }
            }
        }
        drop(inner);
        let mut entries: Vec<Arc<Entry>> = found
            .into_iter()
            .map(|entry| entry.0)
            .filter(|entry| !entry.is_expired(now_ms))
            .collect();
        entries.sort_by(|one, other| order(one).cmp(&order(other)));
        entries
    }

    /// What has changed for a node since `number`; none if that is too long
    /// ago, or too much, to be told.
    pub(crate) fn since(&self, node: &Node, number: u64, now_ms: u64) -> Option<Difference> {
        let inner = self.read();
        if number < inner.floor {
            return None;
        }
        let begin = inner.log.partition_point(|logged| logged.number <= number);
        let mut latest: HashMap<&str, (bool, Option<&Arc<Entry>>)> = HashMap::new();
        for logged in inner.log.range(begin..) {
            let Some(id) = logged.after.as_ref().or(logged.before.as_ref()) else {
                continue;
            };
            let had = logged
                .before
                .as_ref()
                .is_some_and(|entry| inner.applies(entry, node));
            let first = latest.get(id.id.as_str()).map_or(had, |(first, _)| *first);
            latest.insert(&id.id, (first, logged.after.as_ref()));
        }
        let mut difference = Difference::default();
        for (id, (had, after)) in latest {
            match after {
                Some(entry) if !entry.is_expired(now_ms) && inner.applies(entry, node) => {
                    difference.changed.push(Arc::clone(entry));
                }
                _ if had => difference.removed.push(id.to_owned()),
                _ => {}
            }
        }
        difference
            .changed
            .sort_by(|one, other| order(one).cmp(&order(other)));
        difference.removed.sort();
        Some(difference)
    }

    /// An entry by its ID.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.read()
            .entries
            .get(id)
            .map(|entry| Arc::clone(&entry.0))
    }

    /// When the next entry ends (unix milliseconds).
    pub(crate) fn next_end(&self) -> Option<u64> {
        self.read().ends.first().map(|(end, _)| *end)
    }

    /// All entries that `keep` wants, ordered by identity.
    pub(crate) fn list(&self, keep: impl Fn(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let mut entries: Vec<Arc<Entry>> = self
            .read()
            .entries
            .iter()
            .filter(|entry| keep(&entry.0))
            .map(|entry| Arc::clone(&entry.0))
            .collect();
        entries.sort_by(|one, other| order(one).cmp(&order(other)));
        entries
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, entry: Entry, number: u64) {
        let entry = Arc::new(entry);
        let before = self.take(&entry.id);
        let unchanged = before.as_ref().is_some_and(|before| **before == *entry);
        self.by_parent
            .entry(entry.parent_id.clone())
            .or_default()
            .insert(ById(Arc::clone(&entry)));
        self.by_identity
            .entry(entry.spiffe_id.clone())
            .or_default()
            .insert(ById(Arc::clone(&entry)));
        if let Some(end) = entry.expires_at_ms {
            self.ends.insert((end, entry.id.clone()));
        }
        self.entries.insert(ById(Arc::clone(&entry)));
        if !unchanged {
            self.note(number, before, Some(entry));
        }
    }

    fn remove(&mut self, id: &str, number: u64) {
        if let Some(before) = self.take(id) {
            self.note(number, Some(before), None);
        }
    }

    /// Takes an entry out of every index.
    fn take(&mut self, id: &str) -> Option<Arc<Entry>> {
        let ById(entry) = self.entries.take(id)?;
        drop_from(&mut self.by_parent, &entry.parent_id, id);
        drop_from(&mut self.by_identity, &entry.spiffe_id, id);
        if let Some(end) = entry.expires_at_ms {
            self.ends.remove(&(end, entry.id.clone()));
        }
        Some(entry)
    }

    fn note(&mut self, number: u64, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>) {
        if number <= self.floor {
            return;
        }
        // What other entries stand below moves them too: that is no difference
        // of this entry alone.
        // Neither is one that stands below an entry which may itself be gone when
        // somebody asks.
        let moves = before.iter().chain(&after).any(|entry| {
            let above = entry.parent_id.as_ref();
            self.by_parent.contains_key(&Some(entry.spiffe_id.clone()))
                || (after.is_none() && above.is_some_and(|above| !is_reserved(above)))
        });
        if moves {
            self.log.clear();
            self.floor = number;
            return;
        }
        if self.log.len() >= MAX_LOG
            && let Some(oldest) = self.log.pop_front()
        {
            self.floor = oldest.number;
        }
        self.log.push_back(Logged {
            number,
            before,
            after,
        });
    }

    /// Does an entry apply to a node, itself or by what stands above it?
    fn applies(&self, entry: &Entry, node: &Node) -> bool {
        let mut seen: HashSet<&SpiffeId> = HashSet::new();
        let mut above = vec![entry.parent_id.as_ref()];
        while let Some(parent) = above.pop() {
            let Some(parent) = parent else { return true };
            if *parent == node.spiffe_id {
                return true;
            }
            if seen.insert(parent) {
                let entries = self.by_identity.get(parent).into_iter().flatten();
                above.extend(entries.map(|entry| entry.0.parent_id.as_ref()));
            }
        }
        false
    }
}

fn drop_from<K: Hash + Eq>(index: &mut HashMap<K, HashSet<ById>>, key: &K, id: &str) {
    if let Some(entries) = index.get_mut(key) {
        entries.remove(id);
        if entries.is_empty() {
            index.remove(key);
        }
    }
}

fn order(entry: &Entry) -> (&str, &str, &str) {
    let id = &entry.spiffe_id;
    (id.trust_domain().as_str(), id.path(), &entry.id)
}

/// An entry that is found by its ID.
#[derive(Debug, Clone)]
struct ById(Arc<Entry>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.as_str().hash(state);
    }
}
