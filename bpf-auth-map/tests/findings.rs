//! What experiments with real packets showed, each kept as a test. Where:
//!
//! | finding | test |
//! |---|---|
//! | a held packet to a service address is given back to the very hook it was taken from: no retransmission, one conntrack entry, `rp_filter=1`, both families, offloaded packets whole | `hold.rs` |
//! | the mark of a packet survives the node, forged ones open nothing, and a packet that lost its interface is judged by its mark | `endpoint.rs`, `fragments.rs` |
//! | addresses are true at the tunnel and at the replier's own link only: replies on one node are decided there | `endpoint.rs` |
//! | a CNI's masquerade does not touch what goes into the tunnel | `encrypt/tests/host.rs` |
//! | host-made packets pass by rule, neighbours and DHCP are never held | `endpoint.rs` |
//! | errors follow the flow that they quote, path MTU discovery among them | `tunnel.rs`, `icmp.rs`, here |
//! | super-packets with 52 linear bytes are read whole | `hold.rs` (offloaded), here (any length) |
//! | programs return "next" and come first, by tcx and by clsact, and replace themselves without a gap | `loading.rs`, `hold.rs` |
//! | fragments lose their interface and keep their mark | `fragments.rs` |
//! | an established packet costs a connection, an epoch and a pair | `short_way.rs`, `cost.rs` |
//! | tagged frames, extension headers, other protocols, cut and hostile packets | here |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::net::IpAddr;

use handfast_bpf::*;
use support::{packets::*, run::*};

const SCTP: u8 = 132;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;
/// Every program that a packet from anywhere may meet.
const PROGRAMS: [(&str, Came); 6] = [
    ("from_endpoint", FORWARDED),
    ("to_tunnel", GATED),
    ("from_tunnel", FORWARDED),
    ("to_endpoint", GATED),
    ("wire_ingress", FORWARDED),
    ("wire_egress", FORWARDED),
];

/// Puts VLAN tags into a frame.
fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 42]);
    }
    bytes.extend(&frame[12..]);
    bytes
}

/// Extension headers of these kinds, in this order, before a TCP segment.
fn extended(a: &Addresses, kinds: &[u8]) -> Vec<u8> {
    let mut payload = tcp(40000, 80, SYN);
    let mut next = TCP;
    for kind in kinds.iter().rev() {
        // Routing with no segments left, a fragment that is the only one, AH of 16 bytes, the others of 8.
        let mut header = vec![next, 0, 0, 0, 0, 0, 0, 0];
        if *kind == AUTHENTICATION {
            header[1] = 2;
            header.extend([0; 8]);
        }
        header.extend(payload);
        (payload, next) = (header, *kind);
    }
    frame(&ip(a.me, a.them, next, &payload))
}

#[test]
fn tags_hide_nothing_from_the_wire_and_pass_no_gate() {
    let Some(mut node) = Node::new("tags") else {
        return;
    };
    for a in families() {
        let bare = frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, SYN)));
        for tags in [&[0x8100u16][..], &[0x88a8, 0x8100], &[0x8100, 0x8100]] {
            let packet = tagged(&bare, tags);
            for (program, reason) in [
                ("wire_egress", Reason::WireOut),
                ("wire_ingress", Reason::WireIn),
                ("from_endpoint", Reason::NotIp),
                ("to_tunnel", Reason::NotIp),
                ("from_tunnel", Reason::NotIp),
                ("to_endpoint", Reason::NotIp),
            ] {
                let outcome = node.run(program, GATED, &packet);
                assert_eq!(outcome, Outcome::Drop(reason), "{program} {tags:x?}");
            }
        }
    }
}

#[test]
fn extension_headers_are_followed_to_the_ports_behind_them() {
    let [_, a] = families();
    for (index, kinds) in [
        &[HOP_BY_HOP][..],
        &[OPTIONS],
        &[ROUTING],
        &[AUTHENTICATION],
        &[FRAGMENT],
        &[
            HOP_BY_HOP,
            OPTIONS,
            ROUTING,
            FRAGMENT,
            AUTHENTICATION,
            OPTIONS,
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let Some(mut node) = Node::new(&format!("extended-{index}")) else {
            return;
        };
        let port = |port| Ports::Prefix {
            protocol: TCP,
            port,
            bits: 16,
        };
        let mut judged_by = |number| {
            let entry = rule(Direction::Egress, THEM, port(number), allow(Auth::Required));
            node.tables().replace_policy(ENDPOINT, &[entry]).unwrap();
            node.run("to_tunnel", GATED, &extended(&a, kinds))
        };
        assert_eq!(judged_by(81), Outcome::Drop(Reason::NoRule), "{kinds:?}");
        assert_eq!(judged_by(80), Outcome::Pass(0), "{kinds:?}");
    }
}

#[test]
fn headers_that_lead_astray_are_dropped_by_name() {
    let Some(mut node) = Node::new("astray") else {
        return;
    };
    let [_, a] = families();
    let mut with = |packet: &[u8]| node.run("to_tunnel", GATED, packet);
    let one_too_many = extended(&a, &[OPTIONS; 7]);
    assert_eq!(with(&one_too_many), Outcome::Drop(Reason::Malformed));
    let mut segments_left = extended(&a, &[ROUTING]);
    segments_left[14 + 40 + 3] = 1;
    assert_eq!(with(&segments_left), Outcome::Drop(Reason::Options));
    let mut beyond = extended(&a, &[OPTIONS]);
    beyond[14 + 40 + 1] = 255;
    assert_eq!(with(&beyond), Outcome::Drop(Reason::Malformed));
    let twice = extended(&a, &[FRAGMENT, FRAGMENT]);
    // Both say that they are the only fragment: that is odd, and no harm.
    assert_eq!(with(&twice), Outcome::Pass(0));
    let mut overlapping = extended(&a, &[FRAGMENT, FRAGMENT]);
    overlapping[14 + 40 + 3] = 1;
    assert_eq!(with(&overlapping), Outcome::Drop(Reason::Malformed));
}

#[test]
fn other_protocols_are_known_by_their_ports_too() {
    for (index, protocol) in [SCTP, 33, 136].into_iter().enumerate() {
        for a in families() {
            let Some(mut node) = Node::new(&format!("ports-{index}-{}", icmp_proto(a.me))) else {
                return;
            };
            let ports = Ports::Prefix {
                protocol,
                port: 3868,
                bits: 16,
            };
            let entry = rule(Direction::Egress, THEM, ports, allow(Auth::Required));
            node.tables().replace_policy(ENDPOINT, &[entry]).unwrap();
            let mut out = |port| {
                let payload = [&udp(5000, port)[..], &[0; 8]].concat();
                let packet = frame(&ip(a.me, a.them, protocol, &payload));
                node.run("to_tunnel", GATED, &packet)
            };
            assert_eq!(out(3869), Outcome::Drop(Reason::NoRule), "{protocol}");
            assert_eq!(out(3868), Outcome::Pass(0), "{protocol}");
            let reply = [&udp(3868, 5000)[..], &[0; 8]].concat();
            let reply = frame(&ip(a.them, a.me, protocol, &reply));
            let back = node.run("from_tunnel", FORWARDED, &reply);
            assert_eq!(back, Outcome::Pass(DECIDED), "{protocol}");
        }
    }
}

#[test]
fn a_packet_that_is_too_big_is_told_so_by_whoever_may_tell() {
    for a in families() {
        let Some(mut node) = Node::new(&format!("mtu-{}", icmp_proto(a.me))) else {
            return;
        };
        let sent = ip(a.me, a.them, TCP, &tcp(40000, 80, ACK));
        let too_big = |about: &[u8]| {
            let mut bytes = unreachable(about);
            // Fragmentation needed (RFC 1191), packet too big (RFC 8201).
            (bytes[0], bytes[1]) = if a.me.is_ipv4() { (3, 4) } else { (2, 0) };
            bytes[6..8].copy_from_slice(&1280u16.to_be_bytes());
            bytes
        };
        let from = |source: IpAddr| frame(&ip(source, a.me, icmp_proto(a.me), &too_big(&sent)));
        // Before there is a flow it is about nothing.
        let early = node.run("from_tunnel", FORWARDED, &from(a.them));
        assert_eq!(early, Outcome::Drop(Reason::IcmpNoFlow));
        assert_eq!(
            node.run("to_tunnel", GATED, &frame(&sent)),
            Outcome::Pass(0)
        );
        // The far node's workload, and this node itself, whose route into the tunnel has its MTU.
        let far = node.run("from_tunnel", FORWARDED, &from(a.them));
        assert_eq!(far, Outcome::Pass(DECIDED));
        let near = node.run("to_endpoint", HOST, &from(a.world));
        assert_eq!(near, Outcome::Pass(0));
        // A router outside the mesh saw nothing of the flow: it is in the tunnel.
        let outside = node.run("to_endpoint", FORWARDED, &from(a.world));
        assert_eq!(outside, Outcome::Drop(Reason::IcmpNoFlow));
    }
}

#[test]
fn a_packet_that_is_cut_anywhere_passes_no_gate() {
    let Some(mut node) = Node::new("cut-short") else {
        return;
    };
    for a in families() {
        let header = if a.me.is_ipv4() { 20 } else { 40 };
        let quoted = ip(a.me, a.them, TCP, &tcp(40000, 80, SYN));
        for (protocol, payload, needed) in [
            (TCP, tcp(40000, 80, SYN), 14),
            (UDP, udp(5, 53), 8),
            (SCTP, udp(5, 53), 8),
            (icmp_proto(a.me), echo(a.me, 9), 8),
            (icmp_proto(a.me), unreachable(&quoted), 8 + header + 4),
        ] {
            let whole = frame(&ip(a.me, a.them, protocol, &payload));
            // Shorter ones a test run does not take; the parser's own tests do.
            for length in 14 + header..14 + header + needed {
                let outcome = node.run("to_tunnel", GATED, &whole[..length]);
                let malformed = Outcome::Drop(Reason::Malformed);
                assert_eq!(outcome, malformed, "{protocol}, {length} bytes");
            }
        }
    }
}

#[test]
fn whatever_the_bytes_are_only_the_own_address_gets_into_the_tunnel() {
    const PASSED: u32 = u32::MAX;
    let Some(mut node) = Node::new("hostile") else {
        return;
    };
    // xorshift64: the same bytes each time.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    };
    let mut passed = 0;
    for turn in 0..4_000 {
        let a = families()[turn % 2];
        let mut packet = match turn % 3 {
            0 => frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, SYN))),
            1 => frame(&ip(a.me, a.them, icmp_proto(a.me), &echo(a.me, 9))),
            _ => frame(&fragment(a.me, a.them, UDP, 0, true, &udp(5, 53))),
        };
        for _ in 0..random() % 4 {
            let at = 14 + random() as usize % (packet.len() - 14);
            packet[at] = random() as u8;
        }
        let header = 14 + if a.me.is_ipv4() { 20 } else { 40 };
        packet.truncate(header + random() as usize % (2 * packet.len()));
        for (program, came) in PROGRAMS {
            let (verdict, _) = node.raw(program, came, &packet);
            // Next, drop, redirect: nothing else.
            let known = matches!(verdict, PASSED | 2 | 7);
            assert!(known, "{program}, {verdict}: {packet:?}");
            if program == "to_tunnel" && verdict == PASSED {
                passed += 1;
                let own = match a.me {
                    IpAddr::V4(me) => packet[26..30] == me.octets(),
                    IpAddr::V6(me) => packet[22..38] == me.octets(),
                };
                assert!(own, "{packet:?}");
            }
        }
    }
    assert!(passed > 100, "{passed} packets passed: nothing was shown");
}
