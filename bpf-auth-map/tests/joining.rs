//! A node that is joining: cleartext from it and to it passes and is counted, until it is managed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use handfast_bpf::*;
use support::{packets::*, run::*};

/// Theirs, then ours: either is enough.
const JOINING: [[&str; 2]; 2] = [["10.2.0.0/16", "fd02::/16"], ["10.1.0.0/16", "fd01::/16"]];

fn prefixes(which: &[&str]) -> Vec<ipnet::IpNet> {
    which.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

#[test]
fn the_wire_counts_cleartext_of_a_joining_node_and_drops_it_once_it_is_managed() {
    let Some(mut node) = Node::new("joining-wire") else {
        return;
    };
    for a in families() {
        let bare = frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, SYN)));
        let answer = frame(&ip(a.them, a.me, TCP, &tcp(80, 40000, SYN | ACK)));
        let both = |node: &mut Node| {
            (
                node.run("wire_egress", HOST, &bare),
                node.run("wire_ingress", FORWARDED, &answer),
            )
        };
        let dropped = (
            Outcome::Drop(Reason::WireOut),
            Outcome::Drop(Reason::WireIn),
        );
        let passed = (Outcome::Pass(0), Outcome::Pass(OUTSIDE));
        assert_eq!(both(&mut node), dropped);
        for joining in JOINING {
            let before = node.tables().counter(Reason::WireJoining).unwrap();
            node.tables().set_joining(&prefixes(&joining)).unwrap();
            assert_eq!(both(&mut node), passed, "{joining:?}");
            let after = node.tables().counter(Reason::WireJoining).unwrap();
            assert_eq!(after - before, 2);
        }
        // A prefix that is set again keeps to it.
        let own = if a.me.is_ipv4() {
            "10.1.0.0/16"
        } else {
            "fd01::/16"
        };
        node.tables()
            .set_prefix(own.parse().unwrap(), PeerNumber::LOCAL)
            .unwrap();
        assert_eq!(both(&mut node), passed);
        node.tables().set_joining(&[]).unwrap();
        assert_eq!(both(&mut node), dropped);
    }
}

#[test]
fn asking_again_makes_up_for_what_was_not_reached_before() {
    let Some(mut node) = Node::new("joining-again") else {
        return;
    };
    let [a, _] = families();
    let bare = frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, SYN)));
    let dropped = Outcome::Drop(Reason::WireOut);
    let joining = prefixes(&["10.2.0.0/16"]);
    // Another writer, which remembers nothing: what it writes stands for a write of ours that failed.
    let other = Kernel::open(Options::new(node.pins())).unwrap();
    node.tables().set_joining(&joining).unwrap();
    assert_eq!(node.run("wire_egress", HOST, &bare), Outcome::Pass(0));
    other.tables().set_prefix(joining[0], PEER).unwrap();
    assert_eq!(node.run("wire_egress", HOST, &bare), dropped);
    node.tables().set_joining(&joining).unwrap();
    assert_eq!(node.run("wire_egress", HOST, &bare), Outcome::Pass(0));
    // And the other way: who never heard of it takes it back.
    other.tables().set_joining(&[]).unwrap();
    assert_eq!(node.run("wire_egress", HOST, &bare), dropped);
}

/// What lets a flow through in this direction, whoever the other side is.
fn entries(direction: Direction, auth: Auth) -> [(PolicyKey, PolicyValue); 1] {
    [rule(
        direction,
        IdentityNumber::ANY,
        Ports::Any,
        allow(auth),
    )]
}

#[test]
fn a_workload_takes_cleartext_where_either_node_is_joining_as_policy_has_it_for_nobody_known() {
    let Some(mut node) = Node::new("joining-endpoint") else {
        return;
    };
    let from_outside = Came {
        mark: OUTSIDE << 2,
        by: 3,
    };
    for a in families() {
        // A flow that was opened stays known: each case has a port of its own.
        let mut port = 40000;
        for joining in JOINING {
            let mut call = |node: &mut Node| {
                port += 1;
                let call = frame(&ip(a.them, a.me, TCP, &tcp(port, 80, SYN)));
                node.run("to_endpoint", from_outside, &call)
            };
            node.tables().set_joining(&prefixes(&joining)).unwrap();
            node.tables()
                .replace_policy(ENDPOINT, &entries(Direction::Ingress, Auth::Required))
                .unwrap();
            assert_eq!(
                call(&mut node),
                Outcome::Drop(Reason::NoIdentity),
                "{joining:?}"
            );
            node.tables()
                .replace_policy(ENDPOINT, &entries(Direction::Ingress, Auth::Disabled))
                .unwrap();
            assert_eq!(call(&mut node), Outcome::Pass(OUTSIDE), "{joining:?}");
            // Settings that are written again leave it as it is.
            let settings = node.tables().settings().unwrap();
            node.tables().set_settings(&settings).unwrap();
            assert_eq!(call(&mut node), Outcome::Pass(OUTSIDE), "{joining:?}");
            // A rule for the workload's own identity does not match: nobody has announced it here.
            let known = [rule(
                Direction::Ingress,
                THEM,
                Ports::Any,
                allow(Auth::Disabled),
            )];
            node.tables().replace_policy(ENDPOINT, &known).unwrap();
            assert_eq!(
                call(&mut node),
                Outcome::Drop(Reason::NoRule),
                "{joining:?}"
            );
            node.tables().set_joining(&[]).unwrap();
            assert_eq!(
                call(&mut node),
                Outcome::Drop(Reason::Cleartext),
                "{joining:?}"
            );
        }
    }
}

#[test]
fn what_a_workload_sends_in_clear_is_asked_of_its_policy_where_either_node_is_joining() {
    let Some(mut node) = Node::new("joining-egress") else {
        return;
    };
    for a in families() {
        let mut port = 40000;
        for joining in JOINING {
            let mut call = |node: &mut Node, flags| {
                let call = frame(&ip(a.me, a.them, TCP, &tcp(port, 80, flags)));
                port += 1;
                node.run("from_endpoint", FORWARDED, &call)
            };
            // Managed, both: whoever sends it into the tunnel judges.
            node.tables().replace_policy(ENDPOINT, &[]).unwrap();
            assert_eq!(call(&mut node, SYN), Outcome::Pass(SOURCE));
            node.tables().set_joining(&prefixes(&joining)).unwrap();
            assert_eq!(
                call(&mut node, SYN),
                Outcome::Drop(Reason::NoRule),
                "{joining:?}"
            );
            node.tables()
                .replace_policy(ENDPOINT, &entries(Direction::Egress, Auth::Required))
                .unwrap();
            assert_eq!(
                call(&mut node, SYN),
                Outcome::Drop(Reason::NoIdentity),
                "{joining:?}"
            );
            node.tables()
                .replace_policy(ENDPOINT, &entries(Direction::Egress, Auth::Disabled))
                .unwrap();
            assert_eq!(call(&mut node, SYN), Outcome::Pass(SOURCE), "{joining:?}");
            // The answer in a flow that came from there needs no rule of egress.
            node.tables()
                .replace_policy(ENDPOINT, &entries(Direction::Ingress, Auth::Disabled))
                .unwrap();
            let came = frame(&ip(a.them, a.me, TCP, &tcp(50000, 80, SYN)));
            let from_outside = Came {
                mark: OUTSIDE << 2,
                by: 3,
            };
            assert_eq!(
                node.run("to_endpoint", from_outside, &came),
                Outcome::Pass(OUTSIDE)
            );
            let answer = frame(&ip(a.me, a.them, TCP, &tcp(80, 50000, SYN | ACK)));
            assert_eq!(
                node.run("from_endpoint", FORWARDED, &answer),
                Outcome::Pass(SOURCE),
                "{joining:?}"
            );
            node.tables().set_joining(&[]).unwrap();
        }
    }
}
