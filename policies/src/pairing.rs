//! Whether two workloads need each other's proofs: both ends must allow some flow between them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entry::{Entry, Pairing, Remote, Workload, lookup};
use crate::model::{Direction, Protocol, Verdict};
use crate::set::PolicySet;

/// One of each: what no rule names by protocol is all alike.
const PROTOCOLS: [Protocol; 4] = [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

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
    for protocol in PROTOCOLS {
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
    /// `None` if no policy selects this end, so that everything passes.
    entries: Option<Vec<Entry>>,
}

impl Side {
    fn new(set: &PolicySet, local: &Workload, remote: &Workload, direction: Direction) -> Self {
        let entries = set
            .selected(local, direction)
            .then(|| set.entries(local, &Remote::Workload(remote.clone())));
        Self { direction, entries }
    }

    /// The ports at which what is allowed may change.
    fn turns(&self) -> impl Iterator<Item = u16> {
        let entries = self.entries.iter().flatten();
        entries.flat_map(|entry| {
            std::iter::once(entry.ports.first()).chain(entry.ports.last().checked_add(1))
        })
    }

    /// Whether a flow may pass, and if so how old its proofs may be.
    fn passes(&self, protocol: Protocol, port: u16) -> Option<Option<Duration>> {
        let Some(entries) = &self.entries else {
            return Some(None);
        };
        let entry = lookup(entries, self.direction, protocol, port)?;
        (entry.verdict == Verdict::Allow).then_some(entry.max_age)
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}
