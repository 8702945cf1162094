//! to-host: what a socket of this node receives. Attached to the root of control groups while there is a host endpoint.
//!
//! A host endpoint's address is its workload's alone: others on this machine receive nothing at it, and it receives only
//! what a gate has decided. What comes from another endpoint of this node is decided here, since no interface of its own
//! has a gate; nothing can be held here, so a first packet without a proof is dropped.

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};
use handfast_layout::{
    Addr, Config, Hook, Host, LOOPBACK, MARK_OUTSIDE, MARK_SOURCE, Reason, is_decided, packet::Kind,
};

use super::local;
use crate::{
    host::{self, Socket},
    maps::{self, LOCALS},
    proof, report,
    skb::Skb,
    work::Work,
};

const PASS: i32 = 1;
const DROP: i32 = 0;

#[cgroup_skb(ingress)]
pub fn to_host(context: SkBuffContext) -> i32 {
    let skb = Skb::of_socket(&context);
    let Some((_, destination)) = host::ends(&skb) else {
        return PASS;
    };
    let Some(host) = host::entry(&destination) else {
        return PASS;
    };
    let (Some(config), Some(work)) = (maps::config(), maps::host_work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::ToHost);
    work.link_len = 0;
    work.endpoint = host.endpoint;
    match judge(&skb, work, config, host, destination) {
        Ok(()) => PASS,
        Err(reason) => {
            report::drop(&skb, work, config, reason as u32);
            DROP
        }
    }
}

#[inline(always)]
fn judge(
    skb: &Skb,
    work: &mut Work,
    config: &Config,
    host: &Host,
    destination: Addr,
) -> Result<(), Reason> {
    work.read(skb)?;
    if host::socket(skb, host) != Socket::Own {
        return Err(Reason::OtherWorkload);
    }
    let by = skb.came_in_by();
    // What the node sends to itself comes in by the loopback interface, with whatever mark its sender has chosen.
    let looped = by == 0 || by == LOOPBACK;
    if !looped && is_decided(work.mark) {
        report::count(Reason::Passed);
        return Ok(());
    }
    let source = work.packet.src;
    match looped {
        // from-host has looked whose socket it was.
        true if host::entry(&source).is_none() => return Err(Reason::HostMade),
        false if work.mark & (MARK_SOURCE | MARK_OUTSIDE) != MARK_SOURCE => {
            return Err(Reason::Cleartext);
        }
        _ => {}
    }
    // Sockets get whole packets, and no errors.
    if work.packet.kind != Kind::Plain {
        return Err(Reason::Fragment);
    }
    // SAFETY: two integers, read once.
    let Some(other) = (unsafe { LOCALS.get(&source) }) else {
        return Err(Reason::Spoofed);
    };
    // A workload and itself.
    if other.endpoint == host.endpoint {
        report::count(Reason::Passed);
        return Ok(());
    }
    if looped && local::reply_of_host(work, config)? {
        return Ok(());
    }
    proof::local(work, destination)?;
    if work.endpoint != host.endpoint {
        return Err(Reason::OtherEndpoint);
    }
    work.remote_identity = other.identity;
    work.set_key(false);
    local::judge(skb, work, config, other.endpoint, source)
}
