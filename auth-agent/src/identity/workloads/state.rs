//! The workloads that are served now, and what each of them gets: computed anew when something changes that it
//! depends on, and published if it differs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use handfast_ca::model::Serial;
use handfast_ca::verify::Verifier;
use spiffe::SpiffeId;
use tokio::sync::watch;

use super::bundles::Bundles;
use super::held::Held;
use super::table::{Standing, Table};
use crate::clock::Clock;
use crate::identity::selectors::Demands;
use crate::workload_api::{Attested, Material, WorkloadState, X509Svid};

/// Everything that is known of this node's workloads.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) bundles: Bundles,
    pub(super) crls: Arc<Vec<Vec<u8>>>,
    pub(super) verifier: Verifier,
    pub(super) clock: Clock,
    /// The CA, or an earlier run of this agent, has said which entries there are.
    pub(super) initialised: bool,
    watchers: HashMap<u64, Watcher>,
    next: u64,
}

/// One workload's open stream.
#[derive(Debug)]
struct Watcher {
    attested: Arc<Attested>,
    /// What was looked at.
    demands: Demands,
    matched: Vec<Arc<str>>,
    sender: watch::Sender<Arc<WorkloadState>>,
}

/// For whom something may have changed.
pub(super) enum Whom<'a> {
    /// Everybody; which entries match, too.
    All,
    /// Whoever has one of these entries.
    With(&'a HashSet<Arc<str>>),
}

impl State {
    pub(super) fn new(verifier: Verifier, bundles: Bundles) -> Self {
        Self {
            table: Table::default(),
            bundles,
            crls: Arc::default(),
            verifier,
            clock: Clock::new(),
            initialised: false,
            watchers: HashMap::new(),
            next: 0,
        }
    }

    /// Unix seconds.
    pub(super) fn now(&self) -> u64 {
        self.clock.now().wall
    }

    /// Streams that are open.
    pub(super) fn streams(&self) -> usize {
        self.watchers.len()
    }

    /// Begins to serve a workload.
    pub(super) fn watch(
        &mut self,
        attested: &Arc<Attested>,
        demands: Demands,
    ) -> watch::Receiver<Arc<WorkloadState>> {
        let now = self.now();
        let matched = self.table.matching(&attested.selectors, now);
        self.table.serve(&matched, true, now);
        let state = Arc::new(self.compose(&matched, false, now));
        let (sender, receiver) = watch::channel(state);
        let watcher = Watcher {
            attested: Arc::clone(attested),
            demands,
            matched,
            sender,
        };
        self.next += 1;
        self.watchers.insert(self.next, watcher);
        receiver
    }

    /// Tells those for whom something may have changed.
    pub(super) fn publish(&mut self, whom: &Whom<'_>) {
        self.forget_closed();
        let now = self.now();
        let mut watchers = std::mem::take(&mut self.watchers);
        for watcher in watchers.values_mut() {
            match whom {
                Whom::All => self.match_anew(watcher, now),
                Whom::With(entries) if watcher.matched.iter().any(|id| entries.contains(id)) => {}
                Whom::With(_) => continue,
            }
            let ready = matches!(**watcher.sender.borrow(), WorkloadState::Ready(_));
            let state = self.compose(&watcher.matched, ready, now);
            watcher.sender.send_if_modified(|published| {
                let differs = !same(published, &state);
                if differs {
                    *published = Arc::new(state);
                }
                differs
            });
        }
        self.watchers = watchers;
    }

    fn match_anew(&mut self, watcher: &mut Watcher, now: u64) {
        let matched = self.table.matching(&watcher.attested.selectors, now);
        if matched != watcher.matched {
            self.table.serve(&matched, true, now);
            self.table.serve(&watcher.matched, false, now);
            watcher.matched = matched;
        }
    }

    /// Streams that nobody reads any more hold nothing.
    fn forget_closed(&mut self) {
        let now = self.now();
        let table = &mut self.table;
        self.watchers.retain(|_, watcher| {
            let open = !watcher.sender.is_closed();
            if !open {
                table.serve(&watcher.matched, false, now);
            }
            open
        });
    }

    /// Workloads of which more must be looked at than was, since entries ask for it now.
    pub(super) fn to_look_at(&self) -> Vec<(u64, Arc<Attested>)> {
        let demands = self.table.demands();
        self.watchers
            .iter()
            .filter(|(_, watcher)| !demands.within(watcher.demands))
            .map(|(key, watcher)| (*key, Arc::clone(&watcher.attested)))
            .collect()
    }

    /// A workload was looked at again.
    pub(super) fn looked_at(
        &mut self,
        key: u64,
        attested: Option<Arc<Attested>>,
        demands: Demands,
    ) {
        if let Some(watcher) = self.watchers.get_mut(&key) {
            watcher.demands = demands;
            // One that could not be looked at keeps what is known of it: that it matches less is safe.
            if let Some(attested) = attested {
                watcher.attested = attested;
            }
        }
    }

    /// What a workload with these entries gets. `ready`: it has had identities before.
    fn compose(&mut self, matched: &[Arc<str>], ready: bool, now: u64) -> WorkloadState {
        if !self.initialised {
            return WorkloadState::Initialising;
        }
        let mut svids: Vec<Arc<X509Svid>> = Vec::with_capacity(matched.len());
        let mut hints = HashSet::new();
        let mut domains = BTreeSet::new();
        let mut pending = false;
        for id in matched {
            let Some(entry) = self.table.entry(id) else {
                continue;
            };
            match self.table.standing(id, now) {
                Standing::Held(held) if self.denies(held) => continue,
                Standing::Held(held) => {
                    // Two of one workload never have the same (W-10): the older entry keeps it.
                    let fresh = entry.hint.is_empty() || hints.insert(entry.hint.clone());
                    let hint = if fresh { entry.hint.as_str() } else { "" };
                    svids.push(with_hint(&held.svid, hint));
                }
                Standing::Pending if self.denies_entry(&entry.spiffe_id) => continue,
                Standing::Pending => {
                    pending = true;
                    // A default identity that comes a moment later would change under the workload.
                    if svids.is_empty() && !ready {
                        return WorkloadState::Initialising;
                    }
                }
                Standing::Refused => continue,
            }
            domains.extend(entry.federates_with.iter().cloned());
        }
        match (svids.is_empty(), pending) {
            (true, true) => WorkloadState::Initialising,
            (true, false) => WorkloadState::NoIdentity,
            (false, _) => WorkloadState::Ready(Material {
                svids,
                bundles: self.bundles.set(domains),
                crls: Arc::clone(&self.crls),
            }),
        }
    }

    fn denies(&self, held: &Held) -> bool {
        let (id, serial): (&SpiffeId, &Serial) = (&held.svid.spiffe_id, &held.serial);
        let deny = self.verifier.deny_list();
        deny.denies_id(id) || deny.denies_serial(serial)
    }

    /// Is an identity revoked?
    pub(super) fn denies_entry(&self, spiffe_id: &str) -> bool {
        SpiffeId::new(spiffe_id).is_ok_and(|id| self.verifier.deny_list().denies_id(&id))
    }
}

/// The same SVID under another hint.
fn with_hint(svid: &Arc<X509Svid>, hint: &str) -> Arc<X509Svid> {
    if svid.hint == hint {
        return Arc::clone(svid);
    }
    Arc::new(X509Svid {
        spiffe_id: svid.spiffe_id.clone(),
        chain: svid.chain.clone(),
        key: svid.key.clone(),
        hint: hint.to_owned(),
        not_after: svid.not_after,
    })
}

/// Would a workload see any difference?
fn same(one: &WorkloadState, other: &WorkloadState) -> bool {
    match (one, other) {
        (WorkloadState::Initialising, WorkloadState::Initialising)
        | (WorkloadState::NoIdentity, WorkloadState::NoIdentity) => true,
        (WorkloadState::Ready(one), WorkloadState::Ready(other)) => {
            Arc::ptr_eq(&one.bundles, &other.bundles)
                && Arc::ptr_eq(&one.crls, &other.crls)
                && one.svids.len() == other.svids.len()
                && one
                    .svids
                    .iter()
                    .zip(&other.svids)
                    .all(|(a, b)| Arc::ptr_eq(a, b) || (a.chain == b.chain && a.hint == b.hint))
        }
        _ => false,
    }
}
