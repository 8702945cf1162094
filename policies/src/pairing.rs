//! Whether two workloads need each other's proofs: both ends must allow some flow between them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entry::{Entry, Pairing, Remote, lookup};
use crate::local::LocalPolicy;
use crate::model::{Direction, Protocol, Verdict};

pub(crate) fn between(one: &LocalPolicy, other: &LocalPolicy) -> Pairing {
    let (one, other) = (End::new(one, other), End::new(other, one));
    let there = flows(&one, &other);
    let back = flows(&other, &one);
    Pairing {
        wanted: there.wanted || back.wanted,
        max_age: shorter(there.max_age, back.max_age),
    }
}

/// Flows that `from` opens to `to`: its egress and the other's ingress must both let one pass.
fn flows(from: &End, to: &End) -> Pairing {
    let sending = from.side(Direction::Egress);
    let receiving = to.side(Direction::Ingress);
    let ports: BTreeSet<u16> = sending
        .turns()
        .chain(receiving.turns())
        .chain([0])
        .collect();
    let mut pairing = Pairing::default();
    for protocol in Protocol::ALL {
        for port in &ports {
            let passes = (
                sending.passes(protocol, *port),
                receiving.passes(protocol, *port),
            );
            if let (Some(sent), Some(received)) = passes {
                pairing.wanted = true;
                pairing.max_age = shorter(pairing.max_age, shorter(sent, received));
            }
        }
    }
    pairing
}

/// One of the two, toward the other.
struct End<'a> {
    policy: &'a LocalPolicy<'a>,
    entries: Vec<Entry>,
}

impl<'a> End<'a> {
    fn new(policy: &'a LocalPolicy<'a>, other: &LocalPolicy) -> Self {
        let other = Remote::Workload(other.workload().clone());
        Self {
            policy,
            entries: policy.entries(&other),
        }
    }

    fn side(&self, direction: Direction) -> Side<'_> {
        Side {
            direction,
            entries: &self.entries,
            selected: self.policy.selected(direction),
        }
    }
}

/// One end of a flow.
struct Side<'a> {
    direction: Direction,
    entries: &'a [Entry],
    /// Whether what no entry speaks of is denied.
    selected: bool,
}

impl Side<'_> {
    /// The ports at which what is allowed may change.
    fn turns(&self) -> impl Iterator<Item = u16> {
        self.entries.iter().flat_map(|entry| {
            std::iter::once(entry.ports.first()).chain(entry.ports.last().checked_add(1))
        })
    }

    /// Whether a flow may pass, and if so how old its proofs may be.
    fn passes(&self, protocol: Protocol, port: u16) -> Option<Option<Duration>> {
        match lookup(self.entries, self.direction, protocol, port) {
            Some(entry) => (entry.verdict == Verdict::Allow).then_some(entry.max_age),
            None => (!self.selected).then_some(None),
        }
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}
