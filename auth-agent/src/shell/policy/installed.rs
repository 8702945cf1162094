//! What stands in the policy map, as far as this agent has written it, and the difference to what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use handfast_bpf::{Auth, Direction, IdentityNumber, PolicyKey, PolicyValue, Ports, Verdict};

use crate::endpoint::EndpointId;

/// Where an entry stands in the map: whose policy, and which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) endpoint: EndpointId,
    pub(crate) packets: PolicyKey,
}

/// One change of the kernel's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(Key, PolicyValue),
    Remove(Key),
}

impl Change {
    /// Whose policy it changes.
    pub(crate) fn endpoint(&self) -> EndpointId {
        match self {
            Self::Set(key, _) | Self::Remove(key) => key.endpoint,
        }
    }

    /// Whether something could pass if it were not written, and what comes after it were: a denial, or what a
    /// prefix has of its own in place of what the world has.
    pub(crate) fn narrows(&self) -> bool {
        match self {
            Self::Set(key, value) => {
                value.verdict == Verdict::Deny || key.packets.identity >= IdentityNumber::FIRST_CIDR
            }
            Self::Remove(_) => false,
        }
    }
}

/// An entry of which only that it stands is known; none that is ever wanted is like it.
const STANDING: PolicyValue = PolicyValue {
    verdict: Verdict::Deny,
    auth: Auth::TestAlwaysFail,
    encryption: true,
    rule: u32::MAX,
};

/// Entries that are looked at together: what stands there and is not wanted goes.
#[derive(Clone, Copy)]
pub(super) enum Scope {
    /// All of an endpoint.
    Endpoint(EndpointId),
    /// Those of an endpoint about one identity.
    Identity(EndpointId, u32),
}

/// The map's content.
#[derive(Debug, Default)]
pub(super) struct Installed {
    entries: BTreeMap<Key, PolicyValue>,
    /// How many of them are each endpoint's.
    counts: BTreeMap<EndpointId, usize>,
}

impl Installed {
    /// How many entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Every entry.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &PolicyValue)> {
        self.entries.iter()
    }

    /// Endpoints with more entries than these.
    pub(super) fn larger_than(&self, most: usize) -> Vec<EndpointId> {
        let larger = self.counts.iter().filter(|(_, count)| **count > most);
        larger.map(|(endpoint, _)| *endpoint).collect()
    }

    fn insert(&mut self, key: Key, value: PolicyValue) {
        if self.entries.insert(key, value).is_none() {
            *self.counts.entry(key.endpoint).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &Key) {
        if self.entries.remove(key).is_some()
            && let Some(count) = self.counts.get_mut(&key.endpoint)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key.endpoint);
            }
        }
    }

    /// What an earlier run of the agent has left.
    pub(super) fn adopt(&mut self, entries: impl IntoIterator<Item = (Key, PolicyValue)>) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }

    /// The map is empty.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A change that the kernel has refused: what stands there is no longer known; any value differs from the one that
    /// will be wanted, or goes when none is.
    pub(super) fn undo(&mut self, change: &Change) {
        match change {
            Change::Set(key, _) | Change::Remove(key) => self.insert(*key, STANDING),
        }
    }

    /// What must change among the keys in the scopes, and remembers it as done.
    pub(super) fn difference(
        &mut self,
        wanted: BTreeMap<Key, PolicyValue>,
        scopes: &[Scope],
    ) -> Vec<Change> {
        let mut gone: BTreeSet<Key> = BTreeSet::new();
        for scope in scopes {
            gone.extend(
                self.standing(*scope)
                    .filter(|key| !wanted.contains_key(key)),
            );
        }
        let mut changes = Vec::new();
        for (key, value) in wanted {
            if self.entries.get(&key) != Some(&value) {
                self.insert(key, value);
                changes.push(Change::Set(key, value));
            }
        }
        for key in gone {
            self.remove(&key);
            changes.push(Change::Remove(key));
        }
        // What narrows first; removals last, so that a flow that both the old and the new policies allow never falls
        // between two writes.
        changes.sort_by_key(|change| match change {
            set if set.narrows() => 0,
            Change::Set(..) => 1,
            Change::Remove(_) => 2,
        });
        changes
    }

    /// The keys that stand in a scope: they lie together, so that a change does not walk the whole map.
    fn standing(&self, scope: Scope) -> impl Iterator<Item = Key> + '_ {
        let (endpoint, identity) = match scope {
            Scope::Endpoint(endpoint) => (endpoint, None),
            Scope::Identity(endpoint, identity) => (endpoint, Some(IdentityNumber(identity))),
        };
        let first = move |direction| Key {
            endpoint,
            packets: PolicyKey {
                direction,
                identity: identity.unwrap_or(IdentityNumber(0)),
                ports: Ports::Any,
            },
        };
        [Direction::Ingress, Direction::Egress]
            .into_iter()
            .flat_map(move |direction| {
                let keys = self.entries.range(first(direction)..).map(|(key, _)| *key);
                keys.take_while(move |key| {
                    key.endpoint == endpoint
                        && key.packets.direction == direction
                        && identity.is_none_or(|identity| key.packets.identity == identity)
                })
            })
    }
}
