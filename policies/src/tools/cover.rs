//! Whether one rule says all that another says: told from the texts alone, so that it holds for every workload.
//!
//! The answer errs on one side: `true` is certain, `false` may mean that it could not be seen.

use crate::document::{PortMatch, PortRange, Rule};
use crate::model::Protocol;
use crate::selector::{Block, Condition, Peer, Peers, Requirement, Selector};

/// Whether everything that `inner` selects, `outer` selects too.
pub(super) fn selector(outer: &Selector, inner: &Selector) -> bool {
    let implied = |wanted: &Requirement| {
        inner
            .requirements
            .iter()
            .any(|known| implies(known, wanted))
    };
    outer.requirements.iter().all(implied)
}

/// Whether no label can meet the first and fail the second.
fn implies(known: &Requirement, wanted: &Requirement) -> bool {
    if known.key != wanted.key {
        return false;
    }
    match (&known.is, &wanted.is) {
        (Condition::In(few), Condition::In(many)) => few.is_subset(many),
        (Condition::NotIn(many), Condition::NotIn(few)) => few.is_subset(many),
        (Condition::In(_) | Condition::Exists, Condition::Exists)
        | (Condition::Absent, Condition::Absent | Condition::NotIn(_)) => true,
        (Condition::In(values), Condition::NotIn(others)) => values.is_disjoint(others),
        _ => false,
    }
}

fn peers(outer: &Peers, inner: &Peers) -> bool {
    match (outer, inner) {
        (Peers::Any, _) => true,
        (Peers::Of(_), Peers::Any) => false,
        (Peers::Of(outer), Peers::Of(inner)) => inner
            .iter()
            .all(|wanted| outer.iter().any(|known| peer(known, wanted))),
    }
}

fn peer(outer: &Peer, inner: &Peer) -> bool {
    match (outer, inner) {
        (Peer::Workloads(outer), Peer::Workloads(inner)) => selector(outer, inner),
        (Peer::Host, Peer::Host) | (Peer::World, Peer::World | Peer::Block(_)) => true,
        (Peer::Block(outer), Peer::Block(inner)) => block(outer, inner),
        _ => false,
    }
}

fn block(outer: &Block, inner: &Block) -> bool {
    let left_out = |hole: &ipnet::IpNet| {
        let apart = !hole.contains(&inner.net) && !inner.net.contains(hole);
        apart || inner.except.iter().any(|except| except.contains(hole))
    };
    outer.net.contains(&inner.net) && outer.except.iter().all(left_out)
}

fn ports(outer: &[PortMatch], inner: &[PortMatch]) -> bool {
    inner
        .iter()
        .all(|wanted| outer.iter().any(|known| port(known, wanted)))
}

fn port(outer: &PortMatch, inner: &PortMatch) -> bool {
    match (outer, inner) {
        (PortMatch::Range(outer), PortMatch::Range(inner)) => range(outer, inner),
        (PortMatch::Range(outer), PortMatch::Named(_)) => outer.protocol == Protocol::Any,
        (PortMatch::Named(outer), PortMatch::Named(inner)) => outer == inner,
        (PortMatch::Named(_), PortMatch::Range(_)) => false,
    }
}

fn range(outer: &PortRange, inner: &PortRange) -> bool {
    outer.protocol == Protocol::Any
        || (outer.protocol == inner.protocol
            && outer.ports.first() <= inner.ports.first()
            && inner.ports.last() <= outer.ports.last())
}

/// Whether `outer` speaks of every flow of which `inner` speaks, for the same subjects.
pub(super) fn rule(outer: &Rule, inner: &Rule) -> bool {
    let ids = outer.ids.is_none() || outer.ids == inner.ids;
    ids && outer.direction == inner.direction
        && peers(&outer.peers, &inner.peers)
        && ports(&outer.ports, &inner.ports)
}

/// Whether `inner` asks nothing of a flow that `outer` does not ask as well.
pub(super) fn asks_nothing_new(outer: &Rule, inner: &Rule) -> bool {
    let silent = inner.auth.is_none() && inner.encryption.is_none() && inner.max_age.is_none();
    let same = (inner.auth, inner.encryption, inner.max_age)
        == (outer.auth, outer.encryption, outer.max_age);
    silent || same
}
