//! Addresses only, bare and inside an encapsulation: what the tripwire looks at.
//!
//! It watches everything that a node sends and receives, so what it does not understand is none of
//! its business: nothing here judges, it only finds addresses.

use super::{DEST_OPTIONS, GRE, HOP_BY_HOP, IPIP, IPV6, Source, UDP};
use crate::Addr;

/// VXLAN (RFC 7348), and the port that Linux used before it had one.
const VXLAN: [u16; 2] = [4789, 8472];
/// Geneve (RFC 8926).
const GENEVE: u16 = 6081;
/// Ethernet in GRE and Geneve (RFC 7637).
const TRANSPARENT_ETHERNET: u16 = 0x6558;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];

/// What one IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// What follows.
    pub proto: u8,
    /// Where it follows.
    pub transport: u32,
}

/// The addresses behind a link header of this length, VLAN tags (up to two) skipped.
#[inline(always)]
pub fn read(from: &impl Source, ethertype: u16, link_len: u32) -> Option<Outer> {
    let (mut ethertype, mut at) = (ethertype, link_len);
    for _ in 0..2 {
        if ethertype == VLAN[0] || ethertype == VLAN[1] {
            let [_, _, a, b] = from.load::<4>(at)?;
            ethertype = u16::from_be_bytes([a, b]);
            at = at.wrapping_add(4);
        }
    }
    header(from, ethertype, at)
}

/// The addresses inside VXLAN, Geneve, IP in IP or GRE, if it is one of these.
#[inline(always)]
pub fn inside(from: &impl Source, outer: &Outer) -> Option<Outer> {
    let at = outer.transport;
    match outer.proto {
        IPIP => header(from, ETHERTYPE_V4, at),
        IPV6 => header(from, ETHERTYPE_V6, at),
        GRE => {
            let [flags, _, a, b] = from.load::<4>(at)?;
            // Checksum, key and sequence number are four bytes each (RFC 2890).
            let optional =
                u32::from(flags >> 7) + u32::from(flags >> 5 & 1) + u32::from(flags >> 4 & 1);
            payload(
                from,
                u16::from_be_bytes([a, b]),
                at.wrapping_add(4 + optional * 4),
            )
        }
        UDP => {
            let [_, _, a, b] = from.load::<4>(at)?;
            let port = u16::from_be_bytes([a, b]);
            if port == VXLAN[0] || port == VXLAN[1] {
                return payload(from, TRANSPARENT_ETHERNET, at.wrapping_add(16));
            }
            if port != GENEVE {
                return None;
            }
            let [version_and_len, _, a, b] = from.load::<4>(at.wrapping_add(8))?;
            let options = u32::from(version_and_len & 0x3f) * 4;
            payload(
                from,
                u16::from_be_bytes([a, b]),
                at.wrapping_add(16 + options),
            )
        }
        _ => None,
    }
}

#[inline(always)]
fn payload(from: &impl Source, ethertype: u16, at: u32) -> Option<Outer> {
    if ethertype != TRANSPARENT_ETHERNET {
        return header(from, ethertype, at);
    }
    let [a, b] = from.load::<2>(at.wrapping_add(12))?;
    read(from, u16::from_be_bytes([a, b]), at.wrapping_add(14))
}

#[inline(always)]
fn header(from: &impl Source, ethertype: u16, at: u32) -> Option<Outer> {
    match ethertype {
        ETHERTYPE_V4 => {
            let [length, _, proto, src, dst] = from.words(at)?;
            Some(Outer {
                src: Addr::v4_word(src),
                dst: Addr::v4_word(dst),
                proto: (u32::from_be(proto) >> 16) as u8,
                transport: at.wrapping_add((u32::from_be(length) >> 24 & 0x0f) << 2),
            })
        }
        ETHERTYPE_V6 => {
            let [_, next, s0, s1, s2, s3, d0, d1, d2, d3] = from.words(at)?;
            let mut outer = Outer {
                src: Addr::v6_words([s0, s1, s2, s3]),
                dst: Addr::v6_words([d0, d1, d2, d3]),
                proto: (u32::from_be(next) >> 8) as u8,
                transport: at.wrapping_add(40),
            };
            // A Linux tunnel puts its encapsulation limit into a destination option (RFC 2473 4.1.1).
            for _ in 0..2 {
                if outer.proto == DEST_OPTIONS || outer.proto == HOP_BY_HOP {
                    let [next, len] = from.load::<2>(outer.transport)?;
                    outer.proto = next;
                    outer.transport = outer.transport.wrapping_add((u32::from(len) + 1) << 3);
                }
            }
            Some(outer)
        }
        _ => None,
    }
}
