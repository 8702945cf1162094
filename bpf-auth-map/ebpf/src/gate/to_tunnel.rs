//! to-tunnel: the source gate, on the egress of the tunnel device, after the node's own NAT.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{Config, Hook, MARK_SOURCE, Reason};

use super::tunnel;
use crate::{
    hold, host, maps, report,
    skb::{DROP, PASS, Skb},
    work::Work,
};

#[classifier]
pub fn to_tunnel(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::ToTunnel);
    match judge(&skb, work, config) {
        Ok(()) => {
            skb.set_mark_bits(config, 0);
            PASS
        }
        Err(reason) if undecided(reason) => hold::hold(&skb, work, config, reason),
        // The node's own chatter on its device (neighbour discovery, MLD) is not worth an event.
        Err(Reason::HostMade) => {
            report::count(Reason::HostMade);
            DROP
        }
        Err(reason) => report::drop(&skb, work, config, reason as u32),
    }
}

#[inline(always)]
fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    // Only here does a mark open anything, and any process of the node can forge one: what has lost its
    // interface is dropped too, whatever its mark says, unless its socket is a host endpoint's.
    if skb.came_in_by() == 0 {
        work.read(skb)?;
        host::adopt(skb, work, config)?;
        return tunnel::judge(skb, work, config);
    }
    work.read(skb)?;
    if work.mark & MARK_SOURCE == 0 {
        return Err(Reason::Ungated);
    }
    tunnel::judge(skb, work, config)
}

/// What the agent may yet bring about.
#[inline(always)]
fn undecided(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoSession
            | Reason::SessionPending
            | Reason::SessionExpired
            | Reason::SessionCut
            | Reason::RemoteUnknown
            | Reason::RemoteElsewhere
            | Reason::EpochStale
            | Reason::NotAnnounced
            | Reason::Unconfirmed
            | Reason::NoPair
            | Reason::PairExpired
            | Reason::IdentityExpired
            | Reason::Held
    )
}
