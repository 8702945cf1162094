//! Parking a packet with the agent.

use aya_ebpf::bindings::BPF_NOEXIST;
use handfast_layout::{
    Addr, Config, EventKind, HOLD_META_LEN, HoldKey, HoldMeta, HoldValue, Hook, PEER_SELF, Parked,
    Reason, packet::Source, quota,
};

use crate::{
    atomic,
    maps::{self, HOLDS, PARKED},
    report,
    skb::Skb,
    work::Work,
};

/// Length of an Ethernet header.
pub const ETHERNET: u32 = 14;

/// Whether earlier packets of the pair are held: then this one waits its turn.
#[inline(always)]
pub fn queued(work: &mut Work, remote: Addr) -> bool {
    let Some(total) = maps::held() else {
        return false;
    };
    // SAFETY: a map value.
    if work.returned() || counted(unsafe { (*total).packets }) == 0 {
        return false;
    }
    set_key(work, remote);
    // SAFETY: as above.
    matches!(unsafe { HOLDS.get(&work.hold) }, Some(held) if counted(held.packets) != 0)
}

#[inline(always)]
fn set_key(work: &mut Work, remote: Addr) {
    work.hold = HoldKey {
        endpoint: work.endpoint,
        direction: work.direction,
        quota: quota::PAIR,
        reserved: 0,
        remote,
    };
}

/// Holds the packet, or drops it if it may not be held. `why` is what is undecided.
#[inline(always)]
pub fn hold(skb: &Skb, work: &mut Work, config: &Config, why: Reason) -> i32 {
    match try_hold(skb, work, config, why) {
        failed if failed < 0 => report::drop(skb, work, config, failed.unsigned_abs()),
        action => action,
    }
}

/// The action, or the drop reason's number, negative: a subprogram returns one register, and the
/// report is made by the caller, since the stacks of nested ones add up.
#[inline(never)]
fn try_hold(skb: &Skb, work: &mut Work, config: &Config, why: Reason) -> i32 {
    let remote = if work.direction == handfast_layout::EGRESS {
        work.packet.dst
    } else {
        work.packet.src
    };
    set_key(work, remote);
    match park(skb, work, config, why) {
        Ok(action) => action,
        Err(reason) => -(reason as i32),
    }
}

#[inline(always)]
fn park(skb: &Skb, work: &mut Work, config: &Config, why: Reason) -> Result<i32, Reason> {
    if work.returned() {
        return Err(Reason::HoldAgain);
    }
    if config.hold == 0 {
        return Err(Reason::HoldAway);
    }
    let link = match work.link_len {
        0 => [0; HOLD_META_LEN],
        _ => skb.load::<HOLD_META_LEN>(0).ok_or(Reason::Malformed)?,
    };
    let parked = &mut work.parked;
    parked.key = work.hold;
    parked.peer = work.peer;
    parked.packets = skb.segments();
    parked.bytes = skb.len();
    parked.ifindex = skb.ifindex();
    parked.mark = skb.mark();
    parked.hook = u32::from(work.hook);
    parked.link = link;
    parked.link_len = work.link_len;
    let first = take_all(&mut work.hold, &work.parked, config)?;
    match send(skb, work, config) {
        Ok(action) => {
            report::count(Reason::Held);
            if first {
                report::event(skb, work, config, EventKind::Held, why);
            }
            Ok(action)
        }
        Err(reason) => {
            give_all(&mut work.hold, &work.parked);
            Err(reason)
        }
    }
}

/// Gives the packet a ticket and sends it to the hold device.
#[inline(always)]
fn send(skb: &Skb, work: &mut Work, config: &Config) -> Result<i32, Reason> {
    let tickets = maps::tickets().ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let ticket = unsafe { atomic::add(&raw mut (*tickets).packets, 1) }.wrapping_add(1) as u32;
    let hook = match work.hook {
        2 => Hook::ToTunnel,
        3 => Hook::FromTunnel,
        _ => Hook::ToEndpoint,
    };
    let meta = HoldMeta {
        hook,
        discard: false,
        endpoint: work.endpoint,
        ticket,
    }
    .to_bytes();
    if PARKED
        .insert(&ticket, &work.parked, u64::from(BPF_NOEXIST))
        .is_err()
    {
        return Err(Reason::HoldTotalFull);
    }
    let written = if work.link_len == 0 {
        let ethertype = skb.ethertype().to_be_bytes();
        skb.add_head(ETHERNET) && skb.store(0, &meta) && skb.store(12, &ethertype)
    } else {
        skb.store(0, &meta)
    };
    if !written {
        let _ = PARKED.remove(&ticket);
        return Err(Reason::Internal);
    }
    Ok(skb.redirect(config.hold, false))
}

/// Counts a packet under every quota, or under none. Whether it is its pair's first.
#[inline(always)]
fn take_all(key: &mut HoldKey, parked: &Parked, config: &Config) -> Result<bool, Reason> {
    // An endpoint has half of what a peer has: one alone cannot fill a peer's for everybody.
    let of_endpoint = (config.hold_total_packets / 16, config.hold_total_bytes / 16);
    let of_peer = (config.hold_total_packets / 8, config.hold_total_bytes / 8);
    let total = maps::held().ok_or(Reason::Internal)?;
    let limit = (config.hold_total_packets, config.hold_total_bytes);
    if take(total, parked, limit).is_none() {
        return Err(Reason::HoldTotalFull);
    }
    if take_from(endpoint_key(key, parked), parked, of_endpoint).is_none() {
        give(total, parked);
        return Err(Reason::HoldEndpointFull);
    }
    if parked.peer != PEER_SELF && take_from(peer_key(key, parked), parked, of_peer).is_none() {
        give(total, parked);
        give_back(endpoint_key(key, parked), parked);
        return Err(Reason::HoldPeerFull);
    }
    let limit = (config.hold_pair_packets, config.hold_pair_bytes);
    match take_from(pair_key(key, parked), parked, limit) {
        Some(before) => Ok(before == 0),
        None => {
            give(total, parked);
            give_back(endpoint_key(key, parked), parked);
            if parked.peer != PEER_SELF {
                give_back(peer_key(key, parked), parked);
            }
            Err(Reason::HoldPairFull)
        }
    }
}

/// Un-counts a packet everywhere.
#[inline(always)]
pub fn give_all(key: &mut HoldKey, parked: &Parked) {
    if let Some(total) = maps::held() {
        give(total, parked);
    }
    give_back(endpoint_key(key, parked), parked);
    if parked.peer != PEER_SELF {
        give_back(peer_key(key, parked), parked);
    }
    give_back(pair_key(key, parked), parked);
}

#[inline(always)]
fn pair_key<'a>(key: &'a mut HoldKey, parked: &Parked) -> &'a HoldKey {
    *key = parked.key;
    key
}

#[inline(always)]
fn endpoint_key<'a>(key: &'a mut HoldKey, parked: &Parked) -> &'a HoldKey {
    *key = HoldKey {
        endpoint: parked.key.endpoint,
        direction: 0,
        quota: quota::ENDPOINT,
        reserved: 0,
        remote: Addr::NONE,
    };
    key
}

#[inline(always)]
fn peer_key<'a>(key: &'a mut HoldKey, parked: &Parked) -> &'a HoldKey {
    *key = HoldKey {
        endpoint: parked.peer,
        direction: 0,
        quota: quota::PEER,
        reserved: 0,
        remote: Addr::NONE,
    };
    key
}

#[inline(always)]
fn take_from(key: &HoldKey, parked: &Parked, limit: (u32, u32)) -> Option<u64> {
    if HOLDS.get_ptr_mut(key).is_none() {
        let nothing = HoldValue {
            packets: 0,
            bytes: 0,
        };
        // Another CPU may be first: then its entry is as good.
        let _ = HOLDS.insert(key, &nothing, u64::from(BPF_NOEXIST));
    }
    take(HOLDS.get_ptr_mut(key)?, parked, limit)
}

/// A count, as it is to be understood. Where the agent tidies an entry away while a packet is counted
/// in it, the packet is un-counted from the next one: less than nothing is nothing.
#[inline(always)]
fn counted(count: u64) -> u64 {
    if (count as i64) < 0 { 0 } else { count }
}

/// How many packets were counted before; nothing if there is no room.
#[inline(always)]
fn take(value: *mut HoldValue, parked: &Parked, limit: (u32, u32)) -> Option<u64> {
    let (packets, bytes) = (u64::from(parked.packets), u64::from(parked.bytes));
    // SAFETY: a map value, changed atomically only.
    let (before, bytes_before) = unsafe {
        (
            atomic::add(&raw mut (*value).packets, packets),
            atomic::add(&raw mut (*value).bytes, bytes),
        )
    };
    let (before, bytes_before) = (counted(before), counted(bytes_before));
    let fits = before.wrapping_add(packets) <= u64::from(limit.0)
        && bytes_before.wrapping_add(bytes) <= u64::from(limit.1);
    if !fits {
        give(value, parked);
        return None;
    }
    Some(before)
}

#[inline(always)]
fn give_back(key: &HoldKey, parked: &Parked) {
    if let Some(value) = HOLDS.get_ptr_mut(key) {
        give(value, parked);
    }
}

#[inline(always)]
fn give(value: *mut HoldValue, parked: &Parked) {
    // SAFETY: a map value, changed atomically only.
    unsafe {
        atomic::add(
            &raw mut (*value).packets,
            u64::from(parked.packets).wrapping_neg(),
        );
        atomic::add(
            &raw mut (*value).bytes,
            u64::from(parked.bytes).wrapping_neg(),
        );
    }
}

/// Takes the packet of a ticket out of the books. Once only.
#[inline(always)]
pub fn redeem(work: &mut Work, ticket: u32) -> bool {
    let Some(parked) = PARKED.get_ptr(&ticket) else {
        return false;
    };
    // SAFETY: a map value, written once before the ticket was given out.
    work.parked = unsafe { *parked };
    // Whoever removes it may use it: two frames with one ticket do not both pass.
    if PARKED.remove(&ticket).is_err() {
        return false;
    }
    give_all(&mut work.hold, &work.parked);
    true
}

/// Whether a ticket is out.
#[inline(always)]
pub fn is_out(ticket: u32) -> bool {
    PARKED.get_ptr(&ticket).is_some()
}
