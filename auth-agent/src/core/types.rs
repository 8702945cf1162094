//! The small values that the core reckons with: numbers that cannot be mixed up, identities, and time as input.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of an attached workload interface; never reused in a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId(pub u32);

/// Security identity: this node's number for one SPIFFE ID with one set of labels; never reused in a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdentityNumber(pub u32);

impl IdentityNumber {
    /// A managed address whose identity is not known.
    pub const UNKNOWN: Self = Self(3);
    /// The first number that stands for a SPIFFE ID.
    pub const FIRST: Self = Self(256);
    /// The first number that no longer does: CIDR identities begin here.
    pub const LIMIT: Self = Self(1 << 24);
}

/// This node's number for a peer, which is a full SPIFFE ID; never reused in a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerNumber(pub u32);

impl PeerNumber {
    /// This node itself: both ends of a pair are here.
    pub const LOCAL: Self = Self(0);
}

/// The shell's number for one connection; never reused while the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl fmt::Display for PeerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One SPIFFE ID with one set of labels: what policy is decided on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The full SPIFFE ID.
    pub spiffe_id: String,
    /// What the CA signed beside it.
    pub labels: BTreeMap<String, String>,
}

/// From where a held packet was taken, as its endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// Toward the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// What packets are held by: one key drains in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldKey {
    /// The local endpoint.
    pub endpoint: EndpointId,
    /// As the endpoint sees it.
    pub direction: Direction,
    /// The other end, on another node or on this one.
    pub remote: IpAddr,
}

/// The time of an input. The core has no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// CLOCK_BOOTTIME: everything in the maps is in it.
    pub boot: Duration,
    /// Unix seconds, never behind the CA's: everything in certificates is in it.
    pub wall: u64,
}

impl Now {
    /// When a moment of wall time will be, on the boot clock. What is past becomes now.
    pub(super) fn boot_at(self, wall: u64) -> Duration {
        self.boot
            .saturating_add(Duration::from_secs(wall.saturating_sub(self.wall)))
    }
}

/// What policy says about two identities, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairing {
    /// Some flow between the two is allowed, so that proving them pays.
    pub wanted: bool,
    /// The shortest maximum age of a proof among the rules that apply.
    pub max_age: Option<Duration>,
}

/// Policy, as far as the core needs it.
pub trait PolicyView: Send + Sync {
    /// Whether the two may meet; the same whichever is named first.
    fn pairing(&self, one: &Arc<Identity>, other: &Arc<Identity>) -> Pairing;
}
