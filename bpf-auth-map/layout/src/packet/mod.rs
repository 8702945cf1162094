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

/// TCP flag: this side has nothing more to say.
pub const TCP_FIN: u8 = 0b001;
/// TCP flag: the connection ends at once.
pub const TCP_RST: u8 = 0b100;

/// Where bytes come from.
pub trait Source {
    /// The `N` bytes at `offset`, or nothing if the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The `N` words at `offset`, in memory order, or nothing if the packet is shorter. Cheaper than bytes: the
    /// kernel's machine has no loads that are not aligned, and would fetch each byte by itself.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// The same, where it is worth something to have them fast: of the headers that every packet has. The kernel
    /// follows both ways for each such place, so there are few.
    #[inline(always)]
    fn near_words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.words(offset)
    }
}

impl Source for &[u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N.checked_mul(4)?)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
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
    /// For ICMP the type that begins flows of this kind (see [`request_of`]); for an error about an ICMP
    /// packet that packet's; 0 otherwise.
    pub flow_type: u8,
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
            Version::V6 => read_v6(from, offset, false)?,
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
        self.flow_type = 0;
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
                let [ports, _, _, flags] = near(from, at)?;
                self.ports(ports);
                self.tcp_flags = (u32::from_be(flags) >> 16) as u8;
            }
            UDP | UDPLITE | SCTP | DCCP => {
                let [ports, _] = words(from, at)?;
                self.ports(ports);
            }
            ICMP if matches!(version, Version::V4) => {
                let kind = self.read_icmp(from, at)?;
                match kind {
                    // Unreachable, source quench, time exceeded, parameter problem quote a packet.
                    3 | 4 | 11 | 12 => return self.read_quoted(from, version),
                    // A redirect would move the destination; the rest is not for workloads.
                    5 => return Err(Reason::Options),
                    _ => {}
                }
            }
            ICMPV6 if matches!(version, Version::V6) => {
                let kind = self.read_icmp(from, at)?;
                if matches!(kind, 1..=4) {
                    return self.read_quoted(from, version);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Type, and the identifier where there is one.
    #[inline(always)]
    fn read_icmp(&mut self, from: &impl Source, at: u32) -> Result<u8, Reason> {
        let [kind, identifier] = words(from, at)?;
        let kind = (u32::from_be(kind) >> 24) as u8;
        self.icmp_type = kind;
        self.flow_type = request_of(self.proto, kind);
        if has_identifier(self.proto, kind) {
            self.identifier(identifier);
        }
        Ok(kind)
    }

    /// Both ports, as the first word of the header has them.
    #[inline(always)]
    fn ports(&mut self, word: u32) {
        let word = u32::from_be(word);
        self.src_port = ((word >> 16) as u16).to_be();
        self.dst_port = (word as u16).to_be();
    }

    #[inline(always)]
    fn identifier(&mut self, word: u32) {
        self.src_port = ((u32::from_be(word) >> 16) as u16).to_be();
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
            Version::V6 => read_v6(from, at, true)?,
        };
        if quoted.fragment_offset != 0 {
            return Err(Reason::Fragment);
        }
        self.kind = Kind::IcmpError;
        self.flow_type = 0;
        self.flow_src = quoted.dst;
        self.flow_dst = quoted.src;
        self.proto = quoted.proto;
        match quoted.proto {
            TCP | UDP | UDPLITE | SCTP | DCCP => {
                let [ports] = words(from, quoted.transport)?;
                // The quoted packet's source is the flow's destination.
                self.ports(ports.rotate_left(16));
            }
            ICMP | ICMPV6 => {
                let [kind, identifier] = words(from, quoted.transport)?;
                let kind = (u32::from_be(kind) >> 24) as u8;
                // An error is never about an error (RFC 1122 3.2.2, RFC 4443 2.4e), and what has no
                // identifier has no flow that could be told from others.
                if !has_identifier(quoted.proto, kind) {
                    return Err(Reason::Malformed);
                }
                self.flow_type = request_of(quoted.proto, kind);
                self.identifier(identifier);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether ICMP packets of this type carry an identifier: echo, timestamp, information and address mask
/// requests and their replies (RFC 792, RFC 950), echo in ICMPv6 (RFC 4443).
#[inline(always)]
pub const fn has_identifier(proto: u8, kind: u8) -> bool {
    match proto {
        ICMP => matches!(kind, 0 | 8 | 13..=18),
        _ => matches!(kind, 128 | 129),
    }
}

/// The type that an exchange with packets of this type begins with: the request's for a reply, its own otherwise.
#[inline(always)]
pub const fn request_of(proto: u8, kind: u8) -> u8 {
    match (proto, kind) {
        (ICMP, 0) => 8,
        (ICMP, 14 | 16 | 18) => kind - 1,
        (ICMPV6, 129) => 128,
        _ => kind,
    }
}

#[inline(always)]
fn words<const N: usize>(from: &impl Source, at: u32) -> Result<[u32; N], Reason> {
    match from.words(at) {
        Some(words) => Ok(words),
        None => Err(Reason::Malformed),
    }
}

#[inline(always)]
fn near<const N: usize>(from: &impl Source, at: u32) -> Result<[u32; N], Reason> {
    match from.near_words(at) {
        Some(words) => Ok(words),
        None => Err(Reason::Malformed),
    }
}

/// A quoted header may carry options: they do nothing any more.
#[inline(always)]
fn read_v4(from: &impl Source, at: u32, quoted: bool) -> Result<Header, Reason> {
    let [length, fragment, proto, src, dst] = match quoted {
        true => words(from, at)?,
        false => near(from, at)?,
    };
    let (length, fragment, proto) = (
        u32::from_be(length),
        u32::from_be(fragment),
        u32::from_be(proto),
    );
    let header = (length >> 24 & 0x0f) << 2;
    if length >> 28 != 4 || header < 20 {
        return Err(Reason::Malformed);
    }
    // A total length of 0 is a super-packet of segmentation offload (BIG TCP).
    let total = length & 0xffff;
    if !quoted && total != 0 && total < header {
        return Err(Reason::Malformed);
    }
    let (hop_limit, proto) = ((proto >> 24) as u8, (proto >> 16) as u8);
    // Router alert (RFC 2113) stands in every IGMP packet and goes nowhere else.
    if !quoted && header > 20 && proto != IGMP {
        return Err(Reason::Options);
    }
    Ok(Header {
        src: Addr::v4_word(src),
        dst: Addr::v4_word(dst),
        proto,
        hop_limit,
        fragment_offset: (fragment & 0x1fff) as u16,
        more_fragments: fragment & 0x2000 != 0,
        fragment: fragment >> 16,
        transport: at.wrapping_add(header),
    })
}

#[inline(always)]
fn read_v6(from: &impl Source, at: u32, quoted: bool) -> Result<Header, Reason> {
    let [version, next, s0, s1, s2, s3, d0, d1, d2, d3] = match quoted {
        true => words(from, at)?,
        false => near(from, at)?,
    };
    let next = u32::from_be(next);
    if u32::from_be(version) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let mut header = Header {
        src: Addr::v6_words([s0, s1, s2, s3]),
        dst: Addr::v6_words([d0, d1, d2, d3]),
        proto: (next >> 8) as u8,
        hop_limit: next as u8,
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
        let [first, identification] = words(from, header.transport)?;
        let first = u32::from_be(first);
        let (next, len, field) = ((first >> 24) as u8, first >> 16 & 0xff, first as u16);
        let mut length = (len + 1) << 3;
        match header.proto {
            // With segments left the destination is not the last one (RFC 8200 4.4).
            ROUTING if field & 0xff != 0 => return Err(Reason::Options),
            FRAGMENT => {
                // Two fragment headers are nobody's honest work.
                if header.fragment_offset != 0 || header.more_fragments {
                    return Err(Reason::Malformed);
                }
                header.fragment_offset = field >> 3;
                header.more_fragments = field & 1 != 0;
                header.fragment = u32::from_be(identification);
                length = 8;
            }
            AH => length = (len + 2) << 2,
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
