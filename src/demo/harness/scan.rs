//! Does a frame of the underlay show a workload's address in clear? Encapsulations are looked into.
//!
//! Written apart from the gates' own parser on purpose: a mistake there must not be repeated here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// How deep encapsulations are followed.
const MAX_DEPTH: u8 = 4;

/// A frame that shows what it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clear {
    /// The source that can be read.
    pub source: IpAddr,
    /// The destination that can be read.
    pub destination: IpAddr,
    /// What was around it.
    pub wrapping: Wrapping,
}

/// What a packet was wrapped in, the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrapping {
    /// Nothing.
    Plain,
    /// An ARP request or reply.
    Arp,
    /// VXLAN.
    Vxlan,
    /// Geneve.
    Geneve,
    /// IP in IP, any of the four combinations.
    IpInIp,
    /// GRE.
    Gre,
    /// The quotation of an ICMP error.
    IcmpError,
}

/// Looks for an address of `watched` in an Ethernet frame.
pub fn scan(frame: &[u8], watched: &[IpNet]) -> Option<Clear> {
    ethernet(frame, watched, Wrapping::Plain, MAX_DEPTH)
}

/// The source of an untagged IP frame.
pub fn source(frame: &[u8]) -> Option<IpAddr> {
    let packet = match be16(frame, 12)? {
        0x0800 => ipv4(frame.get(14..)?)?,
        0x86dd => ipv6(frame.get(14..)?)?,
        _ => return None,
    };
    Some(packet.source)
}

/// True for an ESP packet, or a WireGuard message to or from one of these UDP ports.
pub fn is_tunnelled(frame: &[u8], ports: &[u16]) -> bool {
    let inner = match be16(frame, 12) {
        Some(0x0800) => frame.get(14..).and_then(ipv4),
        Some(0x86dd) => frame.get(14..).and_then(ipv6),
        _ => None,
    };
    let Some(packet) = inner else { return false };
    let udp = packet.payload;
    let esp = packet.protocol == ESP && udp.len() > ESP_HEADER;
    let wireguard = packet.protocol == UDP
        && [be16(udp, 0), be16(udp, 2)]
            .into_iter()
            .flatten()
            .any(|port| ports.contains(&port))
        && matches!(udp.get(8..12), Some([1..=4, 0, 0, 0]));
    esp || wireguard
}

const ICMP: u8 = 1;
const IPIP: u8 = 4;
const UDP: u8 = 17;
const IP6IP: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;
/// Its index and sequence number (RFC 4303 section 2).
const ESP_HEADER: usize = 8;
const ICMPV6: u8 = 58;
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
const GENEVE_PORT: u16 = 6081;

struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Empty for all but the first fragment.
    payload: &'a [u8],
}

fn ethernet(frame: &[u8], watched: &[IpNet], wrapping: Wrapping, depth: u8) -> Option<Clear> {
    let mut kind = be16(frame, 12)?;
    let mut at = 14;
    while matches!(kind, 0x8100 | 0x88a8 | 0x9100) {
        kind = be16(frame, at + 2)?;
        at += 4;
    }
    let rest = frame.get(at..)?;
    match kind {
        0x0806 => arp(rest, watched),
        kind => ether_type(kind, rest, watched, wrapping, depth),
    }
}

fn ether_type(
    kind: u16,
    rest: &[u8],
    watched: &[IpNet],
    wrapping: Wrapping,
    depth: u8,
) -> Option<Clear> {
    match kind {
        0x0800 => network(ipv4(rest)?, watched, wrapping, depth),
        0x86dd => network(ipv6(rest)?, watched, wrapping, depth),
        // Transparent Ethernet bridging, inside GRE and Geneve.
        0x6558 => ethernet(rest, watched, wrapping, depth.checked_sub(1)?),
        _ => None,
    }
}

fn network(packet: Packet<'_>, watched: &[IpNet], wrapping: Wrapping, depth: u8) -> Option<Clear> {
    let hit = |address: IpAddr| watched.iter().any(|net| net.contains(&address));
    if hit(packet.source) || hit(packet.destination) {
        return Some(Clear {
            source: packet.source,
            destination: packet.destination,
            wrapping,
        });
    }
    let depth = depth.checked_sub(1)?;
    let payload = packet.payload;
    match packet.protocol {
        IPIP => network(ipv4(payload)?, watched, Wrapping::IpInIp, depth),
        IP6IP => network(ipv6(payload)?, watched, Wrapping::IpInIp, depth),
        GRE => gre(payload, watched, depth),
        UDP => udp(payload, watched, depth),
        ICMP if matches!(payload.first(), Some(3 | 4 | 5 | 11 | 12)) => network(
            ipv4(payload.get(8..)?)?,
            watched,
            Wrapping::IcmpError,
            depth,
        ),
        ICMPV6 if matches!(payload.first(), Some(1..=127)) => network(
            ipv6(payload.get(8..)?)?,
            watched,
            Wrapping::IcmpError,
            depth,
        ),
        _ => None,
    }
}

fn udp(datagram: &[u8], watched: &[IpNet], depth: u8) -> Option<Clear> {
    let port = be16(datagram, 2)?;
    let body = datagram.get(8..)?;
    if VXLAN_PORTS.contains(&port) {
        return ethernet(body.get(8..)?, watched, Wrapping::Vxlan, depth);
    }
    if port == GENEVE_PORT {
        let options = usize::from(body.first()? & 0x3f) * 4;
        let kind = be16(body, 2)?;
        return ether_type(
            kind,
            body.get(8 + options..)?,
            watched,
            Wrapping::Geneve,
            depth,
        );
    }
    None
}

fn gre(header: &[u8], watched: &[IpNet], depth: u8) -> Option<Clear> {
    let flags = be16(header, 0)?;
    let kind = be16(header, 2)?;
    // Checksum, key and sequence number are there if their bits are (RFC 2784, RFC 2890).
    let optional = [0x8000, 0x2000, 0x1000]
        .iter()
        .filter(|bit| flags & **bit != 0)
        .count();
    let rest = header.get(4 + 4 * optional..)?;
    ether_type(kind, rest, watched, Wrapping::Gre, depth)
}

fn arp(body: &[u8], watched: &[IpNet]) -> Option<Clear> {
    let source = v4(body, 14)?;
    let destination = v4(body, 24)?;
    let hit = |address| watched.iter().any(|net| net.contains(&address));
    (hit(source) || hit(destination)).then_some(Clear {
        source,
        destination,
        wrapping: Wrapping::Arp,
    })
}

fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    if first >> 4 != 4 {
        return None;
    }
    let header = usize::from(first & 0x0f) * 4;
    let later_fragment = be16(bytes, 6)? & 0x1fff != 0;
    Some(Packet {
        source: v4(bytes, 12)?,
        destination: v4(bytes, 16)?,
        protocol: *bytes.get(9)?,
        payload: match later_fragment {
            true => &[],
            false => bytes.get(header..).unwrap_or_default(),
        },
    })
}

fn ipv6(bytes: &[u8]) -> Option<Packet<'_>> {
    if bytes.first()? >> 4 != 6 {
        return None;
    }
    let mut protocol = *bytes.get(6)?;
    let mut payload = bytes.get(40..).unwrap_or_default();
    // Hop-by-hop, routing, fragment, destination options: a bounded walk.
    for _ in 0..8 {
        let length = match protocol {
            0 | 43 | 60 => match payload.get(1) {
                Some(length) => usize::from(*length) * 8 + 8,
                None => break,
            },
            44 => {
                if be16(payload, 2).is_none_or(|offset| offset & 0xfff8 != 0) {
                    payload = &[];
                    break;
                }
                8
            }
            _ => break,
        };
        protocol = payload.first().copied().unwrap_or(59);
        payload = payload.get(length..).unwrap_or_default();
    }
    Some(Packet {
        source: v6(bytes, 8)?,
        destination: v6(bytes, 24)?,
        protocol,
        payload,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(field.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(field).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let field: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(field).into())
}

/// Frames that a capture must find, to prove that it sees: one for each kind of wrapping.
pub mod canary {
    use super::*;

    /// Builds a frame for every wrapping, between two workload addresses, on the underlay from `outer.0` to
    /// `outer.1`; `mac` is the destination's hardware address, the source's is zero but for a local bit.
    pub fn frames(
        inner: (Ipv4Addr, Ipv4Addr),
        inner6: (Ipv6Addr, Ipv6Addr),
        outer: (Ipv4Addr, Ipv4Addr),
        payload: &[u8],
    ) -> Vec<(Wrapping, Vec<u8>)> {
        let datagram = udp(1000, 1000, payload);
        let packet = ip4(inner.0, inner.1, UDP, &datagram);
        let packet6 = ip6(inner6.0, inner6.1, UDP, &datagram);
        let frame = frame(0x0800, &packet);
        let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0], frame.as_slice()].concat();
        let geneve = [&[0, 0, 0x65, 0x58, 0, 0, 7, 0], frame.as_slice()].concat();
        let gre = [&[0, 0, 0x08, 0], packet.as_slice()].concat();
        let gre_key = [&[0x20, 0, 0x86, 0xdd, 0, 0, 0, 9], packet6.as_slice()].concat();
        let error = [&[3, 1, 0, 0, 0, 0, 0, 0], packet.as_slice()].concat();
        let over = |protocol, body: &[u8]| {
            super::canary::frame(0x0800, &ip4(outer.0, outer.1, protocol, body))
        };
        vec![
            (Wrapping::Plain, frame),
            (Wrapping::Plain, super::canary::frame(0x86dd, &packet6)),
            (Wrapping::Vxlan, over(UDP, &udp(1001, 4789, &vxlan))),
            (Wrapping::Vxlan, over(UDP, &udp(1001, 8472, &vxlan))),
            (
                Wrapping::Geneve,
                over(UDP, &udp(1001, GENEVE_PORT, &geneve)),
            ),
            (Wrapping::IpInIp, over(IPIP, &packet)),
            (Wrapping::IpInIp, over(IP6IP, &packet6)),
            (Wrapping::Gre, over(GRE, &gre)),
            (Wrapping::Gre, over(GRE, &gre_key)),
            (Wrapping::IcmpError, over(ICMP, &error)),
        ]
    }

    fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1]);
        frame.extend(kind.to_be_bytes());
        frame.extend(body);
        frame
    }

    fn length(of: usize) -> [u8; 2] {
        u16::try_from(of).unwrap_or(u16::MAX).to_be_bytes()
    }

    fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
        [
            from.to_be_bytes().as_slice(),
            &to.to_be_bytes(),
            &length(body.len() + 8),
            &[0, 0],
            body,
        ]
        .concat()
    }

    fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0];
        header.extend(length(body.len() + 20));
        header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        let mut sum: u32 = header
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from(sum & 0xffff).unwrap_or_default();
        if let Some(field) = header.get_mut(10..12) {
            field.copy_from_slice(&checksum.to_be_bytes());
        }
        header.extend(body);
        header
    }

    fn ip6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length(body.len()));
        header.extend([protocol, 64]);
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(body);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Vec<IpNet> {
        vec![
            "10.77.0.0/16".parse().unwrap(),
            "fd77::/32".parse().unwrap(),
        ]
    }

    fn canaries() -> Vec<(Wrapping, Vec<u8>)> {
        canary::frames(
            ("10.77.1.9".parse().unwrap(), "10.77.2.9".parse().unwrap()),
            ("fd77::1".parse().unwrap(), "fd77::2".parse().unwrap()),
            ("172.31.0.1".parse().unwrap(), "172.31.0.2".parse().unwrap()),
            b"payload",
        )
    }

    #[test]
    fn a_workload_address_is_found_plain_and_in_every_encapsulation() {
        for (wrapping, frame) in canaries() {
            let found = scan(&frame, &watched()).unwrap_or_else(|| panic!("{wrapping:?} unseen"));
            assert_eq!(found.wrapping, wrapping);
        }
    }

    #[test]
    fn a_vlan_tag_hides_nothing() {
        for (wrapping, frame) in canaries() {
            let tagged = [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
            assert_eq!(
                scan(&tagged, &watched()).map(|c| c.wrapping),
                Some(wrapping)
            );
        }
    }

    #[test]
    fn arp_for_a_workload_is_found() {
        let mut frame = vec![0; 42];
        frame[12..14].copy_from_slice(&[8, 6]);
        frame[38..42].copy_from_slice(&[10, 77, 2, 2]);
        assert_eq!(
            scan(&frame, &watched()).map(|c| c.wrapping),
            Some(Wrapping::Arp)
        );
    }

    #[test]
    fn other_addresses_are_no_finding() {
        let others = [
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        for (_, frame) in canaries() {
            assert_eq!(scan(&frame, &others), None);
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_read_without_a_panic() {
        for (_, frame) in canaries() {
            for length in 0..frame.len() {
                scan(&frame[..length], &watched());
                is_tunnelled(&frame[..length], &[4789]);
            }
        }
    }
}
