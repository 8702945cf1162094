//! The tripwire on underlay and overlay interfaces: nothing between two managed addresses passes
//! in cleartext, bare or inside an encapsulation, whatever went wrong before.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{Addr, Config, Hook, MARK_UNDECIDED, Reason, packet::outer};

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
    // Our bits say what our gates know; from outside they say nothing.
    skb.set_mark_bits(config, 0);
    watch(&skb, work, config, Reason::WireIn, Reason::WireInInside)
}

#[classifier]
pub fn wire_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::WireEgress);
    if skb.came_in_by() != 0 && work.mark & MARK_UNDECIDED != 0 {
        // For the event only: what cannot be read is dropped all the same.
        let _ = work.read(&skb);
        return report::drop(&skb, work, config, Reason::Undecided);
    }
    watch(&skb, work, config, Reason::WireOut, Reason::WireOutInside)
}

#[inline(always)]
fn watch(skb: &Skb, work: &mut Work, config: &Config, bare: Reason, inside: Reason) -> i32 {
    let Some(seen) = outer::read(skb, skb.ethertype(), work.link_len) else {
        return PASS;
    };
    if managed(work, seen.src, seen.dst) {
        return report::drop(skb, work, config, bare);
    }
    let Some(within) = outer::inside(skb, &seen) else {
        return PASS;
    };
    if managed(work, within.src, within.dst) {
        return report::drop(skb, work, config, inside);
    }
    PASS
}

/// Whether both ends are managed.
#[inline(always)]
fn managed(work: &mut Work, src: Addr, dst: Addr) -> bool {
    work.packet.src = src;
    work.packet.dst = dst;
    work.prefix(src).is_some() && work.prefix(dst).is_some()
}
