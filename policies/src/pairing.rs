//! Whether two workloads need each other's proofs: both ends must allow some flow between them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entry::{Entry, Pairing, Remote, Workload, lookup};
use crate::model::{Direction, Protocol, Verdict};
use crate::set::PolicySet;

pub(crate) fn between(set: &PolicySet, local: &Workload, remote: &Workload) -> Pairing {
    let there = flows(set, local, remote);
    let back = flows(set, remote, local);
    Pairing {
        wanted: there.wanted || back.wanted,
        max_age: shorter(there.max_age, back.max_age),
    }
}

/// Flows that `from` opens to `to`: its egress and the other's ingress must both let one pass.
fn flows(set: &PolicySet, from: &Workload, to: &Workload) -> Pairing {
    let sending = Side::new(set, from, to, Direction::Egress);
    let receiving = Side::new(set, to, from, Direction::Ingress);
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

/// One end of a flow.
struct Side {
    direction: Direction,
    entries: Vec<Entry>,
    /// Whether what no entry speaks of is denied.
    selected: bool,
}

impl Side {
    fn new(set: &PolicySet, local: &Workload, remote: &Workload, direction: Direction) -> Self {
        let policy = set.of_workload(local);
        Self {
            direction,
            entries: policy.entries(&Remote::Workload(remote.clone())),
            selected: policy.selected(direction),
        }
    }

    /// The ports at which what is allowed may change.
    fn turns(&self) -> impl Iterator<Item = u16> {
        self.entries.iter().flat_map(|entry| {
            std::iter::once(entry.ports.first()).chain(entry.ports.last().checked_add(1))
        })
    }

    /// Whether a flow may pass, and if so how old its proofs may be.
    fn passes(&self, protocol: Protocol, port: u16) -> Option<Option<Duration>> {
        match lookup(&self.entries, self.direction, protocol, port) {
            Some(entry) => (entry.verdict == Verdict::Allow).then_some(entry.max_age),
            None => (!self.selected).then_some(None),
        }
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}
