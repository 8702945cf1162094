//! What a policy set answers: who is asked about, and what the gates enforce.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use spiffe::SpiffeId;

use crate::model::{Authentication, Direction, Encryption, Protocol, RuleRef, Verdict};
use crate::ports::Ports;

/// What the labels begin with that name a workload's ports: `handfast.io/port.http: "8080"` or `"53-UDP"`.
///
/// Named ports stand among the labels, so that they are signed like these, and both ends of a flow know the same.
pub const NAMED_PORT: &str = "handfast.io/port.";

/// A workload as the CA has signed it: its SPIFFE ID and its labels.
///
/// Label keys carry no source prefix (`run`, not `k8s:run`). The namespace of a
/// workload is its label `io.kubernetes.pod.namespace`; its namespace's own
/// labels stand under `io.cilium.k8s.namespace.labels.`, so that selectors
/// written for Cilium match them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// The SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// The signed labels.
    pub labels: BTreeMap<String, String>,
}

/// The other end of a flow, as the gates tell remotes apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Remote {
    /// A workload of the mesh, on any node.
    Workload(Workload),
    /// An unmanaged address whose longest match in [`crate::PolicySet::cidrs`] is this prefix.
    Cidr(IpNet),
    /// The host that the local workload runs on.
    Host,
    /// An unmanaged address that no policy's prefix contains.
    World,
    /// A managed address whose identity is not known.
    Unknown,
}

/// One line for the gates: this protocol and these ports, toward or from one remote.
///
/// Ports are the destination's. Of one answer, the entries of one direction and
/// protocol never overlap; an entry of [`Protocol::Any`] covers all ports and
/// gives way to entries of a named protocol. So a longest-prefix lookup over
/// (protocol, port) finds the one that decides; nothing found is a drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Seen from the local workload.
    pub direction: Direction,
    /// The IP protocol, or any.
    pub protocol: Protocol,
    /// Destination ports; [`Ports::ANY`] for protocols without ports.
    pub ports: Ports,
    /// Allow or deny.
    pub verdict: Verdict,
    /// What the rules say about authentication; `None` leaves it to the agent's default.
    pub auth: Option<Authentication>,
    /// What the rules say about encryption; `None` leaves it to the agent's default.
    pub encryption: Option<Encryption>,
    /// The longest that a pair's proof may serve this entry.
    pub max_age: Option<Duration>,
    /// The rule that decided.
    pub rule: RuleRef,
}

/// The entry that decides a flow, as the gates find it: the protocol's own first, then that of any protocol.
///
/// For a protocol without ports ask for [`Protocol::Any`].
#[must_use]
pub fn lookup(
    entries: &[Entry],
    direction: Direction,
    protocol: Protocol,
    port: u16,
) -> Option<&Entry> {
    let find = |protocol| {
        entries.iter().find(|entry| {
            entry.direction == direction && entry.protocol == protocol && entry.ports.contains(port)
        })
    };
    find(protocol).or_else(|| find(Protocol::Any))
}

/// Whether two workloads have anything to say to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairing {
    /// Some flow between them, in either direction, is allowed on both ends.
    pub wanted: bool,
    /// The shortest `maxAge` among the entries that allow such a flow.
    pub max_age: Option<Duration>,
}
