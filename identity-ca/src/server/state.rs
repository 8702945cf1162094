//! What both services share: the keys, the registry, and its current snapshot.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, Semaphore, watch};

use super::allowance::Allowances;
use super::connections::Connections;
use super::crls::Crls;
use super::damage::Damage;
use super::federation::Fetcher;
use super::heads::Heads;
use super::heard::Hearing;
use super::quota::Quota;
use super::refusals::Refusals;
use crate::attest::Attestors;
use crate::audit::Audit;
use crate::authority::Authority;
use crate::backup::recovery::Recovery;
use crate::federation::FederationConfig;
use crate::registry::{Registry, Snapshot};
use crate::tls::certified;
use crate::{Error, NodeName, metrics, now_ms};

/// How often certificates of our own are looked at.
const UPKEEP: Duration = Duration::from_secs(60);
/// How often the deny list is dated anew, so that nodes know that it is fresh.
const REDATE_MS: u64 = 3_600_000;
/// Streams of updates of one node: its own, the next one's beside it, and what is left of lost connections.
const MAX_STREAMS: usize = 4;
/// Strangers who are let in at once.
const MAX_ADMITTING: usize = 4;
/// Claims that are judged at once: certificates of others cost time, and a cluster is asked.
const MAX_JUDGING: usize = 8;
/// As many as a source may have connections that have shown nothing.
const MAX_KNOCKING: usize = 16;

pub(super) struct State {
    pub(super) authority: Authority,
    pub(super) registry: Registry,
    pub(super) audit: Audit,
    pub(super) attestors: Attestors,
    pub(super) federation: FederationConfig,
    pub(super) fetcher: Fetcher,
    pub(super) heads: Heads,
    pub(super) hearing: Hearing,
    /// Of strangers, and of nodes by their names: neither takes the others' room.
    pub(super) refusals: Refusals,
    pub(super) node_refusals: Refusals,
    pub(super) allowances: Allowances,
    /// Strangers who are being let in: they must not keep operators from changing anything.
    pub(super) admitting: Arc<Semaphore>,
    /// Claims of strangers that are being judged: who waits for an answer holds no place.
    pub(super) judging: Arc<Semaphore>,
    /// Strangers of one source who want to be let in.
    pub(super) knocking: Quota<IpAddr>,
    pub(super) connections: Connections,
    pub(super) damage: Damage,
    pub(super) crls: Crls,
    pub(super) recovery: Mutex<Option<Recovery>>,
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(super) certificate: Arc<OwnCertificate>,
    /// Wakes the runner of rotations.
    pub(super) rotation: Notify,
    /// One change at a time, so that snapshots follow each other in order.
    writer: Arc<tokio::sync::Mutex<()>>,
    connected: Mutex<HashMap<NodeName, usize>>,
    address: SocketAddr,
    admin_socket: PathBuf,
    /// Where agents reach the servers that are there.
    pub(super) servers: watch::Sender<Arc<Vec<String>>>,
    /// How often this machine's clock was set back.
    pub(super) set_back: watch::Sender<u64>,
}

impl State {
    pub(super) async fn open(
        authority: Authority,
        registry: Registry,
        audit: Audit,
        attestors: Attestors,
        federation: FederationConfig,
        address: SocketAddr,
        admin_socket: PathBuf,
    ) -> Result<Arc<Self>, Error> {
        registry.redate_denials().await?;
        let recovery = registry.recovery().await?;
        let snapshot = Snapshot::load(&registry, &authority, None).await?;
        let certificate = Arc::new(OwnCertificate::make(&authority)?);
        let writer = Arc::default();
        Ok(Arc::new(Self {
            hearing: Hearing::start(registry.clone(), Arc::clone(&writer)),
            refusals: Refusals::default(),
            node_refusals: Refusals::default(),
            allowances: Allowances::default(),
            admitting: Arc::new(Semaphore::new(MAX_ADMITTING)),
            judging: Arc::new(Semaphore::new(MAX_JUDGING)),
            knocking: Quota::new(MAX_KNOCKING),
            authority,
            registry,
            audit,
            attestors,
            federation,
            fetcher: Fetcher::default(),
            heads: Heads::default(),
            connections: Connections::default(),
            damage: Damage::default(),
            crls: Crls::default(),
            recovery: Mutex::new(recovery),
            snapshot: watch::Sender::new(Arc::new(snapshot)),
            certificate,
            rotation: Notify::new(),
            writer,
            connected: Mutex::default(),
            address,
            admin_socket,
            servers: watch::Sender::default(),
            set_back: watch::Sender::default(),
        }))
    }

    /// While it is held nobody else changes the snapshot.
    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.writer.lock().await
    }

    /// Operators who are neither root nor the owner reach the socket only if
    /// it is open to all; each call asks who they are in any case.
    pub(super) fn open_socket_to_operators(&self) {
        let mode = if self.now().operators.any_uid() {
            0o666
        } else {
            0o600
        };
        let opened = fs::set_permissions(&self.admin_socket, fs::Permissions::from_mode(mode));
        if let Err(error) = opened {
            tracing::warn!(%error, "cannot set who reaches the administrative socket");
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registry as it is now.
    pub(super) fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Changes the registry and tells everybody. Goes on to its end even if
    /// the caller hangs up: what is committed is also pushed.
    pub(super) async fn change<T, F>(
        self: &Arc<Self>,
        change: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
    {
        self.audit.ready().await?;
        let state = Arc::clone(self);
        let task = tokio::spawn(async move {
            let since = Instant::now();
            let writing = state.writer.lock().await;
            let changed = change(Arc::clone(&state)).await?;
            let before = state.now();
            let after = Snapshot::load(&state.registry, &state.authority, Some(&before)).await;
            let after = after.map_err(|error| Error::NotInForce(Box::new(error)))?;
            metrics::change(since);
            metrics::registry(&after);
            state.snapshot.send_replace(Arc::new(after));
            drop(writing);
            Ok(changed)
        });
        let ended = task
            .await
            .map_err(|error| Error::Protocol(format!("a change ended early: {error}")))?;
        if let Err(error) = &ended {
            self.notice(error);
        }
        ended
    }

    /// Counts a node as connected while the guard lives; none if it has all
    /// streams that it may have.
    pub(super) fn connected(self: &Arc<Self>, name: &NodeName) -> Option<Connected> {
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let streams = connected.entry(name.clone()).or_default();
        if *streams >= MAX_STREAMS {
            return None;
        }
        *streams += 1;
        metrics::connected(connected.len());
        Some(Connected {
            state: Arc::clone(self),
            name: name.clone(),
        })
    }

    /// How long partners of a federation need to fetch what is new (SPIFFE
    /// F-6), if there are any.
    pub(super) fn federation_lead(&self) -> Option<Duration> {
        self.federation.lead()
    }

    pub(super) fn is_connected(&self, name: &NodeName) -> bool {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(name)
    }

    pub(super) fn nodes_connected(&self) -> usize {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    pub(super) async fn close(&self) {
        if let Err(error) = self.settle_refusals().await {
            tracing::warn!(%error, "the last refusals are not in the audit log");
        }
        self.registry.close().await;
    }
}

/// A node's open stream.
pub(super) struct Connected {
    state: Arc<State>,
    name: NodeName,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut connected = self
            .state
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connected.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                connected.remove(&self.name);
                metrics::connected(connected.len());
            }
        }
    }
}

/// The certificate that the CA shows to agents: signed by itself, renewed when
/// half of its life is over, another issuing CA signs, a root leaves the bundle, or
/// the clock that it was dated by turns out to have been ahead.
#[derive(Debug)]
pub(super) struct OwnCertificate(RwLock<Option<Shown>>);

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    issuer: String,
    /// What stands behind it in the chain, for who knows an older root.
    roots: Vec<CertificateDer<'static>>,
    /// When it was made, is to be replaced, and ends (unix seconds).
    made: u64,
    due: u64,
    not_after: u64,
}

impl OwnCertificate {
    /// None to show if the CA has nothing to sign with: agents then find
    /// nobody here until it has.
    fn make(authority: &Authority) -> Result<Self, Error> {
        let own = Self(RwLock::default());
        own.renew_if_due(authority)?;
        Ok(own)
    }

    /// Do agents find somebody here whom they believe?
    pub(super) fn is_shown(&self) -> bool {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown
            .as_ref()
            .is_some_and(|shown| now_ms() / 1000 < shown.not_after)
    }

    pub(super) fn renew_if_due(&self, authority: &Authority) -> Result<(), Error> {
        let issuer = authority.issuing_id();
        let stale = {
            let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
            shown.as_ref().map_or(issuer.is_some(), |shown| {
                !shown.is_fresh(now_ms() / 1000)
                    || Some(&shown.issuer) != issuer.as_ref()
                    || issuer.is_some() && shown.has_left(&authority.authorities().shown())
            })
        };
        if stale {
            let fresh = issuer.map(|issuer| Shown::fresh(authority, issuer));
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh.transpose()?;
        }
        Ok(())
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().map(|shown| Arc::clone(&shown.key))
    }
}

impl Shown {
    fn is_fresh(&self, now: u64) -> bool {
        (self.made..self.due).contains(&now)
    }

    /// Does it show a root that is shown no more? One that has come can wait for the next issuing CA.
    fn has_left(&self, roots: &[CertificateDer<'_>]) -> bool {
        self.roots.iter().any(|root| !roots.contains(root))
    }

    fn fresh(authority: &Authority, issuer: String) -> Result<Self, Error> {
        let roots = authority.authorities().shown();
        let made = now_ms() / 1000;
        let (key, issued) = authority.server_identity(&roots)?;
        Ok(Self {
            roots,
            key: certified(issued.chain, &key)?,
            issuer,
            made,
            due: made.midpoint(issued.not_after),
            not_after: issued.not_after,
        })
    }
}

/// Renews what is ours, for as long as the server runs.
pub(super) async fn upkeep(state: Arc<State>) {
    let measured = measure(&state);
    if let Err(error) = measured {
        tracing::error!(%error, "when the root ends is not known");
    }
    loop {
        tokio::time::sleep(UPKEEP).await;
        let done = state.settle_refusals().await;
        if let Err(error) = done.and(look_after(&state).await) {
            tracing::error!(%error, "upkeep; it is tried again in a minute");
        }
    }
}

/// Says when what signs comes to its end.
fn measure(state: &State) -> Result<(), Error> {
    metrics::authority("root", state.authority.root_not_after()?);
    metrics::authority("issuing", state.authority.issuing_not_after());
    Ok(())
}

async fn look_after(state: &Arc<State>) -> Result<(), Error> {
    measure(state)?;
    state.certificate.renew_if_due(&state.authority)?;
    if now_ms().abs_diff(state.now().deny.issued_at_ms()) >= REDATE_MS {
        state
            .change(|state| async move { state.registry.redate_denials().await })
            .await?;
    }
    Ok(())
}
