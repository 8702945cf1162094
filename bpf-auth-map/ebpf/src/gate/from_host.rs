//! from-host: what sockets of this node send. Attached to the root of control groups while there is a host endpoint, and
//! (connect, sendmsg) to the control group of each.
//!
//! A host endpoint's address is its workload's alone, and is for the mesh only: everything else on this machine has other
//! addresses, which none of this concerns. What goes to another node is judged by to-tunnel.
//!
//! Unlike the other gates these run where they may be interrupted: they keep everything on their own stack.

use aya_ebpf::{
    bindings::{bpf_sock_addr, sockaddr},
    helpers::bpf_bind,
    macros::{cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use handfast_layout::{Addr, LpmKey, PEER_SELF, Reason};

use crate::{
    host::{self, Socket},
    maps::{self, LOCALS},
    report,
    skb::Skb,
};

const PASS: i32 = 1;
const DROP: i32 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cgroup_skb(egress)]
pub fn from_host(context: SkBuffContext) -> i32 {
    let skb = Skb::of_socket(&context);
    let Some((source, destination)) = host::ends(&skb) else {
        return PASS;
    };
    let Some(host) = host::entry(&source) else {
        return PASS;
    };
    let reason = match host::socket(&skb, host) {
        Socket::Other => Reason::OtherWorkload,
        _ if prefix(destination).is_none() => Reason::NotManaged,
        _ => return PASS,
    };
    report::drop_from_host(&skb, host.endpoint, reason, source, destination);
    DROP
}

#[inline(always)]
fn prefix(addr: Addr) -> Option<u32> {
    let key = LpmKey {
        prefix_len: 128,
        data: addr,
    };
    maps::prefix(&key).map(|prefix| prefix.peer)
}

/// Whether a socket that talks to this address is to use its endpoint's.
#[inline(always)]
fn is_in_mesh(addr: Addr) -> bool {
    match prefix(addr) {
        // SAFETY: only whether it is there.
        Some(PEER_SELF) => unsafe { LOCALS.get(&addr) }.is_some(),
        Some(_) => true,
        None => false,
    }
}

#[cgroup_sock_addr(connect4)]
pub fn host_connect4(context: SockAddrContext) -> i32 {
    let socket = context.sock_addr;
    // SAFETY of these programs' accesses: the kernel gives a valid context, and the verifier checks each.
    let remote = Addr::v4_word(unsafe { (*socket).user_ip4 });
    if is_in_mesh(remote)
        && let Some(source) = maps::source(true)
    {
        bind4(socket, source);
    }
    PASS
}

#[cgroup_sock_addr(connect6)]
pub fn host_connect6(context: SockAddrContext) -> i32 {
    let socket = context.sock_addr;
    let remote = Addr::v6_words(unsafe { (*socket).user_ip6 });
    if is_in_mesh(remote)
        && let Some(source) = maps::source(remote.is_v4())
    {
        bind6(socket, source);
    }
    PASS
}

#[cgroup_sock_addr(sendmsg4)]
pub fn host_sendmsg4(context: SockAddrContext) -> i32 {
    let socket = context.sock_addr;
    let (remote, bound) = unsafe { ((*socket).user_ip4, (*socket).msg_src_ip4) };
    if bound == 0
        && is_in_mesh(Addr::v4_word(remote))
        && let Some(source) = maps::source(true)
    {
        unsafe { (*socket).msg_src_ip4 = last(source) };
    }
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn host_sendmsg6(context: SockAddrContext) -> i32 {
    let socket = context.sock_addr;
    let (remote, bound) = unsafe { ((*socket).user_ip6, (*socket).msg_src_ip6) };
    let remote = Addr::v6_words(remote);
    if Addr::v6_words(bound) == Addr::NONE
        && !remote.is_v4()
        && is_in_mesh(remote)
        && let Some(source) = maps::source(false)
    {
        unsafe { (*socket).msg_src_ip6 = source.words() };
    }
    PASS
}

#[inline(always)]
fn last(addr: Addr) -> u32 {
    let [.., last] = addr.words();
    last
}

/// `struct sockaddr_in`.
#[repr(C)]
struct SocketAddress4 {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct SocketAddress6 {
    family: u16,
    port: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

/// Gives the socket a source, unless it has chosen one.
#[inline(always)]
fn bind4(socket: *mut bpf_sock_addr, source: Addr) {
    let mut address = SocketAddress4 {
        family: AF_INET,
        port: 0,
        address: last(source),
        zero: [0; 2],
    };
    let length = size_of::<SocketAddress4>() as i32;
    unsafe { bpf_bind(socket, (&raw mut address).cast::<sockaddr>(), length) };
}

#[inline(always)]
fn bind6(socket: *mut bpf_sock_addr, source: Addr) {
    let mut address = SocketAddress6 {
        family: AF_INET6,
        port: 0,
        flow: 0,
        address: source.words(),
        scope: 0,
    };
    let length = size_of::<SocketAddress6>() as i32;
    unsafe { bpf_bind(socket, (&raw mut address).cast::<sockaddr>(), length) };
}
