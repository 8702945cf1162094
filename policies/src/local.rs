//! What a set of policies says of one workload.

use crate::compile;
use crate::document::{PortRange, Rule, Spec};
use crate::entry::{Entry, Remote, Workload, lookup};
use crate::model::{Direction, Protocol, Verdict};

/// The rules that are about one workload, to be asked about many remotes.
#[derive(Debug)]
pub struct LocalPolicy<'a> {
    local: &'a Workload,
    rules: Vec<&'a Rule>,
    ingress: bool,
    egress: bool,
}

/// What becomes of a flow at one of its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// No policy puts this end under default deny, and no rule speaks of the flow: it passes.
    Open,
    /// A rule decides, by the verdict of the entry.
    Rule(Entry),
    /// This end is under default deny, and no rule allows the flow: it is dropped.
    Closed,
}

impl Ruling {
    /// Whether the flow passes, as far as policy goes.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Open => true,
            Self::Rule(entry) => entry.verdict == Verdict::Allow,
            Self::Closed => false,
        }
    }

    /// The entry that decides, if one does.
    #[must_use]
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Rule(entry) => Some(entry),
            Self::Open | Self::Closed => None,
        }
    }
}

impl<'a> LocalPolicy<'a> {
    pub(crate) fn new(local: &'a Workload, specs: impl Iterator<Item = &'a Spec>) -> Self {
        let mut policy = Self {
            local,
            rules: Vec::new(),
            ingress: false,
            egress: false,
        };
        for spec in specs {
            policy.rules.extend(&spec.rules);
            policy.ingress |= spec.denies.ingress;
            policy.egress |= spec.denies.egress;
        }
        policy
    }

    /// Who it is about.
    pub(crate) fn workload(&self) -> &'a Workload {
        self.local
    }

    /// Whether what no rule allows in this direction is denied.
    #[must_use]
    pub fn selected(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// What the gates enforce toward and from a remote.
    #[must_use]
    pub fn entries(&self, remote: &Remote) -> Vec<Entry> {
        let mut ingress = Vec::new();
        let mut egress = Vec::new();
        for rule in self.rules.iter().copied() {
            if !rule.matches(self.local, remote) {
                continue;
            }
            let ranges = rule.ranges(self.local, remote).map(|range| (rule, range));
            let of: &mut Vec<(&Rule, PortRange)> = match rule.direction {
                Direction::Ingress => &mut ingress,
                Direction::Egress => &mut egress,
            };
            of.extend(ranges);
        }
        let mut entries = compile::entries(Direction::Ingress, ingress);
        entries.append(&mut compile::entries(Direction::Egress, egress));
        entries
    }

    /// What becomes of one flow at this end; of ICMP, `port` is the type of the message that opens it.
    #[must_use]
    pub fn ruling(
        &self,
        remote: &Remote,
        direction: Direction,
        protocol: Protocol,
        port: u16,
    ) -> Ruling {
        let entries = self.entries(remote);
        match lookup(&entries, direction, protocol, port) {
            Some(entry) => Ruling::Rule(entry.clone()),
            None if self.selected(direction) => Ruling::Closed,
            None => Ruling::Open,
        }
    }
}
