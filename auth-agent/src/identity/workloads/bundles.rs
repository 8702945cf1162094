//! The trust bundles that workloads get: the own one, and those of the trust domains that their entries federate
//! with. One set for all workloads that federate alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use handfast_ca::bundle::TrustBundle;
use spiffe::TrustDomain;

use crate::workload_api::BundleSet;

/// Sets that are remembered; more would mean an entry of its own kind for each workload.
const MAX_SETS: usize = 256;

/// What is known of this trust domain and of others.
#[derive(Debug)]
pub(super) struct Bundles {
    own: TrustBundle,
    federated: BTreeMap<TrustDomain, TrustBundle>,
    sets: HashMap<BTreeSet<String>, Arc<BundleSet>>,
}

impl Bundles {
    pub(super) fn new(own: TrustBundle, federated: Vec<TrustBundle>) -> Self {
        let mut bundles = Self {
            own,
            federated: BTreeMap::new(),
            sets: HashMap::new(),
        };
        bundles.set_federated(federated);
        bundles
    }

    /// Takes this trust domain's bundle anew. False: it is the same.
    pub(super) fn set_own(&mut self, own: &TrustBundle) -> bool {
        if self.own == *own {
            return false;
        }
        self.own = own.clone();
        self.sets.clear();
        true
    }

    /// Takes the others' anew. False: they are the same.
    pub(super) fn set_federated(&mut self, federated: Vec<TrustBundle>) -> bool {
        let own = self.own.trust_domain();
        let federated: BTreeMap<_, _> = federated
            .into_iter()
            .filter(|bundle| bundle.trust_domain() != own)
            .map(|bundle| (bundle.trust_domain().clone(), bundle))
            .collect();
        if self.federated == federated {
            return false;
        }
        self.federated = federated;
        self.sets.clear();
        true
    }

    /// The set for a workload whose entries federate with these.
    pub(super) fn set(&mut self, with: BTreeSet<String>) -> Arc<BundleSet> {
        if let Some(set) = self.sets.get(&with) {
            return Arc::clone(set);
        }
        let federated = self
            .federated
            .iter()
            .filter(|(domain, _)| with.contains(domain.as_str()))
            .map(|(domain, bundle)| (domain.clone(), bundle.clone()))
            .collect();
        let set = Arc::new(BundleSet {
            own: self.own.clone(),
            federated,
        });
        if self.sets.len() >= MAX_SETS {
            self.sets.clear();
        }
        self.sets.insert(with, Arc::clone(&set));
        set
    }
}
