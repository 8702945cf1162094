//! Reads the headers that a decision depends on, from any source of bytes.
//!
//! In the kernel the bytes come from `bpf_skb_load_bytes`, in a fuzzer from a slice: the same code
//! is judged in both places. What is not understood is an error, never a guess: a packet whose
//! headers are cut off, contradict themselves or could change its destination has no verdict but
//! "drop".

pub mod outer;

use crate::{Addr, Reason};

/// ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// IPv4 in IP (RFC 2003).
pub const IPIP: u8 = 4;
/// IGMP (RFC 3376).
pub const IGMP: u8 = 2;
/// TCP (RFC 9293).
pub const TCP: u8 = 6;
/// UDP (RFC 768).
pub const UDP: u8 = 17;
/// IPv6 in IP (RFC 2473).
pub const IPV6: u8 = 41;
/// GRE (RFC 2784).
pub const GRE: u8 = 47;
/// ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// SCTP (RFC 9260).
pub const SCTP: u8 = 132;
/// UDP-Lite (RFC 3828).
pub const UDPLITE: u8 = 136;
/// DCCP (RFC 4340).
pub const DCCP: u8 = 33;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AH: u8 = 51;
const DEST_OPTIONS: u8 = 60;

/// How many IPv6 extension headers are followed. RFC 8200 4.1 knows six kinds.
const MAX_EXTENSIONS: usize = 6;

/// TCP flags that say a connection ends: FIN or RST.
pub const TCP_END: u8 = 0b101;

/// Where bytes come from.
pub trait Source {
    /// The `N` bytes at `offset`, or nothing if the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

impl Source for &[u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

/// IP version, as a link's protocol number says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0x0800.
    V4,
    /// 0x86dd.
    V6,
}

impl Version {
    /// From an ethertype in host order.
    #[inline(always)]
    pub const fn from_ethertype(ethertype: u16) -> Option<Self> {
        match ethertype {
            0x0800 => Some(Self::V4),
            0x86dd => Some(Self::V6),
            _ => None,
        }
    }
}

/// What a packet is, beside its addresses.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Whole, or the first fragment, or of a protocol without ports.
    #[default]
    Plain = 0,
    /// The first of several fragments.
    FirstFragment = 1,
    /// A later fragment: its ports stood in the first one and are 0 here.
    LaterFragment = 2,
    /// An ICMP error: ports, protocol and `flow_*` are those of the flow it is about.
    IcmpError = 3,
}

/// The headers of one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source as written in the IP header.
    pub src: Addr,
    /// Destination as written in the IP header.
    pub dst: Addr,
    /// Source of the flow: `src`, but for an ICMP error the destination of the packet it quotes.
    pub flow_src: Addr,
    /// Destination of the flow: `dst`, but for an ICMP error the source of the packet it quotes.
    pub flow_dst: Addr,
    /// Fragment identification, 0 if not fragmented.
    pub fragment: u32,
    /// Where the transport header begins.
    pub transport: u32,
    /// Port of the flow's source, big endian; the identifier of an ICMP echo.
    pub src_port: u16,
    /// Port of the flow's destination, big endian; the identifier of an ICMP echo.
    pub dst_port: u16,
    /// Protocol of the flow.
    pub proto: u8,
    /// Protocol in the IP header: differs for an ICMP error.
    pub outer_proto: u8,
    /// TCP flags, 0 otherwise.
    pub tcp_flags: u8,
    /// ICMP type, 0 otherwise.
    pub icmp_type: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// What it is.
    pub kind: Kind,
}

/// One IP header and what follows it, before the transport is read.
struct Header {
    src: Addr,
    dst: Addr,
    proto: u8,
    hop_limit: u8,
    /// Offset in units of 8 bytes.
    fragment_offset: u16,
    more_fragments: bool,
    fragment: u32,
    transport: u32,
}

impl Packet {
    /// Reads the packet whose IP header is at `offset`. `self` is overwritten, also on an error;
    /// it is passed in because the kernel's stack is small.
    ///
    /// # Errors
    /// The drop reason.
    #[inline(always)]
    pub fn read(
        &mut self,
        from: &impl Source,
        version: Version,
        offset: u32,
    ) -> Result<(), Reason> {
        let header = match version {
            Version::V4 => read_v4(from, offset, false)?,
            Version::V6 => read_v6(from, offset)?,
        };
        self.src = header.src;
        self.dst = header.dst;
        self.flow_src = header.src;
        self.flow_dst = header.dst;
        self.proto = header.proto;
        self.outer_proto = header.proto;
        self.hop_limit = header.hop_limit;
        self.transport = header.transport;
        self.fragment = 0;
        self.src_port = 0;
        self.dst_port = 0;
        self.tcp_flags = 0;
        self.icmp_type = 0;
        self.kind = Kind::Plain;
        if header.fragment_offset != 0 {
            self.fragment = header.fragment;
            self.kind = Kind::LaterFragment;
            return Ok(());
        }
        if header.more_fragments {
            self.fragment = header.fragment;
            self.kind = Kind::FirstFragment;
        }
        self.read_transport(from, version)
    }

    #[inline(always)]
    fn read_transport(&mut self, from: &impl Source, version: Version) -> Result<(), Reason> {
        let at = self.transport;
        match self.proto {
            TCP => {
                let bytes: [u8; 14] = load(from, at)?;
                let [a, b, c, d, .., flags] = bytes;
                self.src_port = u16::from_ne_bytes([a, b]);
                self.dst_port = u16::from_ne_bytes([c, d]);
                self.tcp_flags = flags;
            }
            UDP | UDPLITE | SCTP | DCCP => {
                let [a, b, c, d, ..] = load::<8>(from, at)?;
                self.src_port = u16::from_ne_bytes([a, b]);
                self.dst_port = u16::from_ne_bytes([c, d]);
            }
            ICMP if matches!(version, Version::V4) => {
                let [kind, _, _, _, a, b, _, _] = load::<8>(from, at)?;
                self.icmp_type = kind;
                match kind {
                    // Echo, timestamp and information requests and replies carry an identifier.
                    0 | 8 | 13..=18 => self.identifier([a, b]),
                    // Unreachable, source quench, time exceeded, parameter problem quote a packet.
                    3 | 4 | 11 | 12 => return self.read_quoted(from, version),
                    // A redirect would move the destination; the rest is not for workloads.
                    5 => return Err(Reason::Options),
                    _ => {}
                }
            }
            ICMPV6 if matches!(version, Version::V6) => {
                let [kind, _, _, _, a, b, _, _] = load::<8>(from, at)?;
                self.icmp_type = kind;
                match kind {
                    128 | 129 => self.identifier([a, b]),
                    1..=4 => return self.read_quoted(from, version),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    #[inline(always)]
    fn identifier(&mut self, bytes: [u8; 2]) {
        self.src_port = u16::from_ne_bytes(bytes);
        self.dst_port = self.src_port;
    }

    /// The packet that an ICMP error quotes went the other way, so its ends change places here.
    #[inline(always)]
    fn read_quoted(&mut self, from: &impl Source, version: Version) -> Result<(), Reason> {
        if self.kind != Kind::Plain {
            return Err(Reason::Malformed);
        }
        let at = self.transport.wrapping_add(8);
        let quoted = match version {
            Version::V4 => read_v4(from, at, true)?,
            Version::V6 => read_v6(from, at)?,
        };
        if quoted.fragment_offset != 0 {
            return Err(Reason::Fragment);
        }
        self.kind = Kind::IcmpError;
        self.flow_src = quoted.dst;
        self.flow_dst = quoted.src;
        self.proto = quoted.proto;
        match quoted.proto {
            TCP | UDP | UDPLITE | SCTP | DCCP => {
                let [a, b, c, d] = load::<4>(from, quoted.transport)?;
                self.dst_port = u16::from_ne_bytes([a, b]);
                self.src_port = u16::from_ne_bytes([c, d]);
            }
            ICMP | ICMPV6 => {
                let [kind, _, _, _, a, b] = load::<6>(from, quoted.transport)?;
                // An error is never about an error (RFC 1122 3.2.2, RFC 4443 2.4e).
                match kind {
                    0 | 8 | 13..=18 if quoted.proto == ICMP => self.identifier([a, b]),
                    128 | 129 if quoted.proto == ICMPV6 => self.identifier([a, b]),
                    _ => return Err(Reason::Malformed),
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[inline(always)]
fn load<const N: usize>(from: &impl Source, at: u32) -> Result<[u8; N], Reason> {
    match from.load(at) {
        Some(bytes) => Ok(bytes),
        None => Err(Reason::Malformed),
    }
}

/// A quoted header may carry options: they do nothing any more.
#[inline(always)]
fn read_v4(from: &impl Source, at: u32, quoted: bool) -> Result<Header, Reason> {
    let [
        vihl,
        _,
        t0,
        t1,
        i0,
        i1,
        f0,
        f1,
        ttl,
        proto,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = load::<20>(from, at)?;
    let header = u32::from(vihl & 0x0f) << 2;
    if vihl >> 4 != 4 || header < 20 {
        return Err(Reason::Malformed);
    }
    // A total length of 0 is a super-packet of segmentation offload (BIG TCP).
    let total = u32::from(u16::from_be_bytes([t0, t1]));
    if !quoted && total != 0 && total < header {
        return Err(Reason::Malformed);
    }
    // Router alert (RFC 2113) stands in every IGMP packet and goes nowhere else.
    if !quoted && header > 20 && proto != IGMP {
        return Err(Reason::Options);
    }
    let fragment = u16::from_be_bytes([f0, f1]);
    Ok(Header {
        src: Addr::v4([s0, s1, s2, s3]),
        dst: Addr::v4([d0, d1, d2, d3]),
        proto,
        hop_limit: ttl,
        fragment_offset: fragment & 0x1fff,
        more_fragments: fragment & 0x2000 != 0,
        fragment: u32::from(u16::from_be_bytes([i0, i1])),
        transport: at.wrapping_add(header),
    })
}

#[inline(always)]
fn read_v6(from: &impl Source, at: u32) -> Result<Header, Reason> {
    let [version, _, _, _, _, _, next, hop_limit] = load::<8>(from, at)?;
    if version >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let mut header = Header {
        src: Addr::v6(load::<16>(from, at.wrapping_add(8))?),
        dst: Addr::v6(load::<16>(from, at.wrapping_add(24))?),
        proto: next,
        hop_limit,
        fragment_offset: 0,
        more_fragments: false,
        fragment: 0,
        transport: at.wrapping_add(40),
    };
    // On the wire a mapped address is forged (RFC 4942 2.2): here it would mean an IPv4 endpoint.
    if header.src.is_v4() || header.dst.is_v4() {
        return Err(Reason::Malformed);
    }
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(
            header.proto,
            HOP_BY_HOP | ROUTING | FRAGMENT | AH | DEST_OPTIONS
        ) {
            return Ok(header);
        }
        let [next, len, o0, o1, i0, i1, i2, i3] = load::<8>(from, header.transport)?;
        let mut length = (u32::from(len) + 1) << 3;
        match header.proto {
            // With segments left the destination is not the last one (RFC 8200 4.4).
            ROUTING if o1 != 0 => return Err(Reason::Options),
            FRAGMENT => {
                // Two fragment headers are nobody's honest work.
                if header.fragment_offset != 0 || header.more_fragments {
                    return Err(Reason::Malformed);
                }
                let field = u16::from_be_bytes([o0, o1]);
                header.fragment_offset = field >> 3;
                header.more_fragments = field & 1 != 0;
                header.fragment = u32::from_be_bytes([i0, i1, i2, i3]);
                length = 8;
            }
            AH => length = (u32::from(len) + 2) << 2,
            _ => {}
        }
        header.proto = next;
        header.transport = header.transport.wrapping_add(length);
        if header.fragment_offset != 0 {
            return Ok(header);
        }
    }
    if matches!(
        header.proto,
        HOP_BY_HOP | ROUTING | FRAGMENT | AH | DEST_OPTIONS
    ) {
        return Err(Reason::Malformed);
    }
    Ok(header)
}

#[cfg(test)]
mod tests;
