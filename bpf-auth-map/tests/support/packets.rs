//! Packets, made by hand so that they can be wrong.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const RST: u8 = 4;

/// An Ethernet frame around an IP packet.
pub fn frame(ip: &[u8]) -> Vec<u8> {
    let ethertype: u16 = if ip.first().is_some_and(|b| b >> 4 == 6) {
        0x86dd
    } else {
        0x0800
    };
    link(ethertype, ip)
}

/// An Ethernet frame of any kind.
pub fn link(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IP packet of either family.
pub fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (20 + payload.len()) as u16;
            let mut bytes = vec![0x45, 0];
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 64, proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(payload);
            bytes
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([proto, 64]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend(payload);
            bytes
        }
        _ => panic!("one family"),
    }
}

/// ICMP of the address's family.
pub fn icmp_proto(address: IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 58 }
}

pub fn tcp(src_port: u16, dst_port: u16, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(src_port.to_be_bytes());
    bytes.extend(dst_port.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    bytes
}

pub fn udp(src_port: u16, dst_port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(src_port.to_be_bytes());
    bytes.extend(dst_port.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

/// An echo request.
pub fn echo(address: IpAddr, identifier: u16) -> Vec<u8> {
    let kind = if address.is_ipv4() { 8 } else { 128 };
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// An error (destination unreachable) about a packet.
pub fn unreachable(quoted: &[u8]) -> Vec<u8> {
    let kind = if quoted.first().is_some_and(|b| b >> 4 == 6) {
        1
    } else {
        3
    };
    let mut bytes = vec![kind, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(quoted);
    bytes
}

/// A fragment, of whatever family: offset in units of eight bytes.
pub fn fragment(
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    if src.is_ipv4() {
        let mut bytes = ip(src, dst, proto, payload);
        let field = offset | if more { 0x2000 } else { 0 };
        bytes[4..6].copy_from_slice(&77u16.to_be_bytes());
        bytes[6..8].copy_from_slice(&field.to_be_bytes());
        return bytes;
    }
    let mut header = vec![proto, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend(77u32.to_be_bytes());
    header.extend(payload);
    ip(src, dst, 44, &header)
}
