//! Connections: what lets an established packet skip policy, and when one is forgotten.

use crate::{Addr, maps::no_holes, packet};

/// Key of `connections`: a flow as its local endpoint sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionKey {
    /// The endpoint's address (the destination's, if both ends are on this node).
    pub local: Addr,
    /// The other side's address.
    pub remote: Addr,
    /// The endpoint's port, big endian; the identifier for an ICMP echo.
    pub local_port: u16,
    /// The other side's port, big endian.
    pub remote_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// For ICMP the type that a flow of this kind begins with: a request's, for its reply too.
    pub icmp: u8,
    /// Unused, 0.
    pub reserved: [u8; 2],
}

/// A flow that was let through: `connections`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When a packet of it last passed; kept to about a second.
    pub last_seen: u64,
    /// The state of the tables (`revision`) at which its two ends were last looked up: while it stands,
    /// they need not be again.
    pub revision: u64,
    /// When the first of its identities' proofs ends, as it was then.
    pub valid_until: u64,
    /// The rule that let it through.
    pub rule: u32,
    /// Identity of the endpoint.
    pub local: u32,
    /// Identity of the other side.
    pub remote: u32,
    /// Where the other side is; [`PEER_SELF`](crate::PEER_SELF) on this node or outside the mesh.
    pub peer: u32,
    /// The remote address's epoch when it was last judged.
    pub epoch: u32,
    /// The endpoint.
    pub endpoint: u32,
    /// The policy that it was judged by.
    pub policy_revision: u32,
    /// [`AUTH_DISABLED`](crate::AUTH_DISABLED) and so on.
    pub auth: u8,
    /// Who opened it: [`INGRESS`](crate::INGRESS) the other side, [`EGRESS`](crate::EGRESS) ours.
    pub direction: u8,
    /// [`REPLIED`], [`CLOSING`].
    pub flags: u8,
    /// For ICMP the type of the packet that opened it: policy is asked about that one.
    pub icmp_type: u8,
}

/// In [`Connection::flags`]: packets have passed both ways.
pub const REPLIED: u8 = 1;
/// In [`Connection::flags`]: a FIN of the side that opened it has passed.
pub const ENDED_HERE: u8 = 2;
/// In [`Connection::flags`]: a FIN of the other side has passed.
pub const ENDED_THERE: u8 = 4;
/// Either, or both: a RST ends both sides. With both the flow is over, and counts no more among its endpoint's live ones.
pub const CLOSING: u8 = ENDED_HERE | ENDED_THERE;

/// Whether both sides have ended the flow.
#[inline(always)]
pub const fn is_over(flags: u8) -> bool {
    flags & CLOSING == CLOSING
}

/// How long a connection is remembered after its last packet, in seconds. (Linux forgets an
/// established TCP connection after five days; peers send keepalives every two hours, RFC 9293
/// 3.8.4.)
pub const fn lifetime(proto: u8, flags: u8) -> u64 {
    match proto {
        // For what is sent once more because an acknowledgement was lost.
        packet::TCP if is_over(flags) => 5,
        packet::TCP if flags & CLOSING != 0 => 120,
        packet::TCP if flags & REPLIED != 0 => 8000,
        packet::TCP => 60,
        packet::UDP if flags & REPLIED != 0 => 180,
        packet::ICMP | packet::ICMPV6 => 30,
        _ if flags & REPLIED != 0 => 600,
        _ => 60,
    }
}

/// Key of `fragments`: the datagram that a fragment belongs to (RFC 791 3.2, RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source as written.
    pub src: Addr,
    /// Destination as written.
    pub dst: Addr,
    /// Identification.
    pub id: u32,
    /// IP protocol.
    pub proto: u32,
}

/// The ports of the first fragment: `fragments`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Source, big endian.
    pub src: u16,
    /// Destination, big endian.
    pub dst: u16,
    /// ICMP type.
    pub icmp_type: u8,
    /// Unused, 0.
    pub reserved: [u8; 3],
}

no_holes! {
    ConnectionKey = 16 16 2 2 1 1 2 => 40;
    Connection = 8 8 8 4 4 4 4 4 4 4 1 1 1 1 => 56;
    FragmentKey = 16 16 4 4 => 40;
    Ports = 2 2 1 3 => 8;
}
