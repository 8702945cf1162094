//! One flow from end to end: what both ends' policies make of it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::entry::{Remote, Workload};
use crate::local::Ruling;
use crate::model::{Authentication, Direction, Encryption, Protocol};
use crate::set::PolicySet;

/// Who is at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A workload of the mesh.
    Workload {
        /// What it is called.
        name: String,
        /// Who it is.
        workload: Workload,
    },
    /// An address outside the mesh.
    Outside(IpAddr),
    /// Some address outside the mesh that no policy names.
    World,
    /// The node of the other end.
    Host,
}

impl End {
    /// What the other end's policy knows it as.
    #[must_use]
    pub fn remote(&self, set: &PolicySet) -> Remote {
        match self {
            Self::Workload { workload, .. } => Remote::Workload(workload.clone()),
            Self::Outside(address) => set.outside(*address),
            Self::World => Remote::World,
            Self::Host => Remote::Host,
        }
    }

    /// The workload, if it is one.
    #[must_use]
    pub fn workload(&self) -> Option<&Workload> {
        match self {
            Self::Workload { workload, .. } => Some(workload),
            _ => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { name, .. } => f.write_str(name),
            Self::Outside(address) => write!(f, "{address}"),
            Self::World => f.write_str("world"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub from: End,
    /// Toward whom.
    pub to: End,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination's port; of ICMP, the type of the message that opens it.
    pub port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)?;
        match self.protocol {
            Protocol::Any => write!(f, " any protocol"),
            protocol => write!(f, " {protocol}/{}", self.port),
        }
    }
}

/// What both ends make of a flow. An end without a policy of its own (the world, a node) rules nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The egress policy of who opens it.
    pub sent: Option<Ruling>,
    /// The ingress policy of who is called.
    pub received: Option<Ruling>,
}

impl Decision {
    /// Whether it passes, as far as policy goes.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.rulings().all(Ruling::is_allowed)
    }

    /// What is asked about authentication: the stronger of both ends. `None` leaves it to the agent's default.
    #[must_use]
    pub fn authentication(&self) -> Option<Authentication> {
        self.rulings().filter_map(|r| r.entry()?.auth).max()
    }

    /// What is asked about encryption: the stronger of both ends.
    #[must_use]
    pub fn encryption(&self) -> Option<Encryption> {
        self.rulings().filter_map(|r| r.entry()?.encryption).max()
    }

    /// The longest that a proof serves.
    #[must_use]
    pub fn max_age(&self) -> Option<Duration> {
        self.rulings().filter_map(|r| r.entry()?.max_age).min()
    }

    /// The verdict in a word or two.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match (self.is_allowed(), self.authentication()) {
            (false, _) | (true, Some(Authentication::TestAlwaysFail)) => Outcome::Denied,
            (true, Some(Authentication::Required)) => Outcome::Proven,
            (true, Some(Authentication::Audit)) => Outcome::Audited,
            (true, Some(Authentication::Disabled) | None) => Outcome::Allowed,
        }
    }

    fn rulings(&self) -> impl Iterator<Item = &Ruling> {
        self.sent.iter().chain(&self.received)
    }
}

/// What becomes of a flow, ordered by how freely it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is dropped.
    Denied,
    /// It passes with both ends proven, and not otherwise.
    Proven,
    /// It passes, and what would be dropped without a proof is counted.
    Audited,
    /// It passes.
    Allowed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Proven => "allowed if proven",
            Self::Audited => "allowed, proof audited",
            Self::Allowed => "allowed",
        })
    }
}

/// Asks both ends.
#[must_use]
pub fn decide(set: &PolicySet, flow: &Flow) -> Decision {
    let ask = |local: &End, remote: &End, direction| {
        let policy = set.of_workload(local.workload()?);
        Some(policy.ruling(&remote.remote(set), direction, flow.protocol, flow.port))
    };
    Decision {
        sent: ask(&flow.from, &flow.to, Direction::Egress),
        received: ask(&flow.to, &flow.from, Direction::Ingress),
    }
}
