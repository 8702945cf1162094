//! What the Workload API and SDS serve: the seam between who keeps identities and who hands them out.
//!
//! [`Source`] is asked who a caller is, and then watched: each value is the caller's full state, so that a slow
//! reader misses steps but never the end of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use handfast_ca::bundle::TrustBundle;
use handfast_ca::model::Selector;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::Peer;

/// Who keeps the identities of this node's workloads.
pub trait Source: Send + Sync + 'static {
    /// Which workload is this? Asked anew at each call, since a process may have become another program since it
    /// connected. What is learned about the process counts only if [`Peer::is_alive`] holds afterwards: until then
    /// its number may have gone to somebody else.
    fn attest<'a>(
        &'a self,
        peer: &'a Arc<Peer>,
    ) -> BoxFuture<'a, Result<Arc<Attested>, AttestError>>;

    /// The workload's state, now and after each change. The sender is dropped when the agent stops.
    fn watch(&self, workload: &Arc<Attested>) -> watch::Receiver<Arc<WorkloadState>>;

    /// JWT-SVIDs for `audiences` (at least one): of the identity asked for, or one of each that the workload has.
    fn jwt_svids<'a>(
        &'a self,
        workload: &'a Arc<Attested>,
        audiences: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> BoxFuture<'a, Result<Vec<JwtSvid>, JwtError>>;

    /// The time that others' tokens are judged by: never behind what the CA has said.
    fn now(&self) -> UnixTime;

    /// Is this identity revoked?
    fn denies(&self, id: &SpiffeId) -> bool;
}

/// A process whose properties have been looked at.
#[derive(Debug, Clone)]
pub struct Attested {
    /// The process.
    pub peer: Arc<Peer>,
    /// What is true of it, such as `unix:uid:1000`.
    pub selectors: Vec<Selector>,
    /// Its network namespace (inode), if it could be seen.
    pub netns: Option<u64>,
    /// Which list of this node's endpoints was gone by; for the [`Source`] alone.
    pub endpoints: u64,
}

/// Why a caller's properties are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// It exited while it was looked at.
    #[error("the calling process is gone")]
    Gone,
    /// It cannot be looked at now; later perhaps.
    #[error("the calling process cannot be attested: {0}")]
    Failed(String),
}

/// What a workload gets at one moment.
#[derive(Debug, Clone)]
pub enum WorkloadState {
    /// Not known yet: the agent starts, or waits for the CA to sign.
    Initialising,
    /// No entry matches it.
    NoIdentity,
    /// Its identities.
    Ready(Material),
}

/// The identities of a workload, and what it verifies others with.
#[derive(Debug, Clone)]
pub struct Material {
    /// Never empty; the first is the default (W-10).
    pub svids: Vec<Arc<X509Svid>>,
    /// Of this trust domain, and of those that the workload's entries federate with.
    pub bundles: Arc<BundleSet>,
    /// DER.
    pub crls: Arc<Vec<Vec<u8>>>,
    /// False while identities of its own are still being made.
    pub whole: bool,
}

/// An identity, with its key.
pub struct X509Svid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER, not encrypted.
    pub key: Zeroizing<Vec<u8>>,
    /// Tells several identities of one workload apart; may be empty.
    pub hint: String,
    /// Unix seconds.
    pub not_after: u64,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("spiffe_id", &self.spiffe_id.to_string())
            .field("hint", &self.hint)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Trust bundles, never merged (B-5).
#[derive(Debug, Clone)]
pub struct BundleSet {
    /// Of this trust domain.
    pub own: TrustBundle,
    /// Of others.
    pub federated: BTreeMap<TrustDomain, TrustBundle>,
}

impl BundleSet {
    /// All of them, the own first.
    pub fn all(&self) -> impl Iterator<Item = &TrustBundle> {
        std::iter::once(&self.own).chain(self.federated.values())
    }

    /// That of `trust_domain`.
    pub fn of(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        if self.own.trust_domain() == trust_domain {
            return Some(&self.own);
        }
        self.federated.get(trust_domain)
    }
}

/// A JWT-SVID. The token is a secret.
pub struct JwtSvid {
    /// Its subject.
    pub spiffe_id: SpiffeId,
    /// Compact JWS.
    pub token: Zeroizing<String>,
    /// As in [`X509Svid::hint`].
    pub hint: String,
    /// Unix seconds.
    pub not_after: u64,
}

/// Why there is no JWT-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The workload has no identity, or not the one that it asked for.
    #[error("no such identity for this workload")]
    NotEntitled,
    /// The request itself is refused.
    #[error("{0}")]
    Invalid(String),
    /// Not now: the CA is not reached and nothing fitting is kept.
    #[error("no JWT-SVID for now: {0}")]
    Unavailable(String),
}
