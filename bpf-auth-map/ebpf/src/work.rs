//! The workspace of a run: headers, map keys, and what is known of the packet so far.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use handfast_layout::{
    Addr, AnnouncedKey, AuthKey, Config, Connection, ConnectionKey, EGRESS, FragmentKey, HoldKey,
    Hook, INGRESS, LpmKey, MARK_ALL, MARK_RETURNED, PREFIX_JOINING, Parked, PolicyKey, Reason,
    SELF_JOINING,
    packet::{ICMPV6, IGMP, Kind, Packet, Version, outer::Outer},
};

use crate::{maps, skb::Skb};

/// The workspace. Every run sets what it uses.
#[repr(C)]
pub struct Work {
    pub packet: Packet,
    /// What the tripwire looks at.
    pub outer: Outer,
    pub key: ConnectionKey,
    pub connection: Connection,
    pub fragment: FragmentKey,
    pub lpm: LpmKey<Addr>,
    pub policy: LpmKey<PolicyKey>,
    pub announced: AnnouncedKey,
    pub auth: AuthKey,
    pub hold: HoldKey,
    pub parked: Parked,
    /// The time, and the tick in which it was read: they outlive a run.
    clock: u64,
    tick: u64,
    /// State of the tables, as it was before any of them was looked at.
    pub revision: u64,
    /// When the first of both identities' proofs ends; 0 if that has not been asked.
    pub valid_until: u64,
    /// What is known for events: 0 where nothing is.
    pub endpoint: u32,
    pub local_identity: u32,
    pub remote_identity: u32,
    pub peer: u32,
    pub rule: u32,
    /// Epoch of the remote address, and the window of its session.
    pub epoch: u32,
    pub oldest: u32,
    pub current: u32,
    pub link_len: u32,
    /// Not 0 if a prefix that was looked up is a joining node's.
    pub joining: u32,
    /// Our mark bits as the packet came.
    pub mark: u32,
    pub hook: u8,
    /// As the endpoint sees it.
    pub direction: u8,
    pub reserved: [u8; 2],
}

impl Work {
    /// Begins a run: forgets what the last one knew, but for the packet, which [`Work::read`] or
    /// [`Work::unread`] replaces.
    #[inline(always)]
    pub fn begin(&mut self, skb: &Skb, config: &Config, hook: Hook) {
        self.valid_until = 0;
        self.revision = maps::revision();
        for field in [
            &mut self.endpoint,
            &mut self.local_identity,
            &mut self.remote_identity,
            &mut self.peer,
            &mut self.rule,
            &mut self.epoch,
            &mut self.oldest,
            &mut self.current,
            &mut self.joining,
        ] {
            zero(field);
        }
        self.link_len = maps::link_len();
        self.mark = (skb.mark() >> (config.mark_shift & 31)) & MARK_ALL;
        self.hook = hook as u8;
        self.direction = match hook {
            Hook::FromEndpoint | Hook::ToTunnel | Hook::WireEgress | Hook::FromHost => EGRESS,
            _ => INGRESS,
        };
    }

    /// Reads the headers. Not inlined: its stack is free again when the judgement begins. What cannot be read is
    /// forgotten.
    #[inline(never)]
    pub fn read(&mut self, skb: &Skb) -> Result<(), Reason> {
        let read = match Version::from_ethertype(skb.ethertype()) {
            Some(version) => self.packet.read(skb, version, self.link_len),
            None => Err(Reason::NotIp),
        };
        if read.is_err() {
            self.packet = Packet::default();
        }
        read
    }

    /// Forgets the last run's packet: for what is judged without reading. Not in every run, since it costs as much
    /// as a lookup.
    #[inline(never)]
    pub fn unread(&mut self) {
        self.packet = Packet::default();
    }

    /// CLOCK_BOOTTIME, nanoseconds, as it was when the kernel's present tick was first asked about on this CPU (a tick
    /// has 1 to 10 ms). Reading the clock costs as much as two lookups, and comparing ticks next to nothing.
    #[inline(always)]
    pub fn now(&mut self) -> u64 {
        // SAFETY: neither takes anything.
        let tick = unsafe { bpf_jiffies64() };
        if tick != self.tick || self.clock == 0 {
            self.tick = tick;
            self.clock = unsafe { bpf_ktime_get_boot_ns() };
        }
        self.clock
    }

    /// Whether the packet comes back from hold.
    #[inline(always)]
    pub fn returned(&self) -> bool {
        self.mark & MARK_RETURNED != 0
    }

    /// Whether the packet is neighbour discovery that nobody has forwarded. It is never fragmented
    /// (RFC 6980).
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        let packet = &self.packet;
        packet.outer_proto == ICMPV6
            && matches!(packet.icmp_type, 133..=136)
            && packet.hop_limit == 255
            && packet.kind == Kind::Plain
    }

    /// Whether the packet is about membership in multicast groups (IGMP, MLD). The kernel keeps
    /// something else in the mark of those that the node itself sends (`reserved_tailroom`).
    #[inline(always)]
    pub fn is_membership(&self) -> bool {
        let packet = &self.packet;
        packet.kind == Kind::Plain
            && match packet.outer_proto {
                IGMP => true,
                ICMPV6 => matches!(packet.icmp_type, 130..=132 | 143),
                _ => false,
            }
    }

    /// The flow as its local endpoint sees it. The local end is the source of what goes out and
    /// the destination of what comes in.
    #[inline(always)]
    pub fn set_key(&mut self, outward: bool) {
        let packet = &self.packet;
        self.key.proto = packet.proto;
        self.key.icmp = packet.flow_type;
        self.key.reserved = [0; 2];
        if outward {
            self.key.local = packet.flow_src;
            self.key.remote = packet.flow_dst;
            self.key.local_port = packet.src_port;
            self.key.remote_port = packet.dst_port;
        } else {
            self.key.local = packet.flow_dst;
            self.key.remote = packet.flow_src;
            self.key.local_port = packet.dst_port;
            self.key.remote_port = packet.src_port;
        }
    }

    /// The node whose prefix contains the address; and whether that node is joining, in `joining`.
    #[inline(always)]
    pub fn prefix(&mut self, addr: Addr) -> Option<u32> {
        self.lpm = LpmKey {
            prefix_len: 128,
            data: addr,
        };
        let prefix = maps::prefix(&self.lpm)?;
        self.joining |= prefix.flags & PREFIX_JOINING;
        Some(prefix.peer)
    }

    /// Whether this node, or the one whose prefix was looked up, is joining: between the two packets go in clear.
    #[inline(always)]
    pub fn is_joining(&self, config: &Config) -> bool {
        self.joining | (config.flags & SELF_JOINING) != 0
    }

    /// The identity of an address outside the mesh.
    #[inline(always)]
    pub fn outside(&mut self, addr: Addr) -> u32 {
        self.lpm = LpmKey {
            prefix_len: 128,
            data: addr,
        };
        maps::cidr(&self.lpm).unwrap_or(handfast_layout::IDENTITY_WORLD)
    }
}

/// Sets to 0, by a store that stands for itself: the compiler makes a call of several, and a loop over bytes of the
/// call.
#[inline(always)]
fn zero(field: &mut u32) {
    // SAFETY: a reference.
    unsafe { core::ptr::write_volatile(field, 0) };
}
