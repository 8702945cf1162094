//! to-endpoint: what enters a workload, on the host's side of its interface.
//!
//! Lets through what another gate of ours has decided, decides between endpoints of this node and
//! from outside the mesh, and drops the rest. No identity of another node is taken from an address
//! here: after service translation the address may be a virtual one.

use aya_ebpf::{macros::classifier, programs::TcContext};
use handfast_layout::{
    AUTH_DISABLED, Config, HOST_DENIED, Hook, IDENTITY_HOST, IDENTITY_UNKNOWN, IDENTITY_WORLD,
    MARK_SOURCE, PEER_SELF, Reason, is_decided,
    packet::{Kind, UDP},
};

use super::{local, outside};
use crate::{
    flow, hold, host,
    maps::{self, LOCALS},
    policy::Allowed,
    proof, report,
    skb::{DROP, PASS, Skb},
    work::Work,
};

const ETHERTYPE_ARP: u16 = 0x0806;

#[classifier]
pub fn to_endpoint(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let (Some(config), Some(work)) = (maps::config(), maps::work()) else {
        return DROP;
    };
    work.begin(&skb, config, Hook::ToEndpoint);
    let Some(endpoint) = maps::endpoint(skb.ifindex()) else {
        work.unread();
        return report::drop(&skb, work, config, Reason::NoEndpoint as u32);
    };
    work.endpoint = endpoint;
    match judge(&skb, work, config) {
        Ok(()) => PASS,
        Err(
            reason
            @ (Reason::NoPair | Reason::PairExpired | Reason::IdentityExpired | Reason::Held),
        ) => hold::hold(&skb, work, config, reason),
        Err(reason) => report::drop(&skb, work, config, reason as u32),
    }
}

#[inline(always)]
fn judge(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    if skb.ethertype() == ETHERTYPE_ARP {
        report::count(Reason::Link);
        return Ok(());
    }
    work.read(skb)?;
    // A forwarded packet that was reassembled and fragmented again has lost the interface that it
    // came in by, but not its mark; and whatever is forwarded has one.
    let is_homeless = skb.came_in_by() == 0;
    let by_host = is_homeless && work.mark == 0;
    if is_link_traffic(work, is_homeless, by_host) {
        report::count(Reason::Link);
        return Ok(());
    }
    let (source, destination) = (work.packet.src, work.packet.dst);
    let endpoint = work.endpoint;
    let found = proof::local(work, destination);
    let is_own = work.endpoint == endpoint;
    work.endpoint = endpoint;
    if found.is_err() || !is_own {
        return Err(Reason::OtherEndpoint);
    }
    // A workload of the node itself.
    let is_hosts = is_homeless && host::entry(&source).is_some();
    if is_hosts {
        host::adopt(skb, work, config)?;
        if local::reply_of_host(work, config)? {
            return Ok(());
        }
    }
    // The node's processes can forge a mark: it gets them no more than they may without.
    if is_homeless && !is_hosts {
        if config.flags & HOST_DENIED != 0 {
            return Err(Reason::HostDenied);
        }
        proof::revoked(work)?;
    }
    if by_host && !is_hosts {
        by_node(skb, work, config);
        return Ok(());
    }
    if is_decided(work.mark) {
        report::count(Reason::Passed);
        return Ok(());
    }
    flow::fragments(work)?;
    work.set_key(false);
    // An error is about a packet that this endpoint sent.
    if work.key.local != destination {
        return Err(Reason::IcmpNoFlow);
    }
    // SAFETY: two integers, read once.
    if let Some(other) = unsafe { LOCALS.get(&source) } {
        if work.mark & MARK_SOURCE == 0 {
            return Err(Reason::Ungated);
        }
        if work.key.remote != source {
            return Err(Reason::IcmpNoFlow);
        }
        work.remote_identity = other.identity;
        return local::judge(skb, work, config, other.endpoint, source);
    }
    match work.prefix(source) {
        Some(PEER_SELF) => return Err(Reason::NoEndpoint),
        // Where either node is joining the address is known, and nothing else.
        Some(_) if work.is_joining(config) && work.key.remote == source => {
            work.remote_identity = IDENTITY_UNKNOWN;
            outside::judge(skb, work, config)?;
            report::count(Reason::WireJoining);
            return Ok(());
        }
        Some(peer) => {
            work.peer = peer;
            return Err(Reason::Cleartext);
        }
        None => {}
    }
    // A router's error is judged by the flow that it is about.
    let remote = work.key.remote;
    if work.packet.kind == Kind::IcmpError && work.prefix(remote).is_some() {
        return Err(Reason::IcmpNoFlow);
    }
    // What came in by an interface is not the node's, whatever address it shows.
    work.remote_identity = match work.outside(remote) {
        IDENTITY_HOST => IDENTITY_WORLD,
        identity => identity,
    };
    outside::judge(skb, work, config)
}

/// What the node itself sends is allowed, and its replies with it.
#[inline(always)]
fn by_node(skb: &Skb, work: &mut Work, config: &Config) {
    report::count(Reason::Host);
    if work.packet.kind != Kind::Plain {
        return;
    }
    work.remote_identity = IDENTITY_HOST;
    work.set_key(false);
    if let Some(connection) = flow::known(work) {
        flow::touch(work, connection);
        return;
    }
    // Kept so that the reply is known; if there is no room, only that is lost.
    let allowed = Allowed {
        rule: 0,
        auth: AUTH_DISABLED,
        encryption: 0,
    };
    let _ = flow::open(skb, work, config, allowed);
}

/// Neighbour discovery, MLD, and DHCP from the node.
#[inline(always)]
fn is_link_traffic(work: &Work, is_homeless: bool, by_host: bool) -> bool {
    let packet = &work.packet;
    if packet.proto == UDP {
        let (client4, server4) = (68u16.to_be(), 67u16.to_be());
        let (client6, server6) = (546u16.to_be(), 547u16.to_be());
        let ports = (packet.src_port, packet.dst_port);
        return by_host && (ports == (server4, client4) || ports == (server6, client6));
    }
    // Neither source is ever forwarded. The mark of the node's own reports means nothing.
    let membership = work.is_membership()
        && (packet.src.is_v6_link_local() || (is_homeless && packet.src.is_unspecified()));
    membership || work.is_neighbour_discovery()
}
