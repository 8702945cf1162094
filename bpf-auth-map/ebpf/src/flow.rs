//! Known flows: looked up, opened, kept alive.

use aya_ebpf::bindings::BPF_ANY;
use handfast_layout::{
    CLOSING, Config, Connection, ENDED_HERE, ENDED_THERE, EventKind, FragmentKey, PEER_SELF, Ports,
    REPLIED, Reason, is_over, is_settled, lifetime,
    packet::{ICMP, ICMPV6, Kind, TCP, TCP_FIN, TCP_RST, request_of},
};

use crate::{
    atomic,
    maps::{self, CONNECTIONS, FRAGMENTS, USAGE},
    policy::Allowed,
    report,
    skb::Skb,
    work::Work,
};

const SECOND: u64 = 1_000_000_000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Gives a later fragment the ports of the first one.
#[inline(always)]
pub fn fragments(work: &mut Work) -> Result<(), Reason> {
    if !matches!(work.packet.kind, Kind::FirstFragment | Kind::LaterFragment) {
        return Ok(());
    }
    let packet = &mut work.packet;
    work.fragment = FragmentKey {
        src: packet.src,
        dst: packet.dst,
        id: packet.fragment,
        proto: u32::from(packet.proto),
    };
    if packet.kind == Kind::FirstFragment {
        let ports = Ports {
            src: packet.src_port,
            dst: packet.dst_port,
            icmp_type: packet.icmp_type,
            reserved: [0; 3],
        };
        return match FRAGMENTS.insert(&work.fragment, &ports, u64::from(BPF_ANY)) {
            Ok(()) => Ok(()),
            Err(_) => Err(Reason::Internal),
        };
    }
    // SAFETY: plain integers, read once.
    match unsafe { FRAGMENTS.get(&work.fragment) } {
        Some(ports) => {
            packet.src_port = ports.src;
            packet.dst_port = ports.dst;
            packet.icmp_type = ports.icmp_type;
            packet.flow_type = request_of(packet.proto, ports.icmp_type);
            Ok(())
        }
        None => Err(Reason::Fragment),
    }
}

/// The flow of `work.key`, if it is known, alive and still between the same two.
#[inline(always)]
pub fn known(work: &mut Work) -> Option<&'static mut Connection> {
    let connection = alive(work)?;
    (connection.remote == work.remote_identity).then_some(connection)
}

/// The same, whoever the other side is by now: outside the mesh that is only what rules call it.
#[inline(always)]
pub fn alive(work: &mut Work) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(&work.key)?;
    // SAFETY: a map value, valid for this run; fields that race are overwritten as a whole.
    let connection = unsafe { &mut *connection };
    let same = connection.endpoint == work.endpoint
        && connection.local == work.local_identity
        && connection.peer == work.peer;
    (is_alive(work, connection) && same && belongs(work, connection)).then_some(connection)
}

/// The flow of `work.key`, if it is known and alive and nothing has changed since its last packet: neither policy
/// nor whose an address is. Its two ends are then those that it names.
#[inline(always)]
pub fn unchanged(work: &mut Work, config: &Config) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(&work.key)?;
    // SAFETY: as above.
    let connection = unsafe { &mut *connection };
    let same = is_settled(work.revision)
        && connection.revision == work.revision
        && connection.policy_revision == config.policy_revision
        && connection.peer != PEER_SELF;
    (same && is_alive(work, connection) && belongs(work, connection)).then_some(connection)
}

#[inline(always)]
fn is_alive(work: &mut Work, connection: &Connection) -> bool {
    work.now().saturating_sub(connection.last_seen)
        <= lifetime(work.key.proto, connection.flags) * SECOND
}

/// Whether the packet belongs to the flow, and is not another one's on the same ports.
#[inline(always)]
pub fn belongs(work: &Work, connection: &Connection) -> bool {
    match work.packet.outer_proto {
        TCP => !reopens(work, connection),
        ICMP | ICMPV6 => answers(work, connection),
        _ => true,
    }
}

/// Whether an ICMP packet is of the type that opened the flow, or the reply to it from the other side.
#[inline(always)]
fn answers(work: &Work, connection: &Connection) -> bool {
    let packet = &work.packet;
    // An error is about the flow; whose type it quotes stands in the key.
    packet.kind == Kind::IcmpError
        || match connection.direction == work.direction {
            true => packet.icmp_type == connection.icmp_type,
            false => {
                packet.icmp_type != connection.icmp_type && connection.icmp_type == work.key.icmp
            }
        }
}

/// A SYN against the flow's direction, or after its end, opens another flow on the same ports.
#[inline(always)]
fn reopens(work: &Work, connection: &Connection) -> bool {
    work.packet.tcp_flags & (SYN | ACK) == SYN
        && (connection.direction != work.direction || connection.flags & CLOSING != 0)
}

/// Lets a packet of a known flow through.
#[inline(always)]
pub fn touch(work: &mut Work, connection: &mut Connection) {
    let mut flags = connection.flags;
    if work.packet.kind != Kind::IcmpError {
        if connection.direction != work.direction {
            flags |= REPLIED;
        }
        flags |= ended(work, connection);
    }
    // Written seldom: the entry is shared between CPUs.
    if flags != connection.flags {
        if is_over(flags) && !is_over(connection.flags) {
            finish(connection.endpoint);
        }
        connection.flags = flags;
    }
    if work.now().saturating_sub(connection.last_seen) >= SECOND {
        connection.last_seen = work.now();
    }
    if connection.epoch != work.epoch {
        connection.epoch = work.epoch;
    }
    if connection.revision != work.revision || connection.valid_until != work.valid_until {
        connection.valid_until = work.valid_until;
        connection.revision = work.revision;
    }
    report::count(Reason::Passed);
}

/// What this packet ends of its flow.
#[inline(always)]
fn ended(work: &Work, connection: &Connection) -> u8 {
    match work.packet.tcp_flags & (TCP_FIN | TCP_RST) {
        0 => 0,
        TCP_FIN if connection.direction == work.direction => ENDED_HERE,
        TCP_FIN => ENDED_THERE,
        _ => CLOSING,
    }
}

/// A flow that is over takes no live one's place any more. Its entry stays for some seconds, and counts among those.
#[inline(always)]
fn finish(endpoint: u32) {
    if let Some(usage) = USAGE.get_ptr_mut(&endpoint) {
        // SAFETY: a map value, changed atomically only.
        unsafe {
            atomic::add_u32(&raw mut (*usage).connections, 1u32.wrapping_neg());
            atomic::add_u32(&raw mut (*usage).over, 1);
        }
    }
}

/// Why there is no place for a flow.
const ENDPOINT_FULL: u32 = 1;
const MAP_FULL: u32 = 2;

/// Gives an endpoint a place for one more flow; 0 if it has one now. It may have so many live ones, with those that are over
/// twice as many (whoever ends its flows at once would fill the map for all with their entries), and never more than its
/// share of the map: half for one that is alone, and the less is free the smaller a part of that. So a few that fill what
/// they may leave places for those who come with nothing.
///
/// A subprogram of its own, whose stack is free again afterwards.
#[inline(never)]
fn take_place(endpoint: u32, config: &Config) -> u32 {
    let (Some(usage), Some(taken)) = (report::usage(endpoint), maps::taken()) else {
        return ENDPOINT_FULL;
    };
    let most = i64::from(config.endpoint_connections);
    // SAFETY: map values, changed atomically only. Below nothing for a moment, where one flow was finished on two CPUs at
    // once: the agent counts anew.
    unsafe {
        let live = i64::from((*usage).connections as i32);
        let all = live + i64::from((*usage).over as i32);
        let free = i64::from(maps::places()) - *taken as i64;
        if free <= 0 {
            return MAP_FULL;
        }
        if live >= most || all >= 2 * most || all >= share(free) {
            return ENDPOINT_FULL;
        }
        atomic::add_u32(&raw mut (*usage).connections, 1);
        atomic::add(taken, 1);
    }
    0
}

/// What one endpoint may have while so much is free. As long as somebody takes all that he may, about a `2n`th is free for
/// whoever comes after `n` such; were a share a fixed part of what is free, it would be a `2^n`th.
#[inline(always)]
fn share(free: i64) -> i64 {
    let (free, places) = (free as u64, u64::from(maps::places()));
    // Never 0 of a map that is not full: the division rounds up.
    (2 * free * free).div_ceil(if places == 0 { 1 } else { places }) as i64
}

/// Takes it back.
#[inline(never)]
fn leave_place(endpoint: u32) {
    // SAFETY: map values, changed atomically only.
    unsafe {
        if let Some(usage) = USAGE.get_ptr_mut(&endpoint) {
            atomic::add_u32(&raw mut (*usage).connections, 1u32.wrapping_neg());
        }
        if let Some(taken) = maps::taken() {
            atomic::add(taken, 1u64.wrapping_neg());
        }
    }
}

/// Opens a flow in the direction of this packet.
#[inline(always)]
pub fn open(skb: &Skb, work: &mut Work, config: &Config, allowed: Allowed) -> Result<(), Reason> {
    match take_place(work.endpoint, config) {
        0 => {}
        ENDPOINT_FULL => return Err(Reason::EndpointFull),
        _ => return Err(Reason::ConnectionsFull),
    }
    work.connection = Connection {
        last_seen: work.now(),
        revision: work.revision,
        valid_until: work.valid_until,
        rule: allowed.rule,
        local: work.local_identity,
        remote: work.remote_identity,
        peer: work.peer,
        epoch: work.epoch,
        endpoint: work.endpoint,
        policy_revision: config.policy_revision,
        auth: allowed.auth,
        direction: work.direction,
        flags: 0,
        icmp_type: work.packet.icmp_type,
    };
    if CONNECTIONS
        .insert(&work.key, &work.connection, u64::from(BPF_ANY))
        .is_err()
    {
        leave_place(work.endpoint);
        return Err(Reason::ConnectionsFull);
    }
    report::count(Reason::Opened);
    report::event(skb, work, config, EventKind::Opened, Reason::Opened);
    Ok(())
}
