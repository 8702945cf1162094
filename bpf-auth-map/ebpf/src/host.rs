//! Workloads of the node itself: packets that no interface brought in, told by the control group of their socket.

use handfast_layout::{
    Addr, CGROUP_ROOT, Config, Host, MARK_SOURCE, Reason,
    packet::{ICMP, ICMPV6, Kind, Source, TCP, TCP_RST, Version},
};

use crate::{
    maps::{CONNECTIONS, HOSTS},
    skb::Skb,
    work::Work,
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Whose socket a packet has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// One of the host endpoint's.
    Own,
    /// None, or one of the kernel's own: resets, the last acknowledgement of a connection, ICMP.
    Kernel,
    /// Somebody else's.
    Other,
}

/// Whose socket a packet from or to a host endpoint's address has.
#[inline(always)]
pub fn socket(skb: &Skb, host: &Host) -> Socket {
    if skb.cgroup_at(host.level) == host.cgroup {
        return Socket::Own;
    }
    match skb.cgroup() {
        0 | CGROUP_ROOT => Socket::Kernel,
        _ => Socket::Other,
    }
}

/// The host endpoint's entry of an address.
#[inline(always)]
pub fn entry(addr: &Addr) -> Option<&'static Host> {
    // SAFETY: integers; an entry that the agent replaces is replaced as a whole.
    unsafe { HOSTS.get(addr) }
}

/// Both addresses of a packet that begins with its network header, as written.
#[inline(always)]
pub fn ends(skb: &Skb) -> Option<(Addr, Addr)> {
    match Version::from_ethertype(skb.ethertype())? {
        Version::V4 => {
            let [source, destination] = skb.words(12)?;
            Some((Addr::v4_word(source), Addr::v4_word(destination)))
        }
        Version::V6 => {
            let [a, b, c, d, e, f, g, h] = skb.words(8)?;
            Some((Addr::v6_words([a, b, c, d]), Addr::v6_words([e, f, g, h])))
        }
    }
}

/// The source gate of what the node itself sends with a host endpoint's address, which stands in `work.packet`: from
/// here on it is a workload's packet like any other. Not inlined: it is seldom needed, and its stack is free again.
#[inline(never)]
pub fn adopt(skb: &Skb, work: &mut Work, config: &Config) -> Result<(), Reason> {
    let Some(host) = entry(&work.packet.src) else {
        return Err(Reason::HostMade);
    };
    work.endpoint = host.endpoint;
    match socket(skb, host) {
        Socket::Own => {}
        Socket::Kernel if is_kernels(work) => {}
        _ => return Err(Reason::OtherWorkload),
    }
    skb.set_mark_bits(config, MARK_SOURCE);
    work.mark = MARK_SOURCE;
    Ok(())
}

/// Whether the kernel itself sends this for a workload: about a flow that is known, and nothing that a socket which took
/// the port over could begin.
#[inline(always)]
fn is_kernels(work: &mut Work) -> bool {
    let packet = &work.packet;
    let fits = match packet.outer_proto {
        ICMP | ICMPV6 => true,
        TCP => packet.tcp_flags & TCP_RST != 0 || packet.tcp_flags & (SYN | ACK) == ACK,
        _ => false,
    };
    if !fits || !matches!(packet.kind, Kind::Plain | Kind::IcmpError) {
        return false;
    }
    // Between two endpoints of this node a flow is kept as the called one sees it.
    work.set_key(false);
    if CONNECTIONS.get_ptr(&work.key).is_some() {
        return true;
    }
    work.set_key(true);
    CONNECTIONS.get_ptr(&work.key).is_some()
}
