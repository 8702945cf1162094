//! The packet as the kernel hands it to a program.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_xfrm_state},
    helpers::{
        bpf_redirect, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skb_change_head,
        bpf_skb_change_type, bpf_skb_get_xfrm_state, bpf_skb_load_bytes,
        bpf_skb_load_bytes_relative, bpf_skb_store_bytes,
    },
    programs::{SkBuffContext, TcContext},
};
use handfast_layout::{Config, MARK_ALL, packet::Source};

use crate::hold::ETHERNET;

/// "Next": another program may still look at it.
pub const PASS: i32 = TC_ACT_UNSPEC;
/// Drop.
pub const DROP: i32 = TC_ACT_SHOT as i32;

/// `BPF_HDR_START_NET` of `linux/bpf.h`.
const FROM_NETWORK_HEADER: u32 = 1;
/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// A packet.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        Self(context.as_ptr().cast())
    }

    /// As a socket sends or receives it: it begins with its network header.
    #[inline(always)]
    pub fn of_socket(context: &SkBuffContext) -> Self {
        Self(context.as_ptr().cast())
    }

    /// The number of the control group at this depth that its socket was made in, or below; 0 if there is none so deep,
    /// or no socket.
    #[inline(always)]
    pub fn cgroup_at(&self, level: u32) -> u64 {
        // SAFETY: a packet.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0.cast(), level as i32) }
    }

    /// The number of the control group that its socket was made in; 0 if it has no socket.
    #[inline(always)]
    pub fn cgroup(&self) -> u64 {
        // SAFETY: a packet.
        unsafe { bpf_skb_cgroup_id(self.0.cast()) }
    }

    // SAFETY of the reads below: the kernel gives a valid context for the whole run, and the
    // verifier rewrites and checks each access.

    #[inline(always)]
    pub fn len(&self) -> u32 {
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        unsafe { (*self.0).mark }
    }

    /// Index of the interface that it came in by; 0 if this node made it, or fragmented it anew after
    /// its connection tracking had reassembled it (IPv6): then it is forwarded and still has its mark.
    #[inline(always)]
    pub fn came_in_by(&self) -> u32 {
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    pub fn ethertype(&self) -> u16 {
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    /// Whether it carries a VLAN tag beside its headers.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        unsafe { (*self.0).vlan_present != 0 }
    }

    /// How many packets this will be on a wire.
    #[inline(always)]
    pub fn segments(&self) -> u32 {
        let segments = unsafe { (*self.0).gso_segs };
        if segments == 0 { 1 } else { segments }
    }

    /// Whose security association it came out of; nothing for a packet that no IPsec has touched. Not inlined:
    /// its stack is free again afterwards.
    #[inline(never)]
    pub fn association(&self) -> Option<u32> {
        let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
        let size = size_of::<bpf_xfrm_state>() as u32;
        // SAFETY: the helper fills all of it or fails.
        unsafe {
            let failed = bpf_skb_get_xfrm_state(self.0.cast(), 0, state.as_mut_ptr(), size, 0);
            (failed == 0).then(|| state.assume_init().reqid)
        }
    }

    /// What lies in front of the network header: nothing or an Ethernet header; another length is no answer. For
    /// packets out of an XFRM device, which has no link header, but whose packets keep that of the interface they came
    /// in by. Not inlined: see above.
    #[inline(never)]
    pub fn link_len(&self) -> Option<u32> {
        // SAFETY: the kernel gives both ends.
        let (start, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let linear = (end - start) as u32;
        if self.network_header_is_within(linear, 0) {
            Some(0)
        } else if self.network_header_is_within(linear, ETHERNET)
            && !self.network_header_is_within(linear, ETHERNET - 1)
        {
            Some(ETHERNET)
        } else {
            None
        }
    }

    /// Whether the network header begins at this many bytes, or before: then, and only then, the linear part has a
    /// byte so far from it. What the bytes say is not asked: their sender could make one header look like the other.
    #[inline(always)]
    fn network_header_is_within(&self, linear: u32, bytes: u32) -> bool {
        let Some(offset) = linear.checked_sub(bytes + 1) else {
            return false;
        };
        let mut byte = 0_u8;
        // SAFETY: the helper fills the byte or fails.
        unsafe {
            let to = (&raw mut byte).cast();
            bpf_skb_load_bytes_relative(self.0.cast(), offset, to, 1, FROM_NETWORK_HEADER) == 0
        }
    }

    /// Replaces our mark bits.
    #[inline(always)]
    pub fn set_mark_bits(&self, config: &Config, bits: u32) {
        let shift = config.mark_shift & 31;
        let mark = (self.mark() & !(MARK_ALL << shift)) | (bits << shift);
        unsafe { (*self.0).mark = mark };
    }

    /// Replaces the whole mark.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        unsafe { (*self.0).mark = mark };
    }

    /// Writes bytes. Whether it could.
    #[inline(always)]
    pub fn store<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        unsafe {
            bpf_skb_store_bytes(self.0.cast(), offset, bytes.as_ptr().cast(), N as u32, 0) == 0
        }
    }

    /// Makes room for a link header in front. Whether it could.
    #[inline(always)]
    pub fn add_head(&self, len: u32) -> bool {
        unsafe { bpf_skb_change_head(self.0, len, 0) == 0 }
    }

    /// Makes it a packet for this node, whatever its link addresses say.
    #[inline(always)]
    pub fn for_us(&self) {
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
    }

    /// Sends it out of an interface, or into it as if it had arrived there.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32, ingress: bool) -> i32 {
        let flags = if ingress { u64::from(BPF_F_INGRESS) } else { 0 };
        unsafe { bpf_redirect(ifindex, flags) as i32 }
    }
}

impl Source for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper fills all N bytes or fails.
        unsafe {
            let failed =
                bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32);
            (failed == 0).then(|| bytes.assume_init())
        }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: the helper fills all N words or fails.
        unsafe {
            let length = (N * 4) as u32;
            let failed =
                bpf_skb_load_bytes(self.0.cast(), offset, words.as_mut_ptr().cast(), length);
            (failed == 0).then(|| words.assume_init())
        }
    }

    #[inline(always)]
    fn near_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        match self.linear(offset) {
            Some(words) => Some(words),
            // A decrypted super-packet has little in its first part.
            None => self.words(offset),
        }
    }
}

impl Skb {
    /// Words of the packet's first part, where most headers are: without a call.
    #[inline(always)]
    fn linear<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        /// The verifier wants a bound; no header begins later.
        const MOST: u32 = 0x7ff;
        // SAFETY: the kernel gives both ends.
        let (start, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        if offset > MOST {
            return None;
        }
        let at = start + offset as usize;
        if at + N * 4 > end {
            return None;
        }
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: it ends before the packet does. The kernel's machine takes it at any address where headers
            // lie at any, as on x86-64 and arm64; elsewhere its verifier says no.
            *word = unsafe { (at as *const u32).add(index).read_volatile() };
        }
        Some(words)
    }
}
