//! The tripwire on underlay and overlay interfaces: nothing between two managed addresses passes
//! in cleartext, bare or inside an encapsulation, whatever went wrong before; nor what a masquerade has made of it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{
    Config, Hook, MARK_OUTSIDE, MARK_SOURCE, PEER_SELF, Reason, is_undecided, packet::outer,
};

use crate::{
    maps, report,
    skb::{DROP, PASS, Skb},
    work::Work,
};

#[classifier]
pub fn wire_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::WireIngress);
    // Our bits say what our gates know. A packet without any looks like the node's own where it has
    // lost the interface that it came by: one that was reassembled and fragmented again has.
    skb.set_mark_bits(config, MARK_OUTSIDE);
    watch(&skb, work, config, Reason::WireIn, Reason::WireInInside)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::WireEgress);
    // Whatever it says of where it came in: a forged mark can only drop the forger's own.
    if is_undecided(work.mark) && !(work.read(&skb).is_ok() && is_link_traffic(work)) {
        return report::drop(&skb, work, config, Reason::Undecided as u32);
    }
    watch(&skb, work, config, Reason::WireOut, Reason::WireOutInside)
}

/// What goes no further than the link, and need not have been judged.
#[inline(always)]
fn is_link_traffic(work: &Work) -> bool {
    work.is_neighbour_discovery() || (work.is_membership() && work.packet.dst.is_multicast())
}

#[inline(always)]
fn watch(skb: &Skb, work: &mut Work, config: &Config, bare: Reason, inside: Reason) -> i32 {
    if !find(skb, work) {
        return PASS;
    }
    if managed(work) || hidden(work) {
        return cleartext(skb, work, config, bare);
    }
    if find_inside(skb, work) && managed(work) {
        return cleartext(skb, work, config, inside);
    }
    PASS
}

/// Between two managed nodes it is dropped; to and from one that is joining it is counted.
#[inline(always)]
fn cleartext(skb: &Skb, work: &mut Work, config: &Config, reason: Reason) -> i32 {
    if work.joining != 0 {
        report::count(Reason::WireJoining);
        return PASS;
    }
    report::drop(skb, work, config, reason as u32)
}

/// Finds the addresses. Not inlined, as the next: their stacks are free again afterwards.
#[inline(never)]
fn find(skb: &Skb, work: &mut Work) -> bool {
    match outer::read(skb, skb.ethertype(), work.link_len) {
        Some(seen) => {
            work.outer = seen;
            true
        }
        None => false,
    }
}

/// Finds the addresses inside an encapsulation, if there is one.
#[inline(never)]
fn find_inside(skb: &Skb, work: &mut Work) -> bool {
    match outer::inside(skb, &work.outer) {
        Some(within) => {
            work.outer = within;
            true
        }
        None => false,
    }
}

/// Whether a workload's packet goes to another node's prefix with a source that is not its own any more: where routes into
/// the tunnel are gone, a masquerade gives it the node's.
#[inline(always)]
fn hidden(work: &mut Work) -> bool {
    let (src, dst) = (work.outer.src, work.outer.dst);
    work.joining = 0;
    if work.hook != Hook::WireEgress as u8 || work.mark & MARK_SOURCE == 0 {
        return false;
    }
    if work.prefix(dst).is_none_or(|peer| peer == PEER_SELF) {
        return false;
    }
    // For the event.
    work.unread();
    work.packet.src = src;
    work.packet.dst = dst;
    true
}

/// Whether both ends are managed.
#[inline(always)]
fn managed(work: &mut Work) -> bool {
    let (src, dst) = (work.outer.src, work.outer.dst);
    work.joining = 0;
    if work.prefix(src).is_none() || work.prefix(dst).is_none() {
        return false;
    }
    // For the event.
    work.unread();
    work.packet.src = src;
    work.packet.dst = dst;
    true
}
