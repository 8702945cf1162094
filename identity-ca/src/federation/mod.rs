//! Federation: bundles of foreign trust domains, fetched from their endpoints, and ours for them (SPIFFE Federation).
//!
//! A foreign bundle says who of that domain is who, and nothing else: it is
//! never merged with another, and ends up only with workloads whose entries
//! federate with its domain.

mod endpoint;
pub(crate) mod fetch;
pub(crate) mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use spiffe::TrustDomain;

use crate::bundle::TrustBundle;

pub use self::endpoint::{Endpoint, Profile};

/// What a partner's `spiffe_refresh_hint` counts for at least; ours asks for no less.
pub const SHORTEST_REFRESH: Duration = Duration::from_secs(60);

/// How the CA takes part in federations.
#[derive(Debug, Clone)]
pub struct FederationConfig {
    /// Where our own bundle is served, if it is.
    pub endpoint: Option<SocketAddr>,
    /// PEM files of a chain and its key that the Web PKI vouches for
    /// (`https_web`); without them the endpoint shows the CA's own X509-SVID
    /// (`https_spiffe`). Read again when they change.
    pub web_certificate: Option<(PathBuf, PathBuf)>,
    /// How often partners are asked to fetch our bundle.
    pub refresh_hint: Duration,
    /// No partner is asked more often, whatever it asks for: its bundle must
    /// not make us its load generator.
    pub shortest_refresh: Duration,
    /// PEM: what takes the place of the system's store in judging `https_web`
    /// endpoints of partners.
    pub web_roots: Option<PathBuf>,
}

impl Default for FederationConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            web_certificate: None,
            refresh_hint: Duration::from_secs(crate::bundle::DEFAULT_REFRESH_HINT),
            shortest_refresh: SHORTEST_REFRESH,
            web_roots: None,
        }
    }
}

impl FederationConfig {
    /// How long before its first use a new key must stand in the bundle (F-6):
    /// every partner has fetched it by then, even if two tries failed.
    pub(crate) fn lead(&self) -> Option<Duration> {
        self.endpoint.map(|_| 3 * self.refresh_hint)
    }
}

/// A foreign trust domain, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relationship {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Where its bundle is fetched; none if it is set by hand.
    pub endpoint: Option<Endpoint>,
    /// The latest bundle, if there is any.
    pub bundle: Option<Arc<TrustBundle>>,
    /// How that went.
    pub state: FetchState,
}

/// When a bundle was fetched, in unix milliseconds; zero for never.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FetchState {
    /// When the relationship was made.
    pub created_ms: u64,
    /// When a bundle was fetched or set.
    pub fetched_ms: u64,
    /// When that was tried last.
    pub tried_ms: u64,
    /// Why the last try brought nothing; empty if it did.
    pub problem: String,
}
