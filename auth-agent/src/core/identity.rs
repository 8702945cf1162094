//! Numbers for identities: given once, never reused in a boot.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kept::{Entry, Kept};
use super::planted::{Bug, planted};
use super::snapshot::IdentitySnapshot;
use super::types::{Identity, IdentityNumber};

/// All identities that have a number.
#[derive(Debug)]
pub(super) struct Numbers {
    by_identity: BTreeMap<Arc<Identity>, IdentityNumber>,
    by_number: Kept<IdentityNumber, Known, IdentitySnapshot>,
    next: u32,
}

/// One identity.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub identity: Arc<Identity>,
    /// Unix seconds: the latest end of any proof of it.
    pub not_after: u64,
    pub revoked: bool,
}

impl Entry<IdentityNumber, Known> for IdentitySnapshot {
    fn of(number: &IdentityNumber, known: &Known) -> Self {
        Self {
            number: *number,
            identity: known.identity.clone(),
            not_after: known.not_after,
            revoked: known.revoked,
        }
    }
}

impl Numbers {
    pub(super) fn new() -> Self {
        Self {
            by_identity: BTreeMap::new(),
            by_number: Kept::default(),
            next: IdentityNumber::FIRST.0,
        }
    }

    /// Goes on where an earlier agent of this boot stopped.
    pub(super) fn restore(next: u32, known: &[IdentitySnapshot]) -> Self {
        let mut numbers = Self::new();
        for saved in known {
            let revoked = saved.revoked && !planted(Bug::DenyListForgottenOnResume);
            numbers.insert(saved.number, saved.identity.clone(), revoked);
            if let Some(known) = numbers.get_mut(saved.number) {
                known.not_after = saved.not_after;
            }
            numbers.next = numbers.next.max(saved.number.0.saturating_add(1));
        }
        numbers.next = numbers.next.max(next);
        numbers
    }

    /// For the snapshot.
    pub(super) fn list(&self) -> Arc<Vec<IdentitySnapshot>> {
        self.by_number.list()
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn find(&self, identity: &Identity) -> Option<IdentityNumber> {
        self.by_identity.get(identity).copied()
    }

    /// A new number; `None` when a boot has used them all up.
    pub(super) fn add(
        &mut self,
        identity: &Identity,
        revoked: bool,
    ) -> Option<(IdentityNumber, Arc<Identity>)> {
        let number = IdentityNumber(self.next);
        if number >= IdentityNumber::LIMIT {
            return None;
        }
        self.next += 1;
        let identity = Arc::new(identity.clone());
        self.insert(number, identity.clone(), revoked);
        Some((number, identity))
    }

    fn insert(&mut self, number: IdentityNumber, identity: Arc<Identity>, revoked: bool) {
        self.by_identity.insert(identity.clone(), number);
        let known = Known {
            identity,
            not_after: 0,
            revoked,
        };
        self.by_number.insert(number, known);
    }

    pub(super) fn get(&self, number: IdentityNumber) -> Option<&Known> {
        self.by_number.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: IdentityNumber) -> Option<&mut Known> {
        self.by_number.get_mut(&number)
    }

    pub(super) fn forget(&mut self, number: IdentityNumber) {
        if let Some(known) = self.by_number.remove(&number) {
            self.by_identity.remove(&known.identity);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IdentityNumber, &Known)> {
        self.by_number
            .iter()
            .map(|(number, known)| (*number, known))
    }
}
