//! Workloads of several trust domains: each against its own bundle, and never another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::TrustDomain;

use super::rules::{Leaf, Usage, trust_domain_of};
use super::{Rejection, Verifier, WorkloadSvid, hash};
use crate::bundle::TrustBundle;
use crate::deny::DenyList;

/// Verifies workload SVIDs of our trust domain and of those that it is
/// federated with.
#[derive(Debug, Clone)]
pub struct Domains {
    own: Verifier,
    foreign: BTreeMap<TrustDomain, Verifier>,
}

impl Domains {
    /// Our verifier, and the bundles of foreign trust domains. One that claims
    /// to be ours is left out.
    pub fn new(own: Verifier, foreign: impl IntoIterator<Item = Arc<TrustBundle>>) -> Self {
        let foreign = foreign
            .into_iter()
            .filter(|bundle| bundle.trust_domain() != own.bundle().trust_domain())
            // Our deny list speaks of foreign identities and serial numbers too.
            .map(|bundle| (bundle.trust_domain().clone(), own.beside(bundle)))
            .collect();
        Self { own, foreign }
    }

    /// The verifier of our own trust domain.
    pub fn own(&self) -> &Verifier {
        &self.own
    }

    /// The bundle of a trust domain, ours or a foreign one.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        if trust_domain == self.own.bundle().trust_domain() {
            return Some(self.own.bundle());
        }
        self.foreign.get(trust_domain).map(Verifier::bundle)
    }

    /// Is this the SVID of a workload, and whose? A trust domain without a
    /// bundle is not trusted.
    pub fn workload(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<WorkloadSvid, Rejection> {
        let first = chain.first().ok_or(Rejection::Chain(0))?;
        let trust_domain = trust_domain_of(first)?;
        if trust_domain == *self.own.bundle().trust_domain() {
            return self.own.workload(chain, now);
        }
        let verifier = self
            .foreign
            .get(&trust_domain)
            .ok_or_else(|| Rejection::TrustDomain(trust_domain.to_string()))?;
        verifier.foreign_workload(chain, now)
    }
}

impl Verifier {
    fn beside(&self, bundle: Arc<TrustBundle>) -> Self {
        Self::new(bundle, Arc::<DenyList>::clone(&self.deny))
    }

    /// SPIFFE's rules and no others: what our extensions and our reserved
    /// paths mean in a foreign trust domain is not ours to say.
    pub(crate) fn foreign_workload(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<WorkloadSvid, Rejection> {
        let leaf: Leaf = self.leaf(chain, now, Usage::Tls)?;
        self.allowed(&leaf, None)?;
        Ok(WorkloadSvid {
            spiffe_id: leaf.id,
            not_after: leaf.not_after,
            serial: leaf.serial,
            leaf_hash: hash(chain),
        })
    }
}
