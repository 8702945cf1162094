//! Known flows: looked up, opened, kept alive.

use aya_ebpf::bindings::BPF_ANY;
use handfast_layout::{
    CLOSING, Config, Connection, EventKind, FragmentKey, Ports, REPLIED, Reason, lifetime,
    packet::{Kind, TCP, TCP_END},
};

use crate::{
    atomic,
    maps::{CONNECTIONS, FRAGMENTS},
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
        };
        return match FRAGMENTS.insert(&work.fragment, &ports, u64::from(BPF_ANY)) {
            Ok(()) => Ok(()),
            Err(_) => Err(Reason::Internal),
        };
    }
    // SAFETY: two plain integers, read once.
    match unsafe { FRAGMENTS.get(&work.fragment) } {
        Some(ports) => {
            packet.src_port = ports.src;
            packet.dst_port = ports.dst;
            Ok(())
        }
        None => Err(Reason::Fragment),
    }
}

/// The flow of `work.key`, if it is known, alive and still between the same two.
#[inline(always)]
pub fn known(work: &Work) -> Option<&'static mut Connection> {
    alive(work).filter(|connection| connection.remote == work.remote_identity)
}

/// The same, whoever the other side is by now: outside the mesh that is only what rules call it.
#[inline(always)]
pub fn alive(work: &Work) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(&work.key)?;
    // SAFETY: a map value, valid for this run; fields that race are overwritten as a whole.
    let connection = unsafe { &mut *connection };
    let alive = work.now.saturating_sub(connection.last_seen)
        <= lifetime(work.key.proto, connection.flags) * SECOND;
    let same = connection.endpoint == work.endpoint
        && connection.local == work.local_identity
        && connection.peer == work.peer;
    (alive && same && !reopens(work, connection)).then_some(connection)
}

/// A SYN against the flow's direction, or after its end, opens another flow on the same ports.
#[inline(always)]
fn reopens(work: &Work, connection: &Connection) -> bool {
    work.packet.outer_proto == TCP
        && work.packet.tcp_flags & (SYN | ACK) == SYN
        && (connection.direction != work.direction || connection.flags & CLOSING != 0)
}

/// Lets a packet of a known flow through.
#[inline(always)]
pub fn touch(work: &Work, connection: &mut Connection) {
    let mut flags = connection.flags;
    if work.packet.kind != Kind::IcmpError {
        if connection.direction != work.direction {
            flags |= REPLIED;
        }
        if work.packet.tcp_flags & TCP_END != 0 {
            flags |= CLOSING;
        }
    }
    // Written seldom: the entry is shared between CPUs.
    if flags != connection.flags {
        connection.flags = flags;
    }
    if work.now.saturating_sub(connection.last_seen) >= SECOND {
        connection.last_seen = work.now;
    }
    if connection.epoch != work.epoch {
        connection.epoch = work.epoch;
    }
    report::count(Reason::Passed);
}

/// Opens a flow in the direction of this packet.
#[inline(always)]
pub fn open(skb: &Skb, work: &mut Work, config: &Config, allowed: Allowed) -> Result<(), Reason> {
    let usage = report::usage(work.endpoint);
    // SAFETY: a map value.
    if let Some(usage) = usage
        && unsafe { (*usage).connections } >= u64::from(config.endpoint_connections)
    {
        return Err(Reason::EndpointFull);
    }
    work.connection = Connection {
        last_seen: work.now,
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
        reserved: 0,
    };
    if CONNECTIONS
        .insert(&work.key, &work.connection, u64::from(BPF_ANY))
        .is_err()
    {
        return Err(Reason::ConnectionsFull);
    }
    if let Some(usage) = usage {
        // SAFETY: a map value.
        unsafe { atomic::add(&raw mut (*usage).connections, 1) };
    }
    report::count(Reason::Opened);
    report::event(skb, work, config, EventKind::Opened, Reason::Opened);
    Ok(())
}
