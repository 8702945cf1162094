//! What goes into the maps and comes out of them, without their shapes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use handfast_layout as layout;
use layout::Addr;
use serde::{Deserialize, Serialize};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            )]
            #[serde(transparent)]
            pub struct $name(pub u32);

            impl From<u32> for $name {
                fn from(number: u32) -> Self {
                    Self(number)
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

numbers! {
    /// An attached workload interface; never reused in a boot; 0 is none.
    EndpointId;
    /// A security identity, local to this node.
    IdentityNumber;
    /// Another node, local to this node; 0 is this node.
    PeerNumber;
    /// One life of a session, per peer; from 1.
    Epoch;
}

impl IdentityNumber {
    /// In a policy entry: every identity.
    pub const ANY: Self = Self(layout::IDENTITY_ANY);
    /// The node itself.
    pub const HOST: Self = Self(layout::IDENTITY_HOST);
    /// Outside the mesh, and in no CIDR that a rule names.
    pub const WORLD: Self = Self(layout::IDENTITY_WORLD);
    /// Managed, but nobody knows who.
    pub const UNKNOWN: Self = Self(layout::IDENTITY_UNKNOWN);
    /// The first of a workload.
    pub const FIRST: Self = Self(layout::IDENTITY_FIRST);
    /// The first of a CIDR.
    pub const FIRST_CIDR: Self = Self(layout::IDENTITY_FIRST_CIDR);
}

impl PeerNumber {
    /// This node.
    pub const LOCAL: Self = Self(layout::PEER_SELF);
}

/// As the endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Toward the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ingress => layout::INGRESS,
            Self::Egress => layout::EGRESS,
        }
    }

    pub(crate) fn from_number(number: u8) -> Self {
        if number == layout::EGRESS {
            Self::Egress
        } else {
            Self::Ingress
        }
    }
}

/// Limits and settings of the datapath: `config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Index of the tunnel device, once it is there.
    pub tunnel: Option<u32>,
    /// Index of the second tunnel device, while keys rotate.
    pub tunnel2: Option<u32>,
    /// Index of the hold device. Without one, what is undecided is dropped.
    pub hold: Option<u32>,
    /// Our four mark bits begin here (0 to 28).
    pub mark_shift: u32,
    /// Drop what the node itself sends to workloads.
    pub host_denied: bool,
    /// Most packets and bytes held for one pair.
    pub hold_pair: (u32, u32),
    /// Most packets and bytes held in all; an endpoint and a peer may hold an eighth.
    pub hold_total: (u32, u32),
    /// Most live flows of one endpoint; with those that are over and not forgotten yet, twice as many.
    pub endpoint_connections: u32,
    /// Most events of one endpoint in a second.
    pub endpoint_events: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tunnel: None,
            tunnel2: None,
            hold: None,
            mark_shift: 2,
            host_denied: false,
            hold_pair: (64, 256 << 10),
            hold_total: (8192, 16 << 20),
            endpoint_connections: 32_768,
            endpoint_events: 1000,
        }
    }
}

/// An attached workload interface: `endpoints`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Who it is.
    pub identity: IdentityNumber,
    /// The workload's own link address.
    pub mac: [u8; 6],
    /// The link address of the host's side.
    pub host_mac: [u8; 6],
}

/// A control group, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupId {
    /// Its number: the inode of its folder.
    pub id: u64,
    /// How deep it lies below the root, which is 0.
    pub level: u32,
}

/// A local address of sockets of the node itself: `hosts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whose sockets may use it: those made in this group, or below it.
    pub cgroup: CgroupId,
    /// Whose it is.
    pub endpoint: EndpointId,
}

/// A local address: `locals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Whose.
    pub endpoint: EndpointId,
    /// Who that is.
    pub identity: IdentityNumber,
}

/// An announced remote address: `remotes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Who it is.
    pub identity: IdentityNumber,
    /// Where it is.
    pub peer: PeerNumber,
    /// In which epoch that was announced.
    pub epoch: Epoch,
    /// As announced.
    pub generation: u64,
    /// A refusal instead (the peer does not say who this is), until this boot time.
    pub refused_until: Option<Duration>,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Being set up: what goes out is held, and what comes in.
    Pending,
    /// The tunnel stands on both sides.
    Ready,
    /// Ended: what goes out is held, what comes in is dropped.
    Cut,
}

/// A session: `sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The oldest epoch that counts.
    pub oldest: Epoch,
    /// The newest.
    pub current: Epoch,
    /// When it ends, boot time.
    pub expires: Duration,
    /// How far it is.
    pub state: SessionState,
}

/// How far an announcement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncedState {
    /// Sent: what would pass is held.
    Sent,
    /// Confirmed by the peer.
    Confirmed,
    /// Being withdrawn: nothing passes.
    Withdrawing,
}

/// A local address toward one peer: `announced`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The one endpoint that may use the address toward the peer.
    pub endpoint: EndpointId,
    /// In which epoch.
    pub epoch: Epoch,
    /// How far.
    pub state: AnnouncedState,
    /// As announced.
    pub generation: u64,
}

/// What is known of an identity: `identities`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// When its proof ends, boot time.
    pub valid_until: Duration,
    /// Cut.
    pub revoked: bool,
}

/// Two identities proven to each other: `auth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairKey {
    /// The identity here.
    pub local: IdentityNumber,
    /// The identity there.
    pub remote: IdentityNumber,
    /// Where that is. With [`PeerNumber::LOCAL`] both orders are the same pair.
    pub peer: PeerNumber,
}

/// Until when a pair holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Boot time.
    pub expires: Duration,
    /// Of the session that carried the proofs; not looked at for a pair on one node.
    pub epoch: Epoch,
}

/// Let through or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Let through, on the conditions.
    Allow,
    /// Drop; wins over every allow.
    Deny,
}

/// What an allowing rule wants proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Auth {
    /// Nothing.
    Disabled,
    /// The pair.
    Required,
    /// Nothing, but a missing pair is reported.
    Audit,
    /// Never satisfied.
    TestAlwaysFail,
}

/// Which packets a policy entry is about, beside the other side's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol.
    Any,
    /// Every port of an IP protocol.
    Protocol(u8),
    /// The destination ports of an IP protocol whose first `bits` (1 to 16) are those of `port`.
    Prefix {
        /// IP protocol.
        protocol: u8,
        /// The port.
        port: u16,
        /// How many of its bits count: 16 for just this port.
        bits: u8,
    },
}

/// What a policy entry is about. The kernel takes the longest match, so a deny that is wider than
/// an allow of the same identity has to be written at the narrower one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// As the endpoint sees it.
    pub direction: Direction,
    /// The other side, or [`IdentityNumber::ANY`].
    pub identity: IdentityNumber,
    /// Protocol and port.
    pub ports: Ports,
}

/// What a policy entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyValue {
    /// Let through or not.
    pub verdict: Verdict,
    /// What has to be proven.
    pub auth: Auth,
    /// Only through a tunnel.
    pub encryption: bool,
    /// Number of the rule, for people.
    pub rule: u32,
}

/// What is held together: one key drains in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldKey {
    /// The endpoint here.
    pub endpoint: EndpointId,
    /// As it sees it.
    pub direction: Direction,
    /// The other side.
    pub remote: IpAddr,
}

/// How much is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldCount {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A known flow: `connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The endpoint's address and port.
    pub local: (IpAddr, u16),
    /// The other side's.
    pub remote: (IpAddr, u16),
    /// IP protocol.
    pub protocol: u8,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Identity of the endpoint.
    pub local_identity: IdentityNumber,
    /// Identity of the other side.
    pub remote_identity: IdentityNumber,
    /// Where the other side is.
    pub peer: PeerNumber,
    /// Who opened it: ingress the other side, egress the endpoint.
    pub opened: Direction,
    /// The rule that let it through.
    pub rule: u32,
    /// Boot time of its last packet, to a second.
    pub last_seen: Duration,
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Flows that are left.
    pub left: usize,
    /// Flows that were forgotten.
    pub removed: usize,
}

/// An address as the maps have it.
pub(crate) fn to_addr(address: IpAddr) -> Addr {
    match address.to_canonical() {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    }
}

/// An address as people have it.
pub(crate) fn to_ip(addr: Addr) -> IpAddr {
    match addr.bytes() {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        bytes => IpAddr::V6(Ipv6Addr::from(bytes)),
    }
}
