//! Policies as the core asks them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use handfast_policies::{PolicySet, Selected};

use super::agent::workload;
use crate::core::{Identity, Pairing, PolicyView};

/// Policies as the core asks them: about the same identities again and again, so that which rules are an identity's is
/// looked up once.
pub(super) struct Pairings {
    set: Arc<PolicySet>,
    known: Mutex<HashMap<Identity, Option<Arc<Selected>>>>,
}

/// Identities whose rules are remembered; those of workloads that went are forgotten with all others.
const REMEMBERED: usize = 16_384;

impl Pairings {
    pub(super) fn new(set: Arc<PolicySet>) -> Self {
        Self {
            set,
            known: Mutex::default(),
        }
    }

    fn select(&self, identity: &Identity) -> Option<Arc<Selected>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(identity) {
            return found.clone();
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let selected = workload(identity).ok();
        let selected = selected.map(|workload| Arc::new(self.set.select(workload)));
        known.insert(identity.clone(), selected.clone());
        selected
    }
}

impl PolicyView for Pairings {
    fn pairing(&self, local: &Identity, remote: &Identity) -> Pairing {
        let (Some(local), Some(remote)) = (self.select(local), self.select(remote)) else {
            return Pairing::default();
        };
        let pairing = local.pairing(&remote);
        Pairing {
            wanted: pairing.wanted,
            max_age: pairing.max_age,
        }
    }
}
