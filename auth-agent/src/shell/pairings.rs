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
    /// By where the identity is in memory.
    known: Mutex<HashMap<usize, Known>>,
}

struct Known {
    /// Nothing else comes to be where it is as long as this holds it.
    _identity: Arc<Identity>,
    selected: Option<Arc<Selected>>,
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

    fn select(&self, identity: &Arc<Identity>) -> Option<Arc<Selected>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Arc::as_ptr(identity).addr();
        if let Some(found) = known.get(&place) {
            return found.selected.clone();
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let selected = workload(identity).ok();
        let selected = selected.map(|workload| Arc::new(self.set.select(workload)));
        let new = Known {
            _identity: Arc::clone(identity),
            selected: selected.clone(),
        };
        known.insert(place, new);
        selected
    }
}

impl PolicyView for Pairings {
    fn pairing(&self, one: &Arc<Identity>, other: &Arc<Identity>) -> Pairing {
        let (Some(one), Some(other)) = (self.select(one), self.select(other)) else {
            return Pairing::default();
        };
        let pairing = one.pairing(&other);
        Pairing {
            wanted: pairing.wanted,
            max_age: pairing.max_age,
        }
    }
}
