//! from-tunnel: the destination gate for everything remote, on the ingress of the tunnel device,
//! before the node's own NAT.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{Config, Hook, MARK_DECIDED, MARK_RETURNED, Reason};

use super::tunnel;
use crate::{
    hold, maps, report,
    skb::{DROP, PASS, Skb},
    work::Work,
};

#[classifier]
pub fn from_tunnel(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::FromTunnel);
    match judge(&skb, work, config) {
        Ok(()) => {
            // An IPsec tunnel knows by it why the packet has no association any more.
            skb.set_mark_bits(config, MARK_DECIDED | work.mark & MARK_RETURNED);
            PASS
        }
        Err(reason) if undecided(reason) => hold::hold(&skb, work, config, reason),
        Err(reason) => report::drop(&skb, work, config, reason as u32),
    }
}

#[inline(always)]
fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    open_wrapping(skb, work)?;
    work.read(skb)?;
    // Before anything is held: a packet that comes back from there has no association any more. WireGuard has
    // asked by itself, since each peer's allowed addresses are its own.
    let number = work.peer;
    if number != 0 && work.prefix(work.packet.src) != Some(number) {
        return Err(Reason::OtherTunnel);
    }
    tunnel::judge(skb, work, config)
}

/// Finds whose association the packet came out of, as `work.peer` (0: none), and where it begins. Both go into the
/// workspace, so that what follows is one way to the verifier, not one for each. Not inlined: its stack is
/// free again afterwards.
#[inline(never)]
fn open_wrapping(skb: &Skb, work: &mut Work) -> Result<(), Reason> {
    if let Some(number) = skb.association() {
        work.peer = number;
        work.link_len = skb.link_len().ok_or(Reason::Malformed)?;
    }
    Ok(())
}

/// What is on its way: the address is announced to us, the rest follows. What comes from an
/// address that is not is dropped, and the event makes the agent ask the peer.
#[inline(always)]
fn undecided(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SessionPending
            | Reason::Unconfirmed
            | Reason::NoPair
            | Reason::PairExpired
            | Reason::IdentityExpired
            | Reason::Held
    )
}
