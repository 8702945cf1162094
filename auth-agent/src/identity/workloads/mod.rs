//! The SVIDs of this node's workloads: made here, signed by the CA in batches, renewed at half life, and pushed to
//! whoever has asked for them as soon as anything changes.
//!
//! [`Workloads`] is told what the CA says and is asked by the Workload API ([`Source`]). One task renews; everything
//! that is served stands in one state behind one lock, which is never held while anything is waited for.

mod bundles;
mod engine;
mod held;
mod issuers;
mod jwt;
mod keep;
mod returning;
mod source;
mod state;
mod table;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use handfast_ca::bundle::TrustBundle;
use handfast_ca::client::{Section, Update};
use handfast_ca::verify::{NodeSvid, Verifier};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use self::bundles::Bundles;
use self::jwt::Jwts;
use self::keep::{Has, Keep};
use self::returning::Returning;
use self::state::{State, Whom};
use super::attest::{Attestor, Touched};
use super::selectors::Demands;
use super::{Foreign, Knowledge, KnownEntry, Link, swap};
use crate::endpoint::Endpoint;
use crate::workload_api::{AttestError, Attested, Peer};

/// What [`Workloads`] begins with.
#[derive(Debug)]
pub struct Beginning {
    /// SPIFFE ID of this node.
    pub node: String,
    /// Whom it believes.
    pub verifier: Verifier,
    /// The entries that the CA named last; none if it was never heard.
    pub entries: Option<Vec<Arc<KnownEntry>>>,
    /// Foreign bundles, as last heard.
    pub federated: Vec<TrustBundle>,
    /// Revocation lists (DER), as last heard.
    pub crls: Vec<Vec<u8>>,
    /// What the CA has retired, as last heard.
    pub retired: Vec<String>,
    /// A folder in memory where SVIDs outlive the agent; none to keep nothing.
    pub folder: Option<PathBuf>,
}

/// What has become different. None: the same as before.
#[derive(Debug, Default)]
pub struct Change {
    /// Bundle and deny list.
    pub verifier: Option<Verifier>,
    /// The entries that apply to this node.
    pub entries: Option<Section<Arc<KnownEntry>>>,
    /// All foreign bundles.
    pub federated: Option<Vec<TrustBundle>>,
    /// All revocation lists (DER).
    pub crls: Option<Vec<Vec<u8>>>,
    /// Issuing CAs and JWT keys whose signatures are to be replaced now.
    pub retired: Option<Vec<String>>,
    /// The CA's clock (unix milliseconds).
    pub ca_time_ms: Option<u64>,
}

impl Beginning {
    /// With what a node's folder holds; nothing is kept in memory for the next run.
    pub fn of(
        node: &NodeSvid,
        verifier: &Verifier,
        knowledge: &Knowledge,
        foreign: &Foreign,
    ) -> Self {
        Self {
            node: node.spiffe_id.to_string(),
            verifier: verifier.clone(),
            entries: (knowledge.sequence > 0).then(|| knowledge.entries.clone()),
            federated: foreign.federated.clone(),
            crls: foreign.crls.clone(),
            retired: knowledge.retired.clone(),
            folder: None,
        }
    }
}

impl Change {
    /// What an update of the CA says of workloads; bundle and deny list are for the caller to judge.
    pub fn of(update: &Update) -> Self {
        Self {
            verifier: None,
            entries: update
                .entries
                .as_ref()
                .map(|entries| entries.map(|entry| Arc::new(KnownEntry::from(entry)))),
            federated: update.federated.clone(),
            crls: update.crls.clone(),
            retired: update.retired.clone(),
            ca_time_ms: Some(update.ca_time_ms),
        }
    }
}

/// One SVID, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSvid {
    /// Whose.
    pub spiffe_id: String,
    /// In hexadecimal.
    pub serial: String,
    /// Unix seconds.
    pub not_after: u64,
}

/// The identities of this node's workloads. Cheap to clone; the work ends when the last clone is dropped.
#[derive(Clone)]
pub struct Workloads(Arc<Inner>);

impl std::fmt::Debug for Workloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workloads")
            .field("node", &self.0.node)
            .finish_non_exhaustive()
    }
}

struct Inner {
    node: String,
    link: Link,
    attestor: Arc<Attestor>,
    state: Mutex<State>,
    jwts: Jwts,
    keep: Keep,
    returning: Mutex<Returning>,
    /// Something may be due.
    wake: Arc<Notify>,
    engine: Mutex<Option<AbortHandle>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(engine) = self.lock_engine().take() {
            engine.abort();
        }
    }
}

impl Workloads {
    /// Takes up what an earlier run has left and begins to ask the CA for what is missing. The second value says why
    /// nothing is kept for the next run, if nothing is.
    pub fn start(beginning: Beginning, link: Link) -> (Self, Option<String>) {
        let (keep, not_kept) = match &beginning.folder {
            Some(folder) => {
                if let Some(warning) = swap::warning(folder) {
                    tracing::warn!("{warning}");
                }
                Keep::open(folder)
            }
            None => (Keep::nothing(), None),
        };
        let own = beginning.verifier.bundle().clone();
        let mut state = State::new(beginning.verifier, Bundles::new(own, beginning.federated));
        state.crls = Arc::new(beginning.crls);
        state.table.retire(beginning.retired);
        let now = state.now();
        let (mut returning, mut used) = (HashMap::new(), BTreeSet::new());
        if let Some(entries) = beginning.entries {
            state.initialised = true;
            state.table.set_entries(entries, &beginning.node, now);
            for held in keep.load(&state.verifier, now) {
                let entry = Arc::<str>::from(held.entry.id.as_str());
                if !state.table.adopt(&entry, held, now) {
                    keep.forget([&entry]);
                } else if let Some(has) = keep.was_served(&entry) {
                    used.insert(Arc::clone(&has.authority));
                    returning.insert(entry, has);
                }
            }
        }
        link.workloads_use(state.table.authorities());
        if let Some(bundle) = returning.values().map(|has| has.bundle).min() {
            link.workloads_away(used, bundle);
        }
        let workloads = Self(Arc::new(Inner {
            node: beginning.node,
            link,
            attestor: Arc::default(),
            state: Mutex::new(state),
            jwts: Jwts::default(),
            keep,
            returning: Mutex::new(Returning::new(returning)),
            wake: Arc::default(),
            engine: Mutex::default(),
        }));
        let engine = tokio::spawn(engine::run(
            Arc::downgrade(&workloads.0),
            Arc::clone(&workloads.0.wake),
            workloads.0.link.reached(),
        ));
        *workloads.0.lock_engine() = Some(engine.abort_handle());
        (workloads, not_kept)
    }

    /// The CA, or this node, has said something new. Open streams hear of it before this returns, as far as no
    /// certificate has to be signed for it.
    pub fn apply(&self, change: Change) {
        let inner = &self.0;
        let mut state = inner.lock();
        if let Some(ca_time) = change.ca_time_ms {
            state.clock.heard(ca_time);
        }
        let now = state.now();
        if let Some(verifier) = change.verifier {
            state.bundles.set_own(verifier.bundle());
            let deny = verifier.deny_list();
            state
                .table
                .replace_denied(|held| deny.denies_serial(&held.serial));
            state.verifier = verifier;
        }
        if let Some(federated) = change.federated {
            state.bundles.set_federated(federated);
        }
        if let Some(crls) = change.crls
            && *state.crls != crls
        {
            state.crls = Arc::new(crls);
        }
        if let Some(retired) = change.retired {
            state.table.retire(retired);
        }
        let mut gone = Vec::new();
        if let Some(entries) = change.entries {
            let entries = entries.onto(state.table.entries().cloned());
            gone = state.table.set_entries(entries, &inner.node, now);
            state.initialised = true;
        }
        state.publish(&Whom::All);
        inner.tidy_jwts(&state, now);
        drop(state);
        inner.keep.forget(&gone);
        inner.report();
        inner.wake.notify_one();
    }

    /// The endpoints of this node: processes in their namespaces have their properties. Open streams of processes
    /// that this concerns are looked at again at once.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        self.0
            .endpoints_changed(self.0.attestor.set_endpoints(endpoints));
    }

    /// One more endpoint, or one that has changed.
    pub fn add_endpoint(&self, endpoint: Endpoint) {
        self.0
            .endpoints_changed(self.0.attestor.add_endpoint(endpoint));
    }

    /// The entries that apply to this node, the oldest first.
    pub fn entries(&self) -> Vec<Arc<KnownEntry>> {
        self.0.lock().table.entries().cloned().collect()
    }

    /// All workload SVIDs that are held.
    pub fn svids(&self) -> Vec<HeldSvid> {
        let state = self.0.lock();
        let mut svids: Vec<HeldSvid> = state
            .table
            .all()
            .map(|(_, held)| HeldSvid {
                spiffe_id: held.svid.spiffe_id.to_string(),
                serial: held.serial.to_string(),
                not_after: held.svid.not_after,
            })
            .collect();
        svids.sort_by(|a, b| (&a.spiffe_id, &a.serial).cmp(&(&b.spiffe_id, &b.serial)));
        svids
    }

    /// When the first of them ends (unix seconds).
    pub fn nearest_expiry(&self) -> Option<u64> {
        let state = self.0.lock();
        state.table.all().map(|(_, held)| held.svid.not_after).min()
    }

    /// How many there are, and how many streams are open.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.table.all().count(), state.streams())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_engine(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the CA what SVIDs here hang on, if that has changed.
    fn report(&self) {
        let mut authorities: BTreeSet<Arc<str>> = self.lock().table.authorities();
        authorities.extend(self.jwts.key_ids());
        self.link.workloads_use(authorities);
    }

    /// Notes who is served, for the next run; tells the CA when all who were served by the last one are back.
    fn note_served(&self) {
        let served = {
            let state = self.lock();
            let served = state.table.served().into_iter();
            let bundle = state.verifier.bundle().sequence();
            served
                .map(|(entry, authority)| (entry, Has { bundle, authority }))
                .collect::<HashMap<_, _>>()
        };
        let mut returning = self
            .returning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if returning.served(&served, Instant::now()) {
            self.link.workloads_back();
        }
        let awaited = returning.entries().clone();
        drop(returning);
        self.keep
            .serves(awaited.into_iter().chain(served).collect());
    }

    /// Forgets JWT-SVIDs that nobody should get any more.
    fn tidy_jwts(&self, state: &State, now: u64) {
        self.jwts.retain(now, |entry, token| {
            let entry = state.table.entry(entry);
            let same =
                entry.is_some_and(|entry| token.jwt.spiffe_id.to_string() == entry.spiffe_id);
            same && !state.table.is_retired(&token.key_id)
                && !state.denies_entry(&token.jwt.spiffe_id.to_string())
        });
    }

    fn endpoints_changed(&self, touched: Option<Touched>) {
        if let Some(touched) = touched {
            self.lock().endpoints_changed(&touched);
            self.wake.notify_one();
        }
    }

    /// Looks at a process.
    async fn look(&self, peer: &Arc<Peer>, demands: Demands) -> Result<Arc<Attested>, AttestError> {
        let started = Instant::now();
        let looked = self.attestor.look(peer, demands).await;
        let failure = looked.as_ref().err().map(|error| match error {
            AttestError::Gone => "gone",
            AttestError::Failed(_) => "failed",
        });
        crate::metrics::attested(started.elapsed(), failure);
        looked.map(Arc::new)
    }
}
