//! Packet headers, read by the code that the eBPF programs run: what it says stands in the bytes.

use handfast_layout::packet::{
    DCCP, Kind, Packet, SCTP, Source, TCP, UDP, UDPLITE, Version, outer,
};
use handfast_layout::{Addr, HOLD_META_LEN, HoldMeta};

/// The length of an Ethernet header: where packets begin on a workload's link.
const LINK: u32 = 14;

pub fn run(data: &[u8]) {
    for (version, ethertype) in [(Version::V4, 0x0800), (Version::V6, 0x86dd)] {
        // The tripwire understands no less than the gates do.
        let seen = outer::read(&data, ethertype, 0);
        if let Some(seen) = &seen {
            let _ = outer::inside(&data, seen);
        }
        let mut packet = Packet::default();
        let result = packet.read(&data, version, 0);
        if result.is_ok() {
            check(&packet, version, data);
            assert_eq!(
                seen.map(|seen| (seen.src, seen.dst)),
                Some((packet.src, packet.dst))
            );
        }
        // Behind a link header it says the same.
        let framed = [&[0; LINK as usize], data].concat();
        let mut again = Packet::default();
        assert_eq!(again.read(&framed.as_slice(), version, LINK), result);
        if result.is_ok() {
            packet.transport += LINK;
            assert_eq!(again, packet);
        }
    }
    if let Some(bytes) = data.first_chunk::<HOLD_META_LEN>()
        && let Some(meta) = HoldMeta::from_bytes(*bytes)
    {
        assert_eq!(&meta.to_bytes(), bytes);
    }
}

fn check(packet: &Packet, version: Version, data: &[u8]) {
    let (src, dst) = match version {
        Version::V4 => (Addr::v4(bytes(data, 12)), Addr::v4(bytes(data, 16))),
        Version::V6 => (Addr::v6(bytes(data, 8)), Addr::v6(bytes(data, 24))),
    };
    assert_eq!((packet.src, packet.dst), (src, dst));
    assert_eq!(
        src.is_v4(),
        matches!(version, Version::V4),
        "an address of the other family"
    );
    match packet.kind {
        Kind::LaterFragment => assert_eq!((packet.src_port, packet.dst_port), (0, 0)),
        // Only the receiver of a packet answers it with an error to its sender.
        Kind::IcmpError => assert_ne!(packet.icmp_type, 0),
        Kind::Plain | Kind::FirstFragment => {
            assert_eq!((packet.flow_src, packet.flow_dst), (src, dst));
            assert_eq!(packet.proto, packet.outer_proto);
            if matches!(packet.proto, TCP | UDP | UDPLITE | SCTP | DCCP) {
                let ports = [packet.src_port.to_ne_bytes(), packet.dst_port.to_ne_bytes()];
                assert_eq!(ports.concat(), bytes::<4>(data, packet.transport));
            }
        }
    }
}

fn bytes<const N: usize>(data: &[u8], at: u32) -> [u8; N] {
    data.load(at).expect("what was read is there")
}

pub fn seeds() -> Vec<Vec<u8>> {
    let (a, b) = ([10, 99, 1, 10], [10, 99, 2, 10]);
    let tcp = [
        &[0x9c, 0x40, 0, 80][..],
        &[0; 8],
        &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0],
    ]
    .concat();
    let udp = [0x9c, 0x40, 0, 53, 0, 8, 0, 0];
    let echo = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let error = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &v4(0, 17, b, a, &udp)].concat();
    let error6 = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &v6(6, 2, 1, &tcp)].concat();
    let fragment6 = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp].concat();
    let options6 = [&[44, 0, 1, 4, 0, 0, 0, 0][..], &fragment6].concat();
    let routing6 = [&[6, 2, 4, 1, 0, 0, 0, 0][..], &[0; 16], &tcp].concat();
    let vxlan = [
        &[0, 9, 18, 181, 0, 58, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0][..],
        &[0; 12],
        &[8, 0],
        &v4(0, UDP, a, b, &udp),
    ]
    .concat();
    let gre = [
        &[0xb0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &v4(0, UDP, a, b, &udp),
    ]
    .concat();
    let meta = HoldMeta {
        hook: handfast_layout::Hook::ToTunnel,
        discard: false,
        endpoint: 7,
        ticket: 9,
    };
    vec![
        v4(0, TCP, a, b, &tcp),
        v4(0, UDP, a, b, &udp),
        v4(0, 1, a, b, &echo),
        v4(0, 1, b, a, &error),
        v4(0x2000, UDP, a, b, &udp),
        v4(0x0003, UDP, a, b, &udp),
        v4(0, UDP, a, b, &vxlan),
        v4(0, 47, a, b, &gre),
        v4(0, 41, a, b, &v6(TCP, 1, 2, &tcp)),
        v6(TCP, 1, 2, &tcp),
        v6(58, 2, 1, &error6),
        v6(44, 1, 2, &fragment6),
        v6(60, 1, 2, &options6),
        v6(43, 1, 2, &routing6),
        [&meta.to_bytes()[..], &[8, 0], &v4(0, TCP, a, b, &tcp)].concat(),
    ]
}

fn v4(fragment: u16, proto: u8, src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).expect("a short packet");
    let [t0, t1] = total.to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let head = [0x45, 0, t0, t1, 0, 7, f0, f1, 64, proto, 0, 0];
    [&head[..], &src, &dst, payload].concat()
}

fn v6(next: u8, src: u8, dst: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = u16::try_from(payload.len())
        .expect("a short packet")
        .to_be_bytes();
    let address = |host| {
        let mut address = [0; 16];
        address[..6].copy_from_slice(&[0xfd, 0, 0, 0x99, 0, 1]);
        address[15] = host;
        address
    };
    let head = [0x60, 0, 0, 0, l0, l1, next, 64];
    [&head[..], &address(src), &address(dst), payload].concat()
}
