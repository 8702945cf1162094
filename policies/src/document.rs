//! A policy document as it was meant, whatever dialect it was written in.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::entry::{NAMED_PORT, Remote, Workload};
use crate::model::{Authentication, Direction, Encryption, Kind, Protocol, RuleRef, Verdict};
use crate::ports::Ports;
use crate::selector::{IdPattern, Peers, Selector};

/// One document.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) specs: Vec<Spec>,
}

/// Some workloads, and what they may receive and send.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) subject: Selector,
    pub(crate) rules: Vec<Rule>,
    pub(crate) denies: Denies,
    /// Where the subject is written.
    pub(crate) field: String,
    pub(crate) line: usize,
}

/// The directions in which a spec puts its subjects under default deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Denies {
    pub(crate) ingress: bool,
    pub(crate) egress: bool,
}

impl Denies {
    pub(crate) fn by_default(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// One rule: a conjunction of who and which ports.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) direction: Direction,
    pub(crate) verdict: Verdict,
    pub(crate) peers: Peers,
    /// If given, the remote is a workload whose SPIFFE ID matches one of these too.
    pub(crate) ids: Option<Vec<IdPattern>>,
    pub(crate) ports: Vec<PortMatch>,
    pub(crate) auth: Option<Authentication>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) field: String,
    pub(crate) line: usize,
    /// Whether nobody wrote it: the language has it by itself.
    pub(crate) is_implied: bool,
    /// Set when the document enters a set.
    pub(crate) number: RuleRef,
}

impl Rule {
    /// Whether it says nothing about the far end.
    pub(crate) fn is_for_anybody(&self) -> bool {
        self.ids.is_none() && matches!(self.peers, Peers::Any)
    }

    /// The ports that it speaks of between the two: named ones are those of whoever is called.
    pub(crate) fn ranges<'a>(
        &'a self,
        local: &'a Workload,
        remote: &'a Remote,
    ) -> impl Iterator<Item = PortRange> + 'a {
        let called = match (self.direction, remote) {
            (Direction::Ingress, _) => Some(local),
            (Direction::Egress, Remote::Workload(workload)) => Some(workload),
            (Direction::Egress, _) => None,
        };
        let called = called.map(|workload| &workload.labels);
        self.ports.iter().filter_map(move |port| match port {
            PortMatch::Range(range) => Some(*range),
            PortMatch::Named(named) => named.number(called?),
        })
    }

    /// Whether it speaks of flows between the two.
    pub(crate) fn matches(&self, local: &Workload, remote: &Remote) -> bool {
        match remote {
            Remote::Workload(workload) => self.is_between(local, workload),
            _ => self.ids.is_none() && self.peers.matches(local, remote),
        }
    }

    /// The same for two workloads.
    pub(crate) fn is_between(&self, local: &Workload, other: &Workload) -> bool {
        let ids = self.ids.as_deref();
        ids.is_none_or(|ids| ids.iter().any(|id| id.matches(&other.spiffe_id)))
            && self.peers.select(local, other)
    }
}

/// What a rule says of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortMatch {
    Range(PortRange),
    Named(NamedPort),
}

/// A port by the name that the workload gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    /// The protocol that it must have; any, if none is said.
    pub(crate) protocol: Option<Protocol>,
}

impl NamedPort {
    /// The port's number, if these labels give it one.
    fn number(&self, labels: &BTreeMap<String, String>) -> Option<PortRange> {
        let value = labels.get(&format!("{NAMED_PORT}{}", self.name))?;
        let (number, protocol) = value.split_once('-').unwrap_or((value, "TCP"));
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return None,
        };
        if self.protocol.is_some_and(|wanted| wanted != protocol) {
            return None;
        }
        let number = number.parse().ok().filter(|number| *number != 0)?;
        let ports = Ports::new(number, number)?;
        Some(PortRange { protocol, ports })
    }
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRange {
    pub(crate) protocol: Protocol,
    pub(crate) ports: Ports,
}

impl PortRange {
    /// Whether it speaks of this protocol and port.
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == Protocol::Any || (self.protocol == protocol && self.ports.contains(port))
    }

    /// Everything, protocols without ports included.
    pub(crate) const ALL: Self = Self {
        protocol: Protocol::Any,
        ports: Ports::ANY,
    };
}
