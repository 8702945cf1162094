//! from-endpoint: what a workload sends, on the host's side of its interface.
//!
//! The source must be the endpoint's. Our mark bits are overwritten. Replies on one node are
//! decided here, where their addresses are true; what goes to an address outside the mesh is asked
//! of policy here, but may be a service's: then only those who see the true address decide.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{
    Addr, Config, Hook, IDENTITY_UNKNOWN, MARK_DECIDED, MARK_SOURCE, MARK_UNDECIDED, PEER_SELF,
    Reason,
    packet::{ICMPV6, Kind, Source, UDP},
};

use super::outside;
use crate::{
    flow,
    maps::{self, LOCALS},
    proof, report,
    skb::{DROP, PASS, Skb},
    work::Work,
};

const ETHERTYPE_ARP: u16 = 0x0806;

#[classifier]
pub fn from_endpoint(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::FromEndpoint);
    skb.set_mark_bits(config, 0);
    let Some(endpoint) = maps::endpoint(skb.ifindex()) else {
        work.unread();
        return report::drop(&skb, work, config, Reason::NoEndpoint as u32);
    };
    work.endpoint = endpoint;
    match judge(&skb, work, config) {
        Ok(marks) => {
            skb.set_mark_bits(config, marks);
            PASS
        }
        Err(reason) => report::drop(&skb, work, config, reason as u32),
    }
}

/// The mark bits of a packet that is not dropped. Never none: that would be the node's own.
#[inline(always)]
fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<u32, Reason> {
    // The tag would lead it past what is judged here.
    if skb.is_tagged() {
        work.unread();
        return Err(Reason::NotIp);
    }
    if skb.ethertype() == ETHERTYPE_ARP {
        work.unread();
        arp(skb, work)?;
        report::count(Reason::Link);
        return Ok(MARK_SOURCE);
    }
    work.read(skb)?;
    if is_link_traffic(skb, work) {
        report::count(Reason::Link);
        let dst = work.packet.dst;
        // Not beyond the link: the kernel forwards neighbour discovery like anything else.
        return match dst.is_multicast() || dst.is_v6_link_local() {
            true => Ok(MARK_SOURCE),
            false => Ok(MARK_SOURCE | MARK_UNDECIDED),
        };
    }
    own(work, work.packet.src)?;
    flow::fragments(work)?;
    work.set_key(true);
    // An error that the workload sends is about a packet that was sent to it.
    if work.key.local != work.packet.src {
        return Err(Reason::IcmpNoFlow);
    }
    let remote = work.key.remote;
    let mut in_clear = false;
    let is_here = match work.prefix(remote) {
        // To another node: to-tunnel judges. While either node is joining nothing goes there, and the address is known
        // here, and nothing else.
        Some(peer) if peer != PEER_SELF => {
            if !work.is_joining(config) {
                return Ok(MARK_SOURCE);
            }
            in_clear = true;
            false
        }
        // SAFETY: only whether it is there.
        Some(_) => unsafe { LOCALS.get(&remote) }.is_some(),
        None => false,
    };
    if is_here {
        // A reply is decided here, what is new at the called one's to-endpoint.
        return match super::local::reply(work, config, remote)? {
            true => Ok(MARK_SOURCE | MARK_DECIDED),
            false => Ok(MARK_SOURCE),
        };
    }
    // Outside the mesh; or in this node's prefix and no endpoint's: an address of the node itself.
    work.remote_identity = match in_clear {
        true => IDENTITY_UNKNOWN,
        false => work.outside(remote),
    };
    match outside_or_host(skb, work, config) {
        Ok(()) => Ok(MARK_SOURCE),
        // What may be a service's address: that of a node's prefix is true.
        Err(Reason::NoRule | Reason::Denied | Reason::NoIdentity | Reason::IcmpNoFlow)
            if !in_clear =>
        {
            Ok(MARK_SOURCE | MARK_UNDECIDED)
        }
        Err(reason) => Err(reason),
    }
}

/// A reply to the node itself belongs to a flow that to-endpoint opened for the host.
#[inline(always)]
fn outside_or_host(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    let identity = work.remote_identity;
    work.remote_identity = handfast_layout::IDENTITY_HOST;
    if let Some(connection) = flow::known(work) {
        flow::touch(work, connection);
        return proof::revoked(work);
    }
    work.remote_identity = identity;
    outside::judge(skb, work, config)
}

/// The source is the endpoint's own, and known.
#[inline(always)]
fn own(work: &mut Work, addr: Addr) -> Result<(), Reason> {
    let endpoint = work.endpoint;
    let found = proof::local(work, addr);
    let is_own = work.endpoint == endpoint;
    work.endpoint = endpoint;
    match found {
        Ok(()) if is_own => Ok(()),
        _ => Err(Reason::Spoofed),
    }
}

/// The sender of an ARP packet must be the endpoint, or have no address yet (RFC 5227 probe).
#[inline(always)]
fn arp(skb: &Skb, work: &mut Work) -> Result<(), Reason> {
    let Some([s0, s1, s2, s3]) = skb.load::<4>(work.link_len + 14) else {
        return Err(Reason::Malformed);
    };
    let sender = Addr::v4([s0, s1, s2, s3]);
    if sender.is_unspecified() {
        return Ok(());
    }
    work.packet.src = sender;
    own(work, sender)
}

/// Neighbour discovery, MLD and DHCP of one who says of itself only what is true.
#[inline(always)]
fn is_link_traffic(skb: &Skb, work: &mut Work) -> bool {
    let packet = &work.packet;
    let nowhere = packet.src.is_unspecified();
    if packet.proto == UDP {
        let (client4, server4) = (68u16.to_be(), 67u16.to_be());
        let (client6, server6) = (546u16.to_be(), 547u16.to_be());
        let ports = (packet.src_port, packet.dst_port);
        return (nowhere && packet.dst.is_multicast() && ports == (client4, server4))
            || (packet.src.is_v6_link_local()
                && packet.dst.is_multicast()
                && ports == (client6, server6));
    }
    if packet.outer_proto != ICMPV6 || packet.kind != Kind::Plain {
        return false;
    }
    let (src, kind) = (packet.src, packet.icmp_type);
    let (on_link, target_at) = (packet.hop_limit == 255, packet.transport + 8);
    let anonymous = nowhere || src.is_v6_link_local();
    match kind {
        // MLD (RFC 2710, RFC 3810).
        131 | 132 | 143 => anonymous && packet.dst.is_multicast(),
        // Router and neighbour solicitation.
        133 | 135 => on_link && (anonymous || own(work, src).is_ok()),
        // An advertisement of its own address only. (Routers are not workloads: no 134, no 137.)
        136 if on_link && (anonymous || own(work, src).is_ok()) => {
            match skb.load::<16>(target_at) {
                Some(target) => {
                    let target = Addr::v6(target);
                    target.is_v6_link_local() || own(work, target).is_ok()
                }
                None => false,
            }
        }
        _ => false,
    }
}
