//! Both endpoint gates and the tripwire, packet by packet, in the kernel's own test run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use handfast_bpf::*;
use support::{packets::*, run::*};

fn from(node: &mut Node, ip: &[u8]) -> Outcome {
    node.run("from_endpoint", FORWARDED, &frame(ip))
}

fn to(node: &mut Node, came: Came, ip: &[u8]) -> Outcome {
    node.run("to_endpoint", came, &frame(ip))
}

/// Forwarded, and decided by another gate.
const DECIDED_BEFORE: Came = Came {
    mark: DECIDED << 2,
    by: 3,
};

#[test]
fn a_workload_may_only_use_its_own_addresses() {
    let Some(mut node) = Node::new("source") else {
        return;
    };
    for a in families() {
        let syn = tcp(40000, 80, SYN);
        assert_eq!(
            from(&mut node, &ip(a.me, a.them, TCP, &syn)),
            Outcome::Pass(SOURCE)
        );
        for other in [a.neighbour, a.them, a.world] {
            let spoofed = ip(other, a.them, TCP, &syn);
            assert_eq!(from(&mut node, &spoofed), Outcome::Drop(Reason::Spoofed));
        }
        // A mark that the workload brought along is gone.
        let forged = Came {
            mark: 0xffff_ffff,
            by: 3,
        };
        let packet = frame(&ip(a.me, a.them, TCP, &syn));
        let (verdict, mark) = node.raw("from_endpoint", forged, &packet);
        assert_eq!((verdict, mark), (0xffff_ffff, 0xffff_ffc3 | SOURCE << 2));
    }
}

#[test]
fn nothing_passes_the_gates_of_an_interface_that_is_nobodys() {
    let Some(mut node) = Node::new("nobodys") else {
        return;
    };
    node.tables().remove_interface(1).unwrap();
    for a in families() {
        let syn = tcp(40000, 80, SYN);
        let sent = ip(a.me, a.them, TCP, &syn);
        let received = ip(a.neighbour, a.me, TCP, &syn);
        assert_eq!(from(&mut node, &sent), Outcome::Drop(Reason::NoEndpoint));
        assert_eq!(
            to(&mut node, GATED, &received),
            Outcome::Drop(Reason::NoEndpoint)
        );
    }
}

#[test]
fn the_links_own_traffic_passes_with_true_senders() {
    let Some(mut node) = Node::new("link") else {
        return;
    };
    let [v4, v6] = families();
    let arp = |sender: [u8; 4]| {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend([10, 1, 0, 1]);
        link(0x0806, &bytes)
    };
    assert_eq!(
        node.run("from_endpoint", FORWARDED, &arp([10, 1, 0, 7])),
        Outcome::Pass(SOURCE)
    );
    assert_eq!(
        node.run("from_endpoint", FORWARDED, &arp([0; 4])),
        Outcome::Pass(SOURCE)
    );
    let spoofed = node.run("from_endpoint", FORWARDED, &arp([10, 1, 0, 8]));
    assert_eq!(spoofed, Outcome::Drop(Reason::Spoofed));
    assert_eq!(
        node.run("to_endpoint", HOST, &arp([10, 1, 0, 1])),
        Outcome::Pass(0)
    );

    let all = "255.255.255.255".parse().unwrap();
    let dhcp = ip("0.0.0.0".parse().unwrap(), all, UDP, &udp(68, 67));
    assert_eq!(from(&mut node, &dhcp), Outcome::Pass(SOURCE));
    let server = ip(v4.me, all, UDP, &udp(67, 68));
    assert!(!matches!(to(&mut node, GATED, &server), Outcome::Pass(_)));
    let answer = ip(v4.world, all, UDP, &udp(67, 68));
    assert_eq!(to(&mut node, HOST, &answer), Outcome::Pass(0));

    let link_local = "fe80::7".parse().unwrap();
    let routers = "ff02::2".parse().unwrap();
    let discovery = |kind: u8, target: std::net::IpAddr, hops: u8| {
        let std::net::IpAddr::V6(target) = target else {
            panic!("IPv6")
        };
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(target.octets());
        let mut packet = ip(link_local, routers, 58, &bytes);
        packet[7] = hops;
        packet
    };
    assert_eq!(
        from(&mut node, &discovery(135, v6.neighbour, 255)),
        Outcome::Pass(SOURCE)
    );
    assert_eq!(
        from(&mut node, &discovery(136, v6.me, 255)),
        Outcome::Pass(SOURCE)
    );
    // From its own global address, as a kernel with one asks.
    let mut asks = discovery(135, v6.world, 255);
    let std::net::IpAddr::V6(own) = v6.me else {
        panic!("IPv6")
    };
    asks[8..24].copy_from_slice(&own.octets());
    assert_eq!(from(&mut node, &asks), Outcome::Pass(SOURCE));
    let std::net::IpAddr::V6(other) = v6.neighbour else {
        panic!("IPv6")
    };
    asks[8..24].copy_from_slice(&other.octets());
    assert_eq!(from(&mut node, &asks), Outcome::Drop(Reason::Spoofed));
    let bad = [
        discovery(136, v6.neighbour, 255),
        discovery(135, v6.neighbour, 64),
        discovery(134, v6.me, 255),
    ];
    for packet in bad {
        assert_eq!(from(&mut node, &packet), Outcome::Drop(Reason::Spoofed));
    }
}

#[test]
fn a_flow_on_one_node_needs_both_policies_and_a_pair() {
    let Some(mut node) = Node::new("same-node") else {
        return;
    };
    for a in families() {
        let syn = ip(a.neighbour, a.me, TCP, &tcp(40000, 80, SYN));
        let answer = ip(a.me, a.neighbour, TCP, &tcp(80, 40000, SYN | ACK));
        assert_eq!(
            to(&mut node, FORWARDED, &syn),
            Outcome::Drop(Reason::Ungated)
        );
        // The reply is decided only once the flow is open.
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE));
        assert_eq!(to(&mut node, GATED, &syn), Outcome::Pass(SOURCE));
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE | DECIDED));
        // A SYN back is a flow of its own.
        let back = ip(a.me, a.neighbour, TCP, &tcp(80, 40000, SYN));
        assert_eq!(from(&mut node, &back), Outcome::Pass(SOURCE));

        node.tables().remove_pair(local_pair()).unwrap();
        assert_eq!(to(&mut node, GATED, &syn), Outcome::Hold);
        assert_eq!(from(&mut node, &answer), Outcome::Drop(Reason::NoPair));
        node.reset_holds();
        // Either order names the pair.
        let turned = PairKey {
            local: ME,
            remote: NEIGHBOUR,
            peer: PeerNumber::LOCAL,
        };
        node.tables()
            .set_pair(
                turned,
                Pair {
                    expires: far(),
                    epoch: Epoch(0),
                },
            )
            .unwrap();
        assert_eq!(to(&mut node, GATED, &syn), Outcome::Pass(SOURCE));

        let policy = node.tables().policy(OTHER).unwrap();
        node.tables().replace_policy(OTHER, &[]).unwrap();
        assert_eq!(to(&mut node, GATED, &syn), Outcome::Drop(Reason::NoRule));
        assert_eq!(from(&mut node, &answer), Outcome::Drop(Reason::NoRule));
        node.tables().replace_policy(OTHER, &policy).unwrap();
        assert_eq!(to(&mut node, GATED, &syn), Outcome::Pass(SOURCE));

        node.tables()
            .set_identity(
                NEIGHBOUR,
                &Identity {
                    valid_until: far(),
                    revoked: true,
                },
            )
            .unwrap();
        assert_eq!(
            to(&mut node, GATED, &syn),
            Outcome::Drop(Reason::IdentityRevoked)
        );
        assert_eq!(
            from(&mut node, &answer),
            Outcome::Drop(Reason::IdentityRevoked)
        );
        node.tables()
            .set_identity(
                NEIGHBOUR,
                &Identity {
                    valid_until: far(),
                    revoked: false,
                },
            )
            .unwrap();
    }
}

#[test]
fn what_another_gate_decided_passes_and_a_managed_stranger_does_not() {
    let Some(mut node) = Node::new("decided") else {
        return;
    };
    for a in families() {
        let data = ip(a.them, a.me, TCP, &tcp(80, 40000, ACK));
        assert_eq!(to(&mut node, DECIDED_BEFORE, &data), Outcome::Pass(DECIDED));
        assert_eq!(
            to(&mut node, FORWARDED, &data),
            Outcome::Drop(Reason::Cleartext)
        );
        let gone = a.neighbour;
        node.tables().remove_local(gone).unwrap();
        let ghost = ip(gone, a.me, TCP, &tcp(80, 40000, ACK));
        assert_eq!(
            to(&mut node, GATED, &ghost),
            Outcome::Drop(Reason::NoEndpoint)
        );
        let not_mine = ip(a.them, a.neighbour, TCP, &tcp(80, 40000, ACK));
        assert_eq!(
            to(&mut node, DECIDED_BEFORE, &not_mine),
            Outcome::Drop(Reason::OtherEndpoint)
        );
        node.tables()
            .set_local(
                a.me,
                Local {
                    endpoint: OTHER,
                    identity: NEIGHBOUR,
                },
            )
            .unwrap();
        assert_eq!(
            to(&mut node, DECIDED_BEFORE, &data),
            Outcome::Drop(Reason::OtherEndpoint)
        );
    }
}

#[test]
fn the_world_is_judged_by_cidr_and_flow() {
    let Some(mut node) = Node::new("world") else {
        return;
    };
    let cidr = IdentityNumber::FIRST_CIDR;
    for prefix in ["192.0.2.0/24", "2001:db8::/32"] {
        node.tables()
            .set_cidr(prefix.parse().unwrap(), cidr)
            .unwrap();
    }
    let web = Ports::Prefix {
        protocol: TCP,
        port: 443,
        bits: 16,
    };
    let entries = [
        rule(Direction::Egress, cidr, web, allow(Auth::Disabled)),
        rule(
            Direction::Ingress,
            cidr,
            Ports::Protocol(UDP),
            allow(Auth::Required),
        ),
        rule(
            Direction::Ingress,
            IdentityNumber::WORLD,
            web,
            allow(Auth::Disabled),
        ),
    ];
    node.tables().replace_policy(ENDPOINT, &entries).unwrap();
    for a in families() {
        let other: std::net::IpAddr = if a.me.is_ipv4() {
            "198.51.100.1"
        } else {
            "2001:dead::1"
        }
        .parse()
        .unwrap();
        let back = ip(a.world, a.me, TCP, &tcp(443, 40000, SYN | ACK));
        assert_eq!(
            to(&mut node, FORWARDED, &back),
            Outcome::Drop(Reason::NoRule)
        );
        assert_eq!(
            from(&mut node, &ip(a.me, a.world, TCP, &tcp(40000, 443, SYN))),
            Outcome::Pass(SOURCE)
        );
        assert_eq!(to(&mut node, FORWARDED, &back), Outcome::Pass(0));
        // Not allowed: it may still be a service's address, so it is only marked.
        let undecided = Outcome::Pass(SOURCE | UNDECIDED);
        assert_eq!(
            from(&mut node, &ip(a.me, a.world, TCP, &tcp(40000, 22, SYN))),
            undecided
        );
        assert_eq!(
            from(&mut node, &ip(a.me, other, TCP, &tcp(40000, 443, SYN))),
            undecided
        );

        // A CIDR that gets another name does not cut the flow that policy still allows.
        let web = Ports::Prefix {
            protocol: TCP,
            port: 443,
            bits: 16,
        };
        let renamed = IdentityNumber(cidr.0 + 1);
        let entry = rule(Direction::Egress, renamed, web, allow(Auth::Disabled));
        node.tables().add_policy(ENDPOINT, &[entry]).unwrap();
        let net = ipnet::IpNet::new(a.world, if a.me.is_ipv4() { 32 } else { 128 }).unwrap();
        node.tables().set_cidr(net, renamed).unwrap();
        assert_eq!(to(&mut node, FORWARDED, &back), Outcome::Pass(0));
        node.tables()
            .remove_policy_entry(ENDPOINT, &entry.0)
            .unwrap();
        node.tables().policy_changed().unwrap();
        assert_eq!(
            to(&mut node, FORWARDED, &back),
            Outcome::Drop(Reason::NoRule)
        );
        node.tables().remove_cidr(net).unwrap();

        let in_web = ip(other, a.me, TCP, &tcp(50000, 443, SYN));
        assert_eq!(to(&mut node, FORWARDED, &in_web), Outcome::Pass(0));
        assert_eq!(
            from(
                &mut node,
                &ip(a.me, other, TCP, &tcp(443, 50000, SYN | ACK))
            ),
            Outcome::Pass(SOURCE)
        );
        // A proof cannot be had of the world.
        let proven = ip(a.world, a.me, UDP, &udp(5, 6));
        assert_eq!(
            to(&mut node, FORWARDED, &proven),
            Outcome::Drop(Reason::NoIdentity)
        );

        // A router on the way may say that it did not arrive, if it says so of a real flow.
        let proto = icmp_proto(a.me);
        let sent = ip(a.me, a.world, TCP, &tcp(40000, 443, SYN));
        let error = ip(other, a.me, proto, &unreachable(&sent));
        assert_eq!(to(&mut node, FORWARDED, &error), Outcome::Pass(0));
        let never = ip(a.me, a.world, TCP, &tcp(40001, 443, SYN));
        let error = ip(other, a.me, proto, &unreachable(&never));
        assert_eq!(
            to(&mut node, FORWARDED, &error),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
        let managed = ip(a.me, a.them, TCP, &tcp(40000, 80, SYN));
        let error = ip(other, a.me, proto, &unreachable(&managed));
        assert_eq!(
            to(&mut node, FORWARDED, &error),
            Outcome::Drop(Reason::IcmpNoFlow)
        );
    }
}

#[test]
fn the_node_itself_may_send_and_be_answered_unless_set_otherwise() {
    let Some(mut node) = Node::new("host") else {
        return;
    };
    node.tables().replace_policy(ENDPOINT, &[]).unwrap();
    for a in families() {
        let probe = ip(a.world, a.me, TCP, &tcp(40000, 80, SYN));
        let answer = ip(a.me, a.world, TCP, &tcp(80, 40000, SYN | ACK));
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE | UNDECIDED));
        assert_eq!(to(&mut node, HOST, &probe), Outcome::Pass(0));
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE));
    }
    let settings = Settings {
        host_denied: true,
        ..node.tables().settings().unwrap()
    };
    node.tables().set_settings(&settings).unwrap();
    let [a, _] = families();
    let probe = ip(a.world, a.me, TCP, &tcp(40000, 80, SYN));
    assert_eq!(
        to(&mut node, HOST, &probe),
        Outcome::Drop(Reason::HostDenied)
    );
}

#[test]
fn a_packet_that_lost_its_interface_is_not_the_nodes_own() {
    let Some(mut node) = Node::new("homeless") else {
        return;
    };
    let marked = |bits: u32| Came {
        mark: bits << 2,
        by: 0,
    };
    node.tables().replace_policy(ENDPOINT, &[]).unwrap();
    for a in families() {
        let near = ip(a.neighbour, a.me, UDP, &udp(40000, 53));
        let far = ip(a.them, a.me, UDP, &udp(40000, 53));
        let world = ip(a.world, a.me, UDP, &udp(40000, 53));
        // What from-endpoint may have said of it: judged as what it is.
        for bits in [SOURCE, SOURCE | UNDECIDED, SOURCE | RETURNED] {
            assert_eq!(
                to(&mut node, marked(bits), &near),
                Outcome::Drop(Reason::NoRule)
            );
        }
        // What the wire says of it is no decision.
        let outside = marked(OUTSIDE);
        assert_eq!(
            to(&mut node, outside, &near),
            Outcome::Drop(Reason::Ungated)
        );
        assert_eq!(
            to(&mut node, outside, &far),
            Outcome::Drop(Reason::Cleartext)
        );
        assert_eq!(
            to(&mut node, outside, &world),
            Outcome::Drop(Reason::NoRule)
        );
        let tunnelled = frame(&far);
        assert_eq!(
            node.run("to_tunnel", marked(SOURCE), &tunnelled),
            Outcome::Drop(Reason::HostMade)
        );
        // What from-tunnel has decided stays so.
        assert_eq!(to(&mut node, marked(DECIDED), &far), Outcome::Pass(DECIDED));
        // The node's own DHCP has no mark.
        let dhcp = ip(a.neighbour, a.me, UDP, &udp(67, 68));
        assert_eq!(
            to(&mut node, marked(SOURCE), &dhcp),
            Outcome::Drop(Reason::NoRule)
        );
    }
    // A mark that a process of the node forges gets it no more than it has without.
    let valid = node.tables().settings().unwrap();
    let denied = Settings {
        host_denied: true,
        ..valid
    };
    node.tables().set_settings(&denied).unwrap();
    for a in families() {
        let far = ip(a.them, a.me, UDP, &udp(40000, 53));
        for bits in 0..16 {
            assert_eq!(
                to(&mut node, marked(bits), &far),
                Outcome::Drop(Reason::HostDenied)
            );
        }
    }
    node.tables().set_settings(&valid).unwrap();
    let cut = Identity {
        valid_until: far(),
        revoked: true,
    };
    node.tables().set_identity(ME, &cut).unwrap();
    for a in families() {
        let far = ip(a.them, a.me, UDP, &udp(40000, 53));
        for bits in [0, DECIDED] {
            assert_eq!(
                to(&mut node, marked(bits), &far),
                Outcome::Drop(Reason::IdentityRevoked)
            );
        }
    }
}

#[test]
fn the_nodes_membership_reports_pass_whatever_is_in_their_mark() {
    let Some(mut node) = Node::new("membership") else {
        return;
    };
    let [v4, v6] = families();
    let mut report = vec![58, 0, 5, 2, 0, 0, 1, 0];
    report.extend([143, 0, 0, 0, 0, 0, 0, 1]);
    report.extend([4, 0, 0, 0]);
    report.extend([0xff; 16]);
    let mld = |src: &str, dst: &str| {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        ip(src, dst, 0, &report)
    };
    let early = mld("::", "ff02::16");
    for bits in 0..16 {
        // The kernel keeps something else there.
        let noise = Came {
            mark: bits << 2,
            by: 0,
        };
        assert_eq!(to(&mut node, noise, &early), Outcome::Pass(bits));
        assert_eq!(
            node.run("wire_egress", noise, &frame(&early)),
            Outcome::Pass(bits)
        );
    }
    for came in [FORWARDED, GATED] {
        assert_eq!(
            to(&mut node, came, &early),
            Outcome::Drop(Reason::OtherEndpoint)
        );
    }
    // Neither to one address, nor in fragments, is it a report.
    let refused = Came {
        mark: (SOURCE | UNDECIDED) << 2,
        by: 3,
    };
    let std::net::IpAddr::V6(away) = v6.world else {
        panic!("IPv6")
    };
    let addressed = mld("fd01::7", &away.to_string());
    let broken = fragment(v4.me, "224.0.0.22".parse().unwrap(), 2, 0, true, &[0; 8]);
    for packet in [addressed, broken] {
        assert_eq!(
            node.run("wire_egress", refused, &frame(&packet)),
            Outcome::Drop(Reason::Undecided)
        );
    }
}

#[test]
fn neighbour_discovery_is_no_way_beyond_the_link() {
    let Some(mut node) = Node::new("discovery") else {
        return;
    };
    let [_, a] = families();
    let solicit = |dst: std::net::IpAddr, hops: u8| {
        let mut bytes = vec![135, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0xfd; 16]);
        let mut packet = ip(a.me, dst, 58, &bytes);
        packet[7] = hops;
        packet
    };
    let undecided = Came {
        mark: (SOURCE | UNDECIDED) << 2,
        by: 3,
    };
    let there = solicit(a.world, 255);
    assert_eq!(from(&mut node, &there), Outcome::Pass(SOURCE | UNDECIDED));
    // On a bridge with the underlay it is on its link; forwarded it is not.
    assert_eq!(
        node.run("wire_egress", undecided, &frame(&there)),
        Outcome::Pass(SOURCE | UNDECIDED)
    );
    assert_eq!(
        node.run("wire_egress", undecided, &frame(&solicit(a.world, 254))),
        Outcome::Drop(Reason::Undecided)
    );
    // Fragmented (RFC 6980 forbids it) it is like any other packet.
    let mut first = fragment(a.me, a.neighbour, 58, 0, true, &there[40..]);
    first[7] = 255;
    assert_eq!(from(&mut node, &first), Outcome::Pass(SOURCE));
    node.tables().replace_policy(ENDPOINT, &[]).unwrap();
    let mut first = fragment(a.neighbour, a.me, 58, 0, true, &there[40..]);
    first[7] = 255;
    assert_eq!(to(&mut node, GATED, &first), Outcome::Drop(Reason::NoRule));
}

#[test]
fn the_nodes_own_addresses_in_its_prefix_are_asked_of_policy_too() {
    let Some(mut node) = Node::new("gateway") else {
        return;
    };
    let policy = node.tables().policy(ENDPOINT).unwrap();
    for (a, gateway) in families().into_iter().zip(["10.1.0.1", "fd01::1"]) {
        let gateway = gateway.parse().unwrap();
        let syn = ip(a.me, gateway, TCP, &tcp(40000, 22, SYN));
        node.tables().replace_policy(ENDPOINT, &[]).unwrap();
        assert_eq!(from(&mut node, &syn), Outcome::Pass(SOURCE | UNDECIDED));
        // An answer to the node is none of policy's business.
        let answer = ip(a.me, gateway, TCP, &tcp(80, 50000, SYN | ACK));
        let probe = ip(gateway, a.me, TCP, &tcp(50000, 80, SYN));
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE | UNDECIDED));
        assert_eq!(to(&mut node, HOST, &probe), Outcome::Pass(0));
        assert_eq!(from(&mut node, &answer), Outcome::Pass(SOURCE));
        node.tables().replace_policy(ENDPOINT, &policy).unwrap();
        assert_eq!(from(&mut node, &syn), Outcome::Pass(SOURCE));
    }
}

#[test]
fn nothing_managed_crosses_the_wire_in_cleartext() {
    let Some(mut node) = Node::new("wire") else {
        return;
    };
    let [v4, v6] = families();
    for a in [v4, v6] {
        let bare = ip(a.me, a.them, TCP, &tcp(40000, 80, SYN));
        let outer = |proto: u8, payload: &[u8]| {
            frame(&ip(
                v4.world,
                "198.51.100.2".parse().unwrap(),
                proto,
                payload,
            ))
        };
        let outer6 = |proto: u8, payload: &[u8]| {
            frame(&ip(
                v6.world,
                "2001:dead::2".parse().unwrap(),
                proto,
                payload,
            ))
        };
        let inside = frame(&bare);
        let ethertype = u16::from_be_bytes([inside[12], inside[13]]);
        let with = |head: &[u8], tail: &[u8]| [head, tail].concat();
        let vxlan = with(&with(&udp(5555, 4789), &[8, 0, 0, 0, 0, 0, 1, 0]), &inside);
        let flannel = with(&with(&udp(5555, 8472), &[8, 0, 0, 0, 0, 0, 1, 0]), &inside);
        let geneve = with(
            &with(
                &udp(5555, 6081),
                &[1, 0, 0x65, 0x58, 0, 0, 1, 0, 0, 0, 0, 0],
            ),
            &inside,
        );
        let mut gre = vec![0x20, 0];
        gre.extend(ethertype.to_be_bytes());
        gre.extend([0, 0, 0, 9]);
        gre.extend(&bare);
        let ipip = if a.me.is_ipv4() { 4 } else { 41 };
        let mut tagged = vec![0, 5];
        tagged.extend(ethertype.to_be_bytes());
        tagged.extend(&bare);
        let limited = with(&[ipip, 0, 4, 1, 1, 1, 0, 0], &bare);
        let bare = [frame(&bare), link(0x8100, &tagged)];
        let hidden = [
            outer(UDP, &vxlan),
            outer(UDP, &flannel),
            outer(UDP, &geneve),
            outer(47, &gre),
            outer(ipip, &inside[14..]),
            outer6(UDP, &vxlan),
            outer6(60, &limited),
        ];
        for packet in bare {
            assert_eq!(
                node.run("wire_egress", FORWARDED, &packet),
                Outcome::Drop(Reason::WireOut)
            );
            assert_eq!(
                node.run("wire_ingress", FORWARDED, &packet),
                Outcome::Drop(Reason::WireIn)
            );
        }
        for (index, packet) in hidden.iter().enumerate() {
            let (out, inward) = (Reason::WireOutInside, Reason::WireInInside);
            assert_eq!(
                node.run("wire_egress", HOST, packet),
                Outcome::Drop(out),
                "{index} {a:?}"
            );
            assert_eq!(
                node.run("wire_ingress", FORWARDED, packet),
                Outcome::Drop(inward),
                "{index}"
            );
        }
        // A tunnel's own packets, and what is not IP, are none of its business.
        assert_eq!(
            node.run(
                "wire_egress",
                HOST,
                &outer(UDP, &with(&udp(51872, 51872), &inside))
            ),
            Outcome::Pass(0)
        );
        assert_eq!(
            node.run("wire_egress", HOST, &link(0x0806, &[0; 28])),
            Outcome::Pass(0)
        );
        let away = frame(&ip(a.me, a.world, TCP, &tcp(40000, 443, SYN)));
        assert_eq!(node.run("wire_egress", GATED, &away), Outcome::Pass(SOURCE));
    }
}

#[test]
fn the_wire_knows_a_workloads_packet_by_its_mark_whatever_source_a_masquerade_gave_it() {
    let Some(mut node) = Node::new("masqueraded") else {
        return;
    };
    for a in families() {
        let to_them = frame(&ip(a.world, a.them, TCP, &tcp(40000, 80, SYN)));
        let dropped = Outcome::Drop(Reason::WireOut);
        assert_eq!(node.run("wire_egress", GATED, &to_them), dropped);
        // What the node itself or somebody outside sends has no such mark; nor is the way home a leak.
        assert_eq!(node.run("wire_egress", HOST, &to_them), Outcome::Pass(0));
        let to_us = frame(&ip(a.world, a.me, TCP, &tcp(40000, 80, SYN)));
        assert_eq!(
            node.run("wire_egress", GATED, &to_us),
            Outcome::Pass(SOURCE)
        );
        let marked = node.run("wire_ingress", GATED, &to_them);
        assert_eq!(marked, Outcome::Pass(OUTSIDE));
        // To a joining node it goes as before.
        let joining = ["10.2.0.0/16".parse().unwrap(), "fd02::/16".parse().unwrap()];
        node.tables().set_joining(&joining).unwrap();
        assert_eq!(
            node.run("wire_egress", GATED, &to_them),
            Outcome::Pass(SOURCE)
        );
        node.tables().set_joining(&[]).unwrap();
    }
}

#[test]
fn the_wire_drops_what_policy_refused_and_forgets_foreign_marks() {
    let Some(mut node) = Node::new("undecided") else {
        return;
    };
    for a in families() {
        let away = frame(&ip(a.me, a.world, TCP, &tcp(40000, 22, SYN)));
        let refused = Came {
            mark: (SOURCE | UNDECIDED) << 2,
            by: 3,
        };
        assert_eq!(
            node.run("wire_egress", refused, &away),
            Outcome::Drop(Reason::Undecided)
        );
        // It may have lost the interface that it came in by.
        let homeless = Came { by: 0, ..refused };
        assert_eq!(
            node.run("wire_egress", homeless, &away),
            Outcome::Drop(Reason::Undecided)
        );
        let from_outside = Came {
            mark: OUTSIDE << 2,
            by: 3,
        };
        assert_eq!(
            node.run("wire_egress", from_outside, &away),
            Outcome::Pass(OUTSIDE)
        );
        let forged = Came {
            mark: u32::MAX,
            by: 3,
        };
        let home = frame(&ip(a.world, a.me, TCP, &tcp(40000, 22, SYN)));
        assert_eq!(
            node.raw("wire_ingress", forged, &home),
            (u32::MAX, 0xffff_ffc3 | OUTSIDE << 2)
        );
    }
}

#[test]
fn the_hold_device_passes_only_what_a_gate_sent() {
    let Some(mut node) = Node::new("stray") else {
        return;
    };
    let [a, _] = families();
    let packet = frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, SYN)));
    assert_eq!(
        node.run("hold_egress", HOST, &packet),
        Outcome::Drop(Reason::HoldStray)
    );
    assert_eq!(
        node.run("hold_ingress", FORWARDED, &packet),
        Outcome::Drop(Reason::HoldStray)
    );
    // As a gate would have written it, but with a ticket that was never given out.
    let mut forged = packet;
    forged[..12].copy_from_slice(&[2, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0]);
    assert_eq!(
        node.run("hold_egress", HOST, &forged),
        Outcome::Drop(Reason::HoldStray)
    );
    assert_eq!(
        node.run("hold_ingress", FORWARDED, &forged),
        Outcome::Drop(Reason::HoldStray)
    );
}
