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
pub(super) struct Installed(BTreeMap<Key, PolicyValue>);

impl Installed {
    /// How many entries.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every entry.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &PolicyValue)> {
        self.0.iter()
    }

    /// What an earlier run of the agent has left.
    pub(super) fn adopt(&mut self, entries: impl IntoIterator<Item = (Key, PolicyValue)>) {
        self.0.extend(entries);
    }

    /// The map is empty.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// A change that the kernel has refused: it counts as not done, so that the next difference has it again.
    pub(super) fn undo(&mut self, change: &Change) {
        match change {
            Change::Set(key, _) => {
                self.0.remove(key);
            }
            Change::Remove(key) => {
                // What stands there is no longer known; any value differs from the one that will be wanted, or
                // goes when none is.
                self.0.insert(*key, STANDING);
            }
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
            if self.0.get(&key) != Some(&value) {
                self.0.insert(key, value);
                changes.push(Change::Set(key, value));
            }
        }
        for key in gone {
            self.0.remove(&key);
            changes.push(Change::Remove(key));
        }
        // Denials first; removals last, so that a flow that both the old and the new policies allow never falls
        // between two writes.
        changes.sort_by_key(|change| match change {
            Change::Set(_, value) if value.verdict == Verdict::Deny => 0,
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
                let keys = self.0.range(first(direction)..).map(|(key, _)| *key);
                keys.take_while(move |key| {
                    key.endpoint == endpoint
                        && key.packets.direction == direction
                        && identity.is_none_or(|identity| key.packets.identity == identity)
                })
            })
    }
}
