//! Everything that two ends may say to each other, cut into spans of ports that are all alike.

use std::collections::BTreeSet;

use crate::entry::{Entry, lookup};
use crate::local::Ruling;
use crate::model::{Direction, Protocol};
use crate::ports::Ports;
use crate::set::PolicySet;
use crate::tools::flow::{Decision, End};

/// What a set of policies says of two ends, ready to be asked about every port.
pub(super) struct Sides {
    sent: Option<Side>,
    received: Option<Side>,
}

struct Side {
    direction: Direction,
    entries: Vec<Entry>,
    selected: bool,
}

impl Sides {
    pub(super) fn new(set: &PolicySet, from: &End, to: &End) -> Self {
        let side = |local: &End, remote: &End, direction| {
            let policy = set.of_workload(local.workload()?);
            let mut entries = policy.entries(&remote.remote(set));
            entries.retain(|entry| entry.direction == direction);
            Some(Side {
                direction,
                entries,
                selected: policy.selected(direction),
            })
        };
        Self {
            sent: side(from, to, Direction::Egress),
            received: side(to, from, Direction::Ingress),
        }
    }

    pub(super) fn decide(&self, protocol: Protocol, port: u16) -> Decision {
        let rule = |side: &Option<Side>| {
            let side = side.as_ref()?;
            let entry = lookup(&side.entries, side.direction, protocol, port);
            Some(match entry {
                Some(entry) => Ruling::Rule(entry.clone()),
                None if side.selected => Ruling::Closed,
                None => Ruling::Open,
            })
        };
        Decision {
            sent: rule(&self.sent),
            received: rule(&self.received),
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.sent
            .iter()
            .chain(&self.received)
            .flat_map(|side| &side.entries)
    }
}

/// The protocols that something says more of than of the rest, after [`Protocol::Any`], which stands for the rest.
pub(super) fn protocols(sides: &[&Sides]) -> Vec<Protocol> {
    let named = sides.iter().flat_map(|sides| sides.entries());
    let named: BTreeSet<_> = named.map(|entry| entry.protocol).collect();
    let named = named
        .into_iter()
        .filter(|protocol| *protocol != Protocol::Any);
    std::iter::once(Protocol::Any).chain(named).collect()
}

/// The spans of a protocol in which every side says one thing.
pub(super) fn spans(sides: &[&Sides], protocol: Protocol) -> Vec<Ports> {
    let last = match protocol {
        Protocol::Any => return vec![Ports::ANY],
        Protocol::Icmp | Protocol::Icmpv6 => u16::from(u8::MAX),
        _ => u16::MAX,
    };
    let mut starts = BTreeSet::from([0_u32]);
    for entry in sides.iter().flat_map(|sides| sides.entries()) {
        if entry.protocol == protocol {
            starts.insert(u32::from(entry.ports.first()));
            starts.insert(u32::from(entry.ports.last()) + 1);
        }
    }
    starts.retain(|start| *start <= u32::from(last));
    let ends = starts.iter().skip(1).map(|next| next - 1);
    let ends = ends.chain([u32::from(last)]);
    let span = |(first, last): (&u32, u32)| {
        Ports::new(u16::try_from(*first).ok()?, u16::try_from(last).ok()?)
    };
    starts.iter().zip(ends).filter_map(span).collect()
}
