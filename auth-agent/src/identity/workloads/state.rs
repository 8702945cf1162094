//! The workloads that are served now, and what each of them gets: computed anew when something changes that it
//! depends on, and published if it differs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use handfast_ca::model::Serial;
use handfast_ca::verify::Verifier;
use spiffe::SpiffeId;
use tokio::sync::watch;

use super::bundles::Bundles;
use super::table::{Standing, Table};
use crate::clock::Clock;
use crate::identity::attest::{Attestor, Touched};
use crate::identity::selectors::Demands;
use crate::workload_api::{Attested, Material, WorkloadState, X509Svid};

/// Seconds until a workload is looked at again that could not be.
const LOOK_AGAIN: u64 = 2;

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
    /// The list of endpoints that processes are to be known by.
    endpoints: u64,
    watchers: HashMap<u64, Watcher>,
    next: u64,
}

/// One workload's open stream.
#[derive(Debug)]
struct Watcher {
    attested: Arc<Attested>,
    /// What was looked at.
    demands: Demands,
    /// The list of endpoints that it must have been looked at by.
    endpoints: u64,
    /// Not to be looked at before, since it could not be (unix seconds).
    again_at: u64,
    matched: Vec<Arc<str>>,
    sender: watch::Sender<Arc<WorkloadState>>,
}

/// For whom something may have changed.
pub(super) enum Whom<'a> {
    /// Everybody; which entries match, too.
    All,
    /// Whoever has one of these entries.
    With(&'a HashSet<Arc<str>>),
    /// One workload; which entries match, too.
    One(u64),
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
            endpoints: 0,
            watchers: HashMap::new(),
            next: 0,
        }
    }

    /// Unix seconds.
    pub(super) fn now(&self) -> u64 {
        self.clock.now().wall
    }

    /// The clock was ahead, and was set right.
    pub(super) fn set_back(&mut self, now: u64) {
        self.table.set_back(now);
        for watcher in self.watchers.values_mut() {
            watcher.again_at = watcher.again_at.min(now);
        }
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
            // An attestation that was under way when the list changed has seen the old one.
            endpoints: self.endpoints,
            again_at: 0,
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
        for (key, watcher) in &mut watchers {
            match whom {
                Whom::All => self.match_anew(watcher, now),
                Whom::One(one) if one == key => self.match_anew(watcher, now),
                Whom::One(_) => continue,
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

    /// Endpoints came, changed or went: workloads in their namespaces may be others now.
    pub(super) fn endpoints_changed(&mut self, touched: &Touched) {
        self.endpoints = self.endpoints.max(touched.version);
        for watcher in self.watchers.values_mut() {
            let netns = watcher.attested.netns;
            if netns.is_some_and(|netns| touched.namespaces.contains(&netns)) {
                watcher.endpoints = watcher.endpoints.max(touched.version);
                watcher.again_at = 0;
            }
        }
    }

    /// Workloads to be looked at again: entries ask for more than was looked at, or their endpoint is not what it was.
    pub(super) fn to_look_at(&self) -> Vec<(u64, Arc<Attested>)> {
        let (demands, now) = (self.table.demands(), self.now());
        self.watchers
            .iter()
            .filter(|(_, watcher)| watcher.again_at <= now)
            .filter(|(_, watcher)| !demands.within(watcher.demands) || watcher.is_outdated())
            .map(|(key, watcher)| (*key, Arc::clone(&watcher.attested)))
            .collect()
    }

    /// A workload was looked at again, or could not be.
    pub(super) fn looked_at(
        &mut self,
        key: u64,
        attested: Option<Arc<Attested>>,
        demands: Demands,
    ) {
        let now = self.now();
        let Some(watcher) = self.watchers.get_mut(&key) else {
            return;
        };
        match attested {
            Some(attested) => {
                watcher.demands = demands;
                watcher.attested = attested;
            }
            None => {
                watcher.again_at = now + LOOK_AGAIN;
                // What its namespace was says nothing any more. The rest stays true, and that it matches less than it
                // might is safe.
                if watcher.is_outdated() {
                    let less = Attestor::without_namespace(&watcher.attested);
                    watcher.attested = Arc::new(less);
                }
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
                Standing::Held(held) if self.denies_id(&held.svid.spiffe_id) => continue,
                Standing::Held(held) if self.denies_serial(&held.serial) => {
                    if self.table.is_refused(id) {
                        continue;
                    }
                    // The identity lives on under another key, which is on its way.
                    pending = true;
                    if svids.is_empty() {
                        return WorkloadState::Initialising;
                    }
                    continue;
                }
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
                whole: !pending,
            }),
        }
    }

    /// Is an identity revoked?
    pub(super) fn denies_id(&self, id: &SpiffeId) -> bool {
        self.verifier.deny_list().denies_id(id)
    }

    /// Is a certificate revoked?
    pub(super) fn denies_serial(&self, serial: &Serial) -> bool {
        self.verifier.deny_list().denies_serial(serial)
    }

    /// Is an entry's identity revoked?
    pub(super) fn denies_entry(&self, spiffe_id: &str) -> bool {
        SpiffeId::new(spiffe_id).is_ok_and(|id| self.denies_id(&id))
    }
}

impl Watcher {
    /// Was it looked at by an older list of endpoints than it must be?
    fn is_outdated(&self) -> bool {
        self.attested.endpoints < self.endpoints
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
                && one.whole == other.whole
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
