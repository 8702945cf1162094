//! What the programs tell the agent as it happens.

use crate::{Addr, maps::no_holes};

/// What happened.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The first packet of a pair was held.
    Held = 1,
    /// A packet was dropped.
    Dropped = 2,
    /// The first packet of a flow was let through.
    Opened = 3,
    /// A packet was let through that lacked a proof, by a rule in audit mode.
    Audited = 4,
}

impl EventKind {
    /// From its number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Held,
            2 => Self::Dropped,
            3 => Self::Opened,
            4 => Self::Audited,
            _ => return None,
        })
    }
}

/// A record of the `events` ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_BOOTTIME, nanoseconds.
    pub time: u64,
    /// Why: [`Reason`](crate::Reason).
    pub reason: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// [`Hook`](crate::Hook).
    pub hook: u8,
    /// [`INGRESS`](crate::INGRESS) or [`EGRESS`](crate::EGRESS).
    pub direction: u8,
    /// IP protocol.
    pub proto: u8,
    /// The endpoint's port, big endian.
    pub local_port: u16,
    /// The other side's port, big endian.
    pub remote_port: u16,
    /// ICMP type, 0 otherwise.
    pub icmp_type: u8,
    /// Unused, 0.
    pub reserved: u8,
    /// Endpoint, or 0.
    pub endpoint: u32,
    /// Identity of the endpoint, or 0.
    pub local_identity: u32,
    /// Identity of the other side, or 0.
    pub remote_identity: u32,
    /// Peer, or 0.
    pub peer: u32,
    /// The rule that decided, or 0.
    pub rule: u32,
    /// Length of the packet.
    pub bytes: u32,
    /// Index of the interface.
    pub ifindex: u32,
    /// The endpoint's address.
    pub local: Addr,
    /// The other side's address.
    pub remote: Addr,
}

no_holes! {
    Event = 8 2 1 1 1 1 2 2 1 1 4 4 4 4 4 4 4 16 16 => 80;
}
