//! Keys and values of the pinned maps, and the numbers in them.
//!
//! | map | key → value | written by | read by | first kernel |
//! |---|---|---|---|---|
//! | `layout` | array\[1\] → [`LAYOUT_VERSION`](crate::LAYOUT_VERSION) | agent, once | agent | 3.19 |
//! | `config` | array\[1\] → [`Config`] | agent | every program | 3.19 |
//! | `revision` | array\[1\] → u64: odd while `locals`, `remotes`, `prefixes`, `sessions`, `announced` or `identities` change, another even one afterwards | agent | gates | 3.19 |
//! | `endpoints` | endpoint → [`Endpoint`] | agent | hold ingress | 3.19 |
//! | `interfaces` | interface index → endpoint | agent, before it attaches | endpoint gates | 3.19 |
//! | `usage` | endpoint → [`Usage`] | programs; agent corrects and removes | programs | 3.19 |
//! | `locals` | [`Addr`] → [`Local`] | agent | gates | 3.19 |
//! | `hosts` | [`Addr`] → [`Host`]: the local addresses of host endpoints | agent | host gates, to-tunnel, to-endpoint | 3.19 |
//! | `remotes` | [`Addr`] → [`Remote`] | agent | tunnel gates | 3.19 |
//! | `prefixes` | LPM [`Addr`] → [`Prefix`] | agent | gates, wire | 4.11 |
//! | `sessions` | peer → [`Session`] | agent | tunnel gates | 3.19 |
//! | `announced` | [`AnnouncedKey`] → [`Announced`] | agent | tunnel gates | 3.19 |
//! | `identities` | identity → [`Identity`] | agent | gates | 3.19 |
//! | `policy` | LPM [`PolicyKey`] → [`PolicyValue`] | agent | gates | 4.11 |
//! | `cidrs` | LPM [`Addr`] → identity number | agent | endpoint gates | 4.11 |
//! | `auth` | [`AuthKey`] → [`Auth`] | agent | gates | 3.19 |
//! | `connections` | [`ConnectionKey`](crate::ConnectionKey) → [`Connection`](crate::Connection) | gates; agent removes stale ones | gates | 3.19 |
//! | `taken` | array\[1\] → u64: places of `connections` that are taken, as an `i64` | gates; agent corrects | gates | 3.19 |
//! | `fragments` | LRU [`FragmentKey`](crate::FragmentKey) → [`Ports`](crate::Ports) | gates | gates | 4.10 |
//! | `holds` | [`HoldKey`](crate::HoldKey) → [`HoldValue`](crate::HoldValue) | gates, hold ingress; agent resets | gates | 3.19 |
//! | `hold_total` | array\[2\] → [`HoldValue`](crate::HoldValue): \[0\] what is held now, \[1\].packets the last ticket | gates, hold ingress; agent resets | gates | 3.19 |
//! | `parked` | ticket → [`Parked`](crate::Parked) | gates, hold ingress; agent resets | hold programs | 3.19 |
//! | `events` | ring of [`Event`](crate::Event) | programs | agent | 5.8 |
//! | `counters` | per-CPU array by [`Reason`](crate::Reason) → u64 | programs | agent | 4.6 |
//!
//! Times are nanoseconds of CLOCK_BOOTTIME (`bpf_ktime_get_boot_ns`, 5.8). Ports are big endian.

use crate::Addr;

/// Identity number in a policy key that matches every identity.
pub const IDENTITY_ANY: u32 = 0;
/// The node itself.
pub const IDENTITY_HOST: u32 = 1;
/// Everything that is neither managed nor named by a CIDR rule.
pub const IDENTITY_WORLD: u32 = 2;
/// A managed address whose identity is not known.
pub const IDENTITY_UNKNOWN: u32 = 3;
/// The first number of a workload identity.
pub const IDENTITY_FIRST: u32 = 256;
/// The first number of an identity that stands for a CIDR.
pub const IDENTITY_FIRST_CIDR: u32 = 1 << 24;

/// This node itself, where a peer is expected.
pub const PEER_SELF: u32 = 0;

/// Settings of the datapath: `config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interface index of the tunnel device.
    pub tunnel: u32,
    /// The second tunnel device (key rotation), or 0.
    pub tunnel2: u32,
    /// The hold device, or 0: then what is undecided is dropped.
    pub hold: u32,
    /// Where our four mark bits begin.
    pub mark_shift: u32,
    /// [`HOST_DENIED`], [`SELF_JOINING`].
    pub flags: u32,
    /// Rises with every change of policy; connections of an older one are judged anew.
    pub policy_revision: u32,
    /// Most packets held for one pair.
    pub hold_pair_packets: u32,
    /// Most bytes held for one pair.
    pub hold_pair_bytes: u32,
    /// Most packets held in all.
    pub hold_total_packets: u32,
    /// Most bytes held in all; an endpoint may hold a sixteenth, a peer an eighth.
    pub hold_total_bytes: u32,
    /// Most live connections of one endpoint; with those that are over, twice as many.
    pub endpoint_connections: u32,
    /// Most events of one endpoint in a second.
    pub endpoint_events: u32,
}

/// Whether a state of the tables (`revision`) is one that a flow may go by: none of them is being changed. An agent
/// that dies in the middle of a change leaves one that is not, and every packet is judged at length.
#[inline(always)]
pub const fn is_settled(revision: u64) -> bool {
    revision & 1 == 0
}

/// In [`Config::flags`]: what the host itself sends to workloads is dropped.
pub const HOST_DENIED: u32 = 1;
/// In [`Config::flags`]: this node is joining, as the entry of its own prefix in `prefixes` says too; here it costs the
/// gates of workloads no lookup.
pub const SELF_JOINING: u32 = 2;

/// Mark bit: a gate has judged this packet on its true addresses.
pub const MARK_DECIDED: u32 = 1;
/// Mark bit: egress policy refused the address as written; whoever sees the true one decides.
pub const MARK_UNDECIDED: u32 = 2;
/// Mark bit: given back by the hold device.
pub const MARK_RETURNED: u32 = 4;
/// Mark bit: a from-endpoint gate has checked that the source is the endpoint's own.
pub const MARK_SOURCE: u32 = 8;
/// Both together, which no gate says of a packet that it has judged: it came from outside.
pub const MARK_OUTSIDE: u32 = MARK_DECIDED | MARK_UNDECIDED;
/// All our mark bits, before the shift.
pub const MARK_ALL: u32 = 15;

/// Whether these mark bits say that a gate has judged the packet.
#[inline(always)]
pub const fn is_decided(bits: u32) -> bool {
    bits & MARK_OUTSIDE == MARK_DECIDED
}

/// Whether these mark bits say that egress policy refused the address as written.
#[inline(always)]
pub const fn is_undecided(bits: u32) -> bool {
    bits & MARK_OUTSIDE == MARK_UNDECIDED
}

/// Where a packet was judged.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress of the workload's host-side interface.
    FromEndpoint = 1,
    /// tc egress of the tunnel device.
    ToTunnel = 2,
    /// tc ingress of the tunnel device.
    FromTunnel = 3,
    /// tc egress of the workload's host-side interface.
    ToEndpoint = 4,
    /// tc ingress of the hold device.
    HoldIngress = 5,
    /// tc egress of the hold device.
    HoldEgress = 6,
    /// tc ingress of an underlay interface.
    WireIngress = 7,
    /// tc egress of an underlay interface.
    WireEgress = 8,
    /// What a socket of this node receives.
    ToHost = 9,
    /// What a socket of this node sends.
    FromHost = 10,
}

impl Hook {
    /// From its number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::FromEndpoint,
            2 => Self::ToTunnel,
            3 => Self::FromTunnel,
            4 => Self::ToEndpoint,
            5 => Self::HoldIngress,
            6 => Self::HoldEgress,
            7 => Self::WireIngress,
            8 => Self::WireEgress,
            9 => Self::ToHost,
            10 => Self::FromHost,
            _ => return None,
        })
    }
}

/// Into the endpoint: policy's ingress.
pub const INGRESS: u8 = 0;
/// Out of the endpoint: policy's egress.
pub const EGRESS: u8 = 1;

/// An attached workload interface: `endpoints`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the host-side interface.
    pub ifindex: u32,
    /// Identity number.
    pub identity: u32,
    /// The workload's own link address.
    pub mac: [u8; 6],
    /// The link address of the host's side.
    pub host_mac: [u8; 6],
    /// Unused, 0.
    pub flags: u32,
}

/// What an endpoint has used up: `usage`. Kept by the programs, where no flood of another
/// endpoint can flush it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The second (CLOCK_BOOTTIME) that `events` counts.
    pub second: u32,
    /// Events sent in that second.
    pub events: u32,
    /// Live flows in `connections`, as an `i32`; the agent's collector corrects it.
    pub connections: u32,
    /// Flows in it that are over and not forgotten yet ([`is_over`](crate::is_over)), likewise.
    pub over: u32,
}

/// A local address: `locals`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Whose it is.
    pub endpoint: u32,
    /// Identity number.
    pub identity: u32,
}

/// An address of a host endpoint, whose workload has no interface of its own: `hosts`. Its sockets are told by their
/// control group, as it was when they were made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The kernel's number of the control group; the root's is [`CGROUP_ROOT`].
    pub cgroup: u64,
    /// How deep it lies below the root (0: the root itself).
    pub level: u32,
    /// Whose it is.
    pub endpoint: u32,
}

/// The number of the root of control groups: every socket is below it, and the kernel's own are in it.
pub const CGROUP_ROOT: u64 = 1;

/// Index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// A remote address: `remotes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Identity number.
    pub identity: u32,
    /// Who announced it.
    pub peer: u32,
    /// Epoch of the session that the announcement came in.
    pub epoch: u32,
    /// [`REMOTE_REFUSED`].
    pub flags: u32,
    /// The announcement's generation.
    pub generation: u64,
    /// When a refusal ends; 0 otherwise.
    pub expires: u64,
}

/// In [`Remote::flags`]: the peer would not say who this is; nothing is asked until `expires`.
pub const REMOTE_REFUSED: u32 = 1;

/// Key of the longest-prefix maps over addresses, as the kernel wants it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LpmKey<T> {
    /// How many bits of `data` count.
    pub prefix_len: u32,
    /// The bits.
    pub data: T,
}

/// A node's prefix: `prefixes`. An address in none of them is not managed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Whose; [`PEER_SELF`] for our own.
    pub peer: u32,
    /// [`PREFIX_JOINING`].
    pub flags: u32,
}

/// In [`Prefix::flags`]: its node is joining; cleartext from it and to it is counted, not dropped.
pub const PREFIX_JOINING: u32 = 1;

/// One life of a TLS connection with a peer: `sessions`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The oldest epoch that still counts.
    pub oldest: u32,
    /// The newest epoch.
    pub current: u32,
    /// When the session ends whatever happens.
    pub expiry: u64,
    /// [`SESSION_NONE`] to [`SESSION_CUT`].
    pub state: u32,
    /// Unused, 0.
    pub reserved: u32,
}

/// No session yet: what goes out is held.
pub const SESSION_NONE: u32 = 0;
/// The tunnel is being set up.
pub const SESSION_PENDING: u32 = 1;
/// Both sides have said TunnelReady.
pub const SESSION_READY: u32 = 2;
/// Ended: nothing of it counts, and what goes out is held for the next one.
pub const SESSION_CUT: u32 = 3;

/// Key of `announced`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnouncedKey {
    /// Our address.
    pub local: Addr,
    /// Whom it was announced to.
    pub peer: u32,
}

/// What we told a peer about an address of ours: `announced`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The endpoint that it was announced for.
    pub endpoint: u32,
    /// Epoch of the session.
    pub epoch: u32,
    /// [`ANNOUNCED_SENT`] to [`ANNOUNCED_WITHDRAWING`].
    pub state: u32,
    /// Unused, 0.
    pub reserved: u32,
    /// The announcement's generation.
    pub generation: u64,
}

/// Sent, not confirmed.
pub const ANNOUNCED_SENT: u32 = 1;
/// Confirmed by the peer.
pub const ANNOUNCED_CONFIRMED: u32 = 2;
/// Withdrawal sent, not confirmed: nobody may use the address toward this peer.
pub const ANNOUNCED_WITHDRAWING: u32 = 3;

/// What is true of an identity wherever it is: `identities`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Until when its proof holds.
    pub valid_until: u64,
    /// 1: cut, whatever a rule says.
    pub revoked: u32,
    /// Unused, 0.
    pub reserved: u32,
}

/// Key of `policy` behind the prefix length. The longest prefix wins, so a `deny` that is wider
/// than an `allow` has to be written at the narrower one too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyKey {
    /// Whose policy.
    pub endpoint: u32,
    /// The other side, or [`IDENTITY_ANY`].
    pub identity: u32,
    /// [`INGRESS`] or [`EGRESS`].
    pub direction: u8,
    /// IP protocol.
    pub proto: u8,
    /// Destination port, big endian; for ICMP the type of the packet that opens the flow, in the same
    /// form; 0 where the protocol has neither.
    pub port: u16,
}

/// Prefix length of a policy entry for every protocol and port.
pub const POLICY_BITS_ANY: u32 = 72;
/// Prefix length of a policy entry for every port of one protocol.
pub const POLICY_BITS_PROTO: u32 = 80;
/// Prefix length of a policy entry for one port; in between are port ranges.
pub const POLICY_BITS_PORT: u32 = 96;

/// A decision: `policy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyValue {
    /// [`VERDICT_ALLOW`] or [`VERDICT_DENY`].
    pub verdict: u8,
    /// [`AUTH_DISABLED`] to [`AUTH_TEST_FAIL`].
    pub auth: u8,
    /// 1: only through a tunnel.
    pub encryption: u8,
    /// Unused, 0.
    pub reserved: u8,
    /// Which rule decided.
    pub rule: u32,
}

/// Let through.
pub const VERDICT_ALLOW: u8 = 1;
/// Drop; wins over any allow.
pub const VERDICT_DENY: u8 = 2;

/// No proof needed.
pub const AUTH_DISABLED: u8 = 0;
/// Only with a recorded pair.
pub const AUTH_REQUIRED: u8 = 1;
/// Let through, but report what would have been dropped.
pub const AUTH_AUDIT: u8 = 2;
/// Never satisfied: for tests of an installation.
pub const AUTH_TEST_FAIL: u8 = 3;

/// Key of `auth`: two identities proven to each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuthKey {
    /// Identity on this node.
    pub local: u32,
    /// Identity of the other side.
    pub remote: u32,
    /// Where the other side is.
    pub peer: u32,
    /// [`AUTH_TYPE_SPIFFE`].
    pub auth_type: u32,
}

/// Proven by SPIFFE proof SVIDs.
pub const AUTH_TYPE_SPIFFE: u32 = 1;

impl AuthKey {
    /// The key of a pair. On one node both sides are local, so there the smaller number goes first.
    #[inline(always)]
    pub const fn new(local: u32, remote: u32, peer: u32) -> Self {
        let (local, remote) = if peer == PEER_SELF && remote < local {
            (remote, local)
        } else {
            (local, remote)
        };
        Self {
            local,
            remote,
            peer,
            auth_type: AUTH_TYPE_SPIFFE,
        }
    }
}

/// A recorded pair: `auth`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// The earliest of both proofs' ends and the rule's maximum age.
    pub expiry: u64,
    /// Epoch of the session that carried the proofs; 0 for a pair on one node.
    pub epoch: u32,
    /// Unused, 0.
    pub reserved: u32,
}

/// Fails to compile where a type has a hole: its size is not the sum of its fields.
macro_rules! no_holes {
    ($($name:ty = $($size:literal)+ => $total:literal;)*) => {
        $(const _: () = assert!(core::mem::size_of::<$name>() == $total && 0 $(+ $size)+ == $total);)*
    };
}
pub(crate) use no_holes;

no_holes! {
    Addr = 16 => 16;
    Config = 4 4 4 4 4 4 4 4 4 4 4 4 => 48;
    Endpoint = 4 4 6 6 4 => 24;
    Usage = 4 4 4 4 => 16;
    Local = 4 4 => 8;
    Host = 8 4 4 => 16;
    Remote = 4 4 4 4 8 8 => 32;
    LpmKey<Addr> = 4 16 => 20;
    Prefix = 4 4 => 8;
    Session = 4 4 8 4 4 => 24;
    AnnouncedKey = 16 4 => 20;
    Announced = 4 4 4 4 8 => 24;
    Identity = 8 4 4 => 16;
    PolicyKey = 4 4 1 1 2 => 12;
    LpmKey<PolicyKey> = 4 12 => 16;
    PolicyValue = 1 1 1 1 4 => 8;
    AuthKey = 4 4 4 4 => 16;
    Auth = 8 4 4 => 16;
}

/// Tells aya that the types are plain bytes.
#[cfg(feature = "user")]
mod pod {
    use crate::*;

    macro_rules! pod {
        ($($name:ty),* $(,)?) => {
            // SAFETY: `repr(C)`, no holes (asserted above and beside each type), only integers and
            // arrays of them, valid for any bit pattern.
            $(unsafe impl aya::Pod for $name {})*
        };
    }
    pod!(
        Addr,
        Config,
        Endpoint,
        Usage,
        Local,
        Host,
        Remote,
        Prefix,
        Session,
        AnnouncedKey,
        Announced,
        Identity,
        PolicyKey,
        PolicyValue,
        AuthKey,
        Auth,
        ConnectionKey,
        Connection,
        FragmentKey,
        Ports,
        HoldKey,
        HoldValue,
        Parked,
        Event,
    );
}
