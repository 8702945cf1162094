//! The parser on slices; the kernel's side of the same code is tested with the gates.

use super::{outer, *};

const ME: [u8; 4] = [10, 1, 0, 7];
const THEM: [u8; 4] = [10, 2, 0, 9];

fn v4(src: [u8; 4], dst: [u8; 4], proto: u8, payload: &[u8]) -> ([u8; 128], usize) {
    let mut bytes = [0; 128];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    bytes[8] = 64;
    bytes[9] = proto;
    bytes[12..16].copy_from_slice(&src);
    bytes[16..20].copy_from_slice(&dst);
    bytes[20..20 + payload.len()].copy_from_slice(payload);
    (bytes, 20 + payload.len())
}

fn read(bytes: &[u8], version: Version) -> Result<Packet, Reason> {
    let mut packet = Packet::default();
    packet.read(&bytes, version, 0).map(|()| packet)
}

const SYN: [u8; 20] = [
    0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
];

#[test]
fn a_tcp_packet_gives_its_flow() {
    let (bytes, length) = v4(ME, THEM, TCP, &SYN);
    let packet = read(&bytes[..length], Version::V4).unwrap();
    assert_eq!((packet.src, packet.dst), (Addr::v4(ME), Addr::v4(THEM)));
    assert_eq!((packet.flow_src, packet.flow_dst), (packet.src, packet.dst));
    assert_eq!(
        (u16::from_be(packet.src_port), u16::from_be(packet.dst_port)),
        (40000, 80)
    );
    assert_eq!(
        (packet.proto, packet.tcp_flags, packet.transport),
        (TCP, 2, 20)
    );
}

#[test]
fn every_shorter_packet_is_malformed() {
    let (bytes, _) = v4(ME, THEM, TCP, &SYN);
    for length in 0..34 {
        assert_eq!(
            read(&bytes[..length], Version::V4),
            Err(Reason::Malformed),
            "{length}"
        );
        assert_eq!(
            read(&bytes[..length.min(39)], Version::V6),
            Err(Reason::Malformed)
        );
    }
}

#[test]
fn an_icmp_error_turns_the_flow_that_it_quotes_round() {
    let (quoted, length) = v4(ME, THEM, TCP, &SYN);
    let mut error = [0; 64];
    error[0] = 3;
    error[8..8 + length].copy_from_slice(&quoted[..length]);
    let (bytes, length) = v4([192, 0, 2, 1], ME, ICMP, &error[..8 + length]);
    let packet = read(&bytes[..length], Version::V4).unwrap();
    assert_eq!(packet.kind, Kind::IcmpError);
    assert_eq!((packet.proto, packet.outer_proto), (TCP, ICMP));
    assert_eq!(
        (packet.flow_src, packet.flow_dst),
        (Addr::v4(THEM), Addr::v4(ME))
    );
    assert_eq!(
        (u16::from_be(packet.src_port), u16::from_be(packet.dst_port)),
        (80, 40000)
    );
}

#[test]
fn an_error_about_an_error_is_malformed() {
    let mut inner = [0; 8];
    inner[0] = 3;
    let (quoted, length) = v4(ME, THEM, ICMP, &inner);
    let mut error = [0; 64];
    error[0] = 11;
    error[8..8 + length].copy_from_slice(&quoted[..length]);
    let (bytes, length) = v4(THEM, ME, ICMP, &error[..8 + length]);
    assert_eq!(read(&bytes[..length], Version::V4), Err(Reason::Malformed));
}

#[test]
fn fragments_are_told_apart() {
    let (mut bytes, length) = v4(ME, THEM, UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
    bytes[4..6].copy_from_slice(&[1, 2]);
    bytes[6] = 0x20;
    let first = read(&bytes[..length], Version::V4).unwrap();
    assert_eq!((first.kind, first.fragment), (Kind::FirstFragment, 0x0102));
    bytes[6..8].copy_from_slice(&[0, 3]);
    let later = read(&bytes[..length], Version::V4).unwrap();
    assert_eq!(
        (later.kind, later.src_port, later.dst_port),
        (Kind::LaterFragment, 0, 0)
    );
}

#[test]
fn the_tripwire_sees_through_geneve_options() {
    let (inner, inner_length) = v4(ME, THEM, TCP, &SYN);
    let mut payload = [0; 96];
    payload[2..4].copy_from_slice(&6081u16.to_be_bytes());
    payload[8] = 2; // eight bytes of options
    payload[10..12].copy_from_slice(&0x0800u16.to_be_bytes());
    payload[24..24 + inner_length].copy_from_slice(&inner[..inner_length]);
    let (bytes, length) = v4(
        [192, 0, 2, 1],
        [192, 0, 2, 2],
        UDP,
        &payload[..24 + inner_length],
    );
    let packet = &bytes[..length];
    let seen = outer::read(&packet, 0x0800, 0).unwrap();
    let within = outer::inside(&packet, &seen).unwrap();
    assert_eq!((within.src, within.dst), (Addr::v4(ME), Addr::v4(THEM)));
}
