//! hold-ingress: gives a packet back to the very hook that it was taken from.
//!
//! The gate runs again on it there. Writing it into the IP stack instead would break every
//! connection that the node has translated.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{
    Config, HOLD_META_LEN, HoldMeta, Hook, MARK_RETURNED, Reason, packet::Source,
};

use crate::{
    hold,
    maps::{self, ENDPOINTS},
    report,
    skb::{DROP, Skb},
    work::Work,
};

#[classifier]
pub fn hold_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::HoldIngress);
    match give_back(&skb, work, config) {
        Ok(action) => action,
        // The agent knows what it discarded, and why; nothing else comes here by right.
        Err(reason) => {
            report::count(reason);
            DROP
        }
    }
}

#[inline(always)]
fn give_back(skb: &Skb, work: &mut Work, config: &Config) -> Result<i32, Reason> {
    let bytes = skb.load::<HOLD_META_LEN>(0).ok_or(Reason::HoldStray)?;
    let meta = HoldMeta::from_bytes(bytes).ok_or(Reason::HoldStray)?;
    if !hold::redeem(work, meta.ticket) {
        return Err(Reason::HoldStray);
    }
    if meta.discard {
        return Err(Reason::Discarded);
    }
    let parked = &work.parked;
    let ifindex = parked.ifindex;
    let (mark, link) = (parked.mark, parked.link);
    let hook = parked.hook;
    let stands = if hook == Hook::ToEndpoint as u32 {
        // SAFETY: one integer, read once.
        matches!(unsafe { ENDPOINTS.get(&parked.key.endpoint) }, Some(e) if e.ifindex == ifindex)
    } else {
        ifindex == config.tunnel || ifindex == config.tunnel2
    };
    if !stands || ifindex == 0 {
        return Err(Reason::HoldGone);
    }
    if parked.link_len != 0 && !skb.store(0, &link) {
        return Err(Reason::Internal);
    }
    report::count(Reason::Returned);
    skb.for_us();
    skb.set_mark(mark);
    skb.set_mark_bits(config, (work_bits(mark, config)) | MARK_RETURNED);
    Ok(skb.redirect(ifindex, hook == Hook::FromTunnel as u32))
}

#[inline(always)]
fn work_bits(mark: u32, config: &Config) -> u32 {
    (mark >> (config.mark_shift & 31)) & handfast_layout::MARK_ALL
}
