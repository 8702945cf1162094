//! Holding: what is counted, what is remembered in the kernel, and what travels with the frame.
//!
//! A held packet leaves the kernel through the hold device with twelve bytes of ours in place of
//! its Ethernet addresses. They carry a ticket; what is needed to give the packet back (where it
//! was taken, its mark, its own addresses, how much was counted) stays in the kernel under that
//! ticket, so that a frame can be given back once only and nothing in it has to be believed.

use crate::{Addr, Hook, maps::no_holes};

/// What a count in `holds` is about.
pub mod quota {
    /// Packets between an endpoint and a remote address.
    pub const PAIR: u8 = 0;
    /// All packets of an endpoint.
    pub const ENDPOINT: u8 = 1;
    /// All packets from or to a peer.
    pub const PEER: u8 = 2;
}

/// Key of `holds`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldKey {
    /// The endpoint; the peer where `quota` is [`quota::PEER`].
    pub endpoint: u32,
    /// [`INGRESS`](crate::INGRESS) or [`EGRESS`](crate::EGRESS) of the endpoint.
    pub direction: u8,
    /// [`quota`].
    pub quota: u8,
    /// Unused, 0.
    pub reserved: u16,
    /// The other side's address; [`Addr::NONE`] unless `quota` is [`quota::PAIR`].
    pub remote: Addr,
}

/// What is held: `holds`, `hold_total`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldValue {
    /// Packets; a segmentation-offloaded one counts as its segments.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A packet that is out on the hold device: `parked`, by ticket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// What it was counted under (with [`quota::PAIR`]).
    pub key: HoldKey,
    /// The peer, for its quota; 0 for a pair on this node.
    pub peer: u32,
    /// Packets counted.
    pub packets: u32,
    /// Bytes counted.
    pub bytes: u32,
    /// Interface where it was taken.
    pub ifindex: u32,
    /// Its mark.
    pub mark: u32,
    /// [`Hook`] where it was taken.
    pub hook: u32,
    /// Its own Ethernet addresses, if the interface has such.
    pub link: [u8; 12],
    /// Length of the link header where it was taken.
    pub link_len: u32,
}

no_holes! {
    HoldKey = 4 1 1 2 16 => 24;
    HoldValue = 8 8 => 16;
    Parked = 24 4 4 4 4 4 4 12 4 => 64;
}

/// Length of [`HoldMeta`] in the frame: the two Ethernet addresses.
pub const HOLD_META_LEN: usize = 12;

/// Set in the first byte of a frame that comes back: un-count it and drop it.
pub const DISCARD: u8 = 0x80;

/// What stands in place of the Ethernet addresses of a held frame:
/// hook, 0, endpoint (4 bytes, big endian), ticket (4 bytes, big endian), 0, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldMeta {
    /// Where it was taken.
    pub hook: Hook,
    /// Given back to be dropped.
    pub discard: bool,
    /// The endpoint that it is for or from.
    pub endpoint: u32,
    /// What it is remembered under in the kernel.
    pub ticket: u32,
}

impl HoldMeta {
    /// As it stands in the frame.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; HOLD_META_LEN] {
        let first = self.hook as u8 | if self.discard { DISCARD } else { 0 };
        let [a, b, c, d] = self.endpoint.to_be_bytes();
        let [e, f, g, h] = self.ticket.to_be_bytes();
        [first, 0, a, b, c, d, e, f, g, h, 0, 0]
    }

    /// From the first bytes of a frame; nothing if no gate wrote them.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; HOLD_META_LEN]) -> Option<Self> {
        let [first, zero, a, b, c, d, e, f, g, h, y, z] = bytes;
        if zero != 0 || y != 0 || z != 0 {
            return None;
        }
        match Hook::from_number(first & !DISCARD) {
            Some(hook @ (Hook::ToTunnel | Hook::FromTunnel | Hook::ToEndpoint)) => Some(Self {
                hook,
                discard: first & DISCARD != 0,
                endpoint: u32::from_be_bytes([a, b, c, d]),
                ticket: u32::from_be_bytes([e, f, g, h]),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_comes_back_as_it_was() {
        for hook in [Hook::ToTunnel, Hook::FromTunnel, Hook::ToEndpoint] {
            for discard in [false, true] {
                let meta = HoldMeta {
                    hook,
                    discard,
                    endpoint: 7,
                    ticket: 0xdead_beef,
                };
                assert_eq!(HoldMeta::from_bytes(meta.to_bytes()), Some(meta));
            }
        }
    }

    #[test]
    fn an_ordinary_frame_has_no_meta() {
        assert_eq!(HoldMeta::from_bytes([0xff; 12]), None);
        assert_eq!(HoldMeta::from_bytes([0; 12]), None);
        assert_eq!(
            HoldMeta::from_bytes([0x33, 0x33, 0, 0, 0, 22, 2, 0, 0, 0, 0, 1]),
            None
        );
    }
}
