//! hold-egress: nothing leaves by the hold device but what a gate has sent there.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{HOLD_META_LEN, HoldMeta, Reason, packet::Source};

use crate::{
    hold, report,
    skb::{DROP, PASS, Skb},
};

#[classifier]
pub fn hold_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let ticket = skb
        .load::<HOLD_META_LEN>(0)
        .and_then(HoldMeta::from_bytes)
        .filter(|meta| hold::is_out(meta.ticket));
    match ticket {
        Some(_) => PASS,
        None => {
            report::count(Reason::HoldStray);
            DROP
        }
    }
}
