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
    known: Mutex<Remembered>,
}

/// By where the identity is in memory.
#[derive(Default)]
struct Remembered(HashMap<usize, Known>);

struct Known {
    /// Nothing else comes to be where it is as long as this holds it.
    _identity: Arc<Identity>,
    /// None if its SPIFFE ID is none.
    selected: Option<Selected>,
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
}

impl Remembered {
    /// None if one of the two is not remembered.
    fn pairing(&self, one: &Arc<Identity>, other: &Arc<Identity>) -> Option<Pairing> {
        let known = |identity: &Arc<Identity>| self.0.get(&Arc::as_ptr(identity).addr());
        let (one, other) = (known(one)?, known(other)?);
        let both = one.selected.as_ref().zip(other.selected.as_ref());
        let pairing = both.map(|(one, other)| one.pairing(other));
        let pairing = pairing.unwrap_or_default();
        Some(Pairing {
            wanted: pairing.wanted,
            max_age: pairing.max_age,
        })
    }

    fn remember(&mut self, set: &PolicySet, identity: &Arc<Identity>) {
        let selected = workload(identity).ok();
        let new = Known {
            _identity: Arc::clone(identity),
            selected: selected.map(|workload| set.select(workload)),
        };
        self.0.insert(Arc::as_ptr(identity).addr(), new);
    }
}

impl PolicyView for Pairings {
    fn pairing(&self, one: &Arc<Identity>, other: &Arc<Identity>) -> Pairing {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pairing) = known.pairing(one, other) {
            return pairing;
        }
        if known.0.len() >= REMEMBERED {
            known.0.clear();
        }
        known.remember(&self.set, one);
        known.remember(&self.set, other);
        known.pairing(one, other).unwrap_or_default()
    }
}
