//! A policy document as it was meant, whatever dialect it was written in.

use std::time::Duration;

use crate::entry::{Remote, Workload};
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
}

impl Spec {
    /// Whether it puts its subjects under default deny in this direction: it has a rule there, whatever it allows.
    pub(crate) fn governs(&self, direction: Direction) -> bool {
        self.rules.iter().any(|rule| rule.direction == direction)
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
    pub(crate) ports: Vec<PortRange>,
    pub(crate) auth: Option<Authentication>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) field: String,
    pub(crate) line: usize,
    /// Set when the document enters a set.
    pub(crate) number: RuleRef,
}

impl Rule {
    /// Whether it says nothing about the far end.
    pub(crate) fn is_for_anybody(&self) -> bool {
        self.ids.is_none() && matches!(self.peers, Peers::Any)
    }

    /// Whether it speaks of flows between the two.
    pub(crate) fn matches(&self, local: &Workload, remote: &Remote) -> bool {
        let known = match (&self.ids, remote) {
            (None, _) => true,
            (Some(ids), Remote::Workload(workload)) => {
                ids.iter().any(|id| id.matches(&workload.spiffe_id))
            }
            (Some(_), _) => false,
        };
        known && self.peers.matches(local, remote)
    }
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRange {
    pub(crate) protocol: Protocol,
    pub(crate) ports: Ports,
}

impl PortRange {
    /// Everything, protocols without ports included.
    pub(crate) const ALL: Self = Self {
        protocol: Protocol::Any,
        ports: Ports::ANY,
    };
}
