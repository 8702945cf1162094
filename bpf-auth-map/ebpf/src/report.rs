//! Counting, and telling the agent.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_boot_ns,
};
use handfast_layout::{Addr, Config, EGRESS, Event, EventKind, Hook, Reason, Usage};

use crate::{
    maps::{self, COUNTERS, EVENTS, USAGE},
    skb::{DROP, Skb},
    work::Work,
};

const SECOND: u64 = 1_000_000_000;

const _: () = assert!(BPF_RB_FORCE_WAKEUP - 1 == BPF_RB_NO_WAKEUP);

/// Counts.
#[inline(always)]
pub fn count(reason: Reason) {
    count_number(reason as u32);
}

#[inline(always)]
fn count_number(reason: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: the slot is this CPU's.
        unsafe { *counter += 1 };
    }
}

/// Counts and reports a drop under a [`Reason`]'s number.
#[inline(always)]
pub fn drop(skb: &Skb, work: &mut Work, config: &Config, reason: u32) -> i32 {
    count_number(reason);
    write(skb, work, config, EventKind::Dropped, reason);
    DROP
}

/// The same for what a socket of this node sends, where no workspace may be used.
#[inline(never)]
pub fn drop_from_host(skb: &Skb, endpoint: u32, reason: Reason, local: Addr, remote: Addr) {
    count(reason);
    let Some(config) = maps::config() else {
        return;
    };
    // SAFETY: it takes nothing.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !affordable(endpoint, now, config) {
        return count(Reason::EventLost);
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return count(Reason::EventLost);
    };
    // SAFETY: as below.
    unsafe {
        let event = &mut *entry.as_mut_ptr();
        event.time = now;
        event.reason = reason as u16;
        event.kind = EventKind::Dropped as u8;
        event.hook = Hook::FromHost as u8;
        event.direction = EGRESS;
        event.proto = 0;
        event.local_port = 0;
        event.remote_port = 0;
        event.icmp_type = 0;
        event.reserved = 0;
        event.endpoint = endpoint;
        event.local_identity = 0;
        event.remote_identity = 0;
        event.peer = 0;
        event.rule = 0;
        event.bytes = skb.len();
        event.ifindex = skb.ifindex();
        event.local = local;
        event.remote = remote;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Tells the agent, if the endpoint's budget and the ring have room.
#[inline(always)]
pub fn event(skb: &Skb, work: &mut Work, config: &Config, kind: EventKind, reason: Reason) {
    write(skb, work, config, kind, reason as u32);
}

#[inline(never)]
fn write(skb: &Skb, work: &mut Work, config: &Config, kind: EventKind, reason: u32) {
    let now = work.now();
    if !affordable(work.endpoint, now, config) {
        return count(Reason::EventLost);
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return count(Reason::EventLost);
    };
    let outward = work.direction == handfast_layout::EGRESS;
    let packet = &work.packet;
    // Field by field: the whole would be built on the stack first.
    // SAFETY: the ring's record is as long as an event, and every field is written.
    unsafe {
        let event = &mut *entry.as_mut_ptr();
        event.time = now;
        event.reason = reason as u16;
        event.kind = kind as u8;
        event.hook = work.hook;
        event.direction = work.direction;
        event.proto = packet.proto;
        event.local_port = if outward {
            packet.src_port
        } else {
            packet.dst_port
        };
        event.remote_port = if outward {
            packet.dst_port
        } else {
            packet.src_port
        };
        event.icmp_type = packet.icmp_type;
        event.reserved = 0;
        event.endpoint = work.endpoint;
        event.local_identity = work.local_identity;
        event.remote_identity = work.remote_identity;
        event.peer = work.peer;
        event.rule = work.rule;
        event.bytes = skb.len();
        event.ifindex = skb.ifindex();
        event.local = if outward { packet.src } else { packet.dst };
        event.remote = if outward { packet.dst } else { packet.src };
    }
    // Only a question wakes the agent; what people may look at waits until it looks, and costs a new flow no switch of
    // tasks on the way. Without a branch, which would have the verifier walk what follows twice.
    let other = reason ^ Reason::RemoteUnknown as u32;
    let is_other = (other | other.wrapping_neg()) >> 31;
    entry.submit(u64::from(BPF_RB_FORCE_WAKEUP - is_other));
}

/// Whether this endpoint may still send an event this second.
#[inline(always)]
fn affordable(endpoint: u32, now: u64, config: &Config) -> bool {
    let second = (now / SECOND) as u32;
    let Some(usage) = usage(endpoint) else {
        return true;
    };
    // SAFETY: a map value; a race between CPUs lets a few events more or less through.
    let usage = unsafe { &mut *usage };
    if usage.second != second {
        usage.second = second;
        usage.events = 0;
    }
    usage.events += 1;
    usage.events <= config.endpoint_events
}

/// What an endpoint has used up. Endpoint 0 stands for packets of none.
#[inline(always)]
pub fn usage(endpoint: u32) -> Option<*mut Usage> {
    if let Some(usage) = USAGE.get_ptr_mut(&endpoint) {
        return Some(usage);
    }
    let fresh = Usage {
        second: 0,
        events: 0,
        connections: 0,
        over: 0,
    };
    let _ = USAGE.insert(&endpoint, &fresh, u64::from(BPF_NOEXIST));
    USAGE.get_ptr_mut(&endpoint)
}
