//! How a flow ends: what is over takes no live one's place, and a late packet of it still passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::{net::IpAddr, time::Duration};

use handfast_bpf::*;
use support::{packets::*, run::*};

const FIN: u8 = 1;

fn out(node: &mut Node, a: &Addresses, port: u16, flags: u8) -> Outcome {
    let bytes = frame(&ip(a.me, a.them, TCP, &tcp(port, 80, flags)));
    node.run("to_tunnel", GATED, &bytes)
}

fn back(node: &mut Node, a: &Addresses, port: u16, flags: u8) -> Outcome {
    let bytes = frame(&ip(a.them, a.me, TCP, &tcp(80, port, flags)));
    node.run("from_tunnel", FORWARDED, &bytes)
}

fn with_room_for(name: &str, flows: u32) -> Option<Node> {
    let node = Node::new(name)?;
    let settings = Settings {
        endpoint_connections: flows,
        ..node.tables().settings().unwrap()
    };
    node.tables().set_settings(&settings).unwrap();
    Some(node)
}

#[test]
fn a_flow_that_both_sides_have_ended_makes_room_at_once() {
    let Some(mut node) = with_room_for("over", 32) else {
        return;
    };
    let [a, _] = families();
    // Many more than there is room for, one after the other, in three ways to end.
    for port in 1000..1060 {
        assert_eq!(out(&mut node, &a, port, SYN), Outcome::Pass(0), "{port}");
        assert_eq!(back(&mut node, &a, port, SYN | ACK), Outcome::Pass(DECIDED));
        match port % 3 {
            0 => {
                assert_eq!(out(&mut node, &a, port, FIN | ACK), Outcome::Pass(0));
                assert_eq!(back(&mut node, &a, port, FIN | ACK), Outcome::Pass(DECIDED));
            }
            1 => {
                assert_eq!(back(&mut node, &a, port, FIN | ACK), Outcome::Pass(DECIDED));
                assert_eq!(out(&mut node, &a, port, FIN | ACK), Outcome::Pass(0));
            }
            _ => assert_eq!(back(&mut node, &a, port, RST), Outcome::Pass(DECIDED)),
        }
        // The last acknowledgement, and a FIN that is sent once more because it was lost.
        assert_eq!(out(&mut node, &a, port, ACK), Outcome::Pass(0));
        assert_eq!(back(&mut node, &a, port, FIN | ACK), Outcome::Pass(DECIDED));
    }
    // The collector counts as the gates do, and forgets them after some seconds.
    let now = node.tables().collect(boot_time()).unwrap();
    assert_eq!((now.left, now.removed), (60, 0));
    assert_eq!(out(&mut node, &a, 2000, SYN), Outcome::Pass(0));
    let later = boot_time() + Duration::from_secs(7);
    let then = node.tables().collect(later).unwrap();
    assert_eq!((then.left, then.removed), (1, 60));
}

#[test]
fn who_ends_its_flows_at_once_fills_its_own_share_and_not_the_map() {
    let Some(mut node) = with_room_for("churn", 8) else {
        return;
    };
    let [a, _] = families();
    let theirs = Announced {
        endpoint: OTHER,
        ..announced()
    };
    let tables = node.tables();
    tables.set_announced(a.neighbour, PEER, &theirs).unwrap();
    let key = PairKey {
        local: NEIGHBOUR,
        ..pair()
    };
    let proven = Pair {
        expires: far(),
        epoch: EPOCH,
    };
    tables.set_pair(key, proven).unwrap();
    let other = Addresses {
        me: a.neighbour,
        ..a
    };
    // Twice what may be live: never more than one is. The map has room for 512.
    for port in 1000..1016 {
        assert_eq!(out(&mut node, &a, port, SYN), Outcome::Pass(0), "{port}");
        assert_eq!(out(&mut node, &a, port, RST), Outcome::Pass(0), "{port}");
    }
    let full = Outcome::Drop(Reason::EndpointFull);
    for port in 1016..2000 {
        assert_eq!(out(&mut node, &a, port, SYN), full, "{port}");
        assert_eq!(out(&mut node, &a, port, RST), full, "{port}");
    }
    for port in 1000..1008 {
        assert_eq!(out(&mut node, &other, port, SYN), Outcome::Pass(0));
    }
    assert_eq!(out(&mut node, &other, 1008, SYN), full, "live ones");
    // The collector counts as the gates do; what it has forgotten makes room.
    let now = node.tables().collect(boot_time()).unwrap();
    assert_eq!((now.left, now.removed), (24, 0));
    assert_eq!(out(&mut node, &a, 2000, SYN), full);
    assert_eq!(out(&mut node, &other, 1008, SYN), full);
    let later = boot_time() + Duration::from_secs(7);
    let then = node.tables().collect(later).unwrap();
    assert_eq!((then.left, then.removed), (8, 16));
    assert_eq!(out(&mut node, &a, 2000, SYN), Outcome::Pass(0));
}

#[test]
fn a_flow_that_one_side_has_ended_is_as_alive_as_before() {
    let Some(mut node) = with_room_for("half", 1) else {
        return;
    };
    let [a, _] = families();
    assert_eq!(out(&mut node, &a, 1000, SYN), Outcome::Pass(0));
    assert_eq!(out(&mut node, &a, 1000, FIN | ACK), Outcome::Pass(0));
    assert_eq!(
        out(&mut node, &a, 1000, FIN | ACK),
        Outcome::Pass(0),
        "again"
    );
    assert_eq!(
        out(&mut node, &a, 1001, SYN),
        Outcome::Drop(Reason::EndpointFull)
    );
    let later = boot_time() + Duration::from_secs(60);
    assert_eq!(node.tables().collect(later).unwrap().left, 1);
    assert_eq!(back(&mut node, &a, 1000, ACK), Outcome::Pass(DECIDED));
}

/// An endpoint of this test, with an address of the mesh.
fn another(node: &Node, number: u8) -> Addresses {
    let [a, _] = families();
    let tables = node.tables();
    let me = IpAddr::from([10, 1, 200, number]);
    let endpoint = EndpointId(1000 + u32::from(number));
    let local = Local {
        endpoint,
        identity: ME,
    };
    tables.set_local(me, local).unwrap();
    let theirs = Announced {
        endpoint,
        ..announced()
    };
    tables.set_announced(me, PEER, &theirs).unwrap();
    let policy = rule(Direction::Egress, THEM, Ports::Any, allow(Auth::Required));
    tables.replace_policy(endpoint, &[policy]).unwrap();
    Addresses { me, ..a }
}

#[test]
fn endpoints_that_fill_what_they_may_leave_places_for_one_that_comes_with_nothing() {
    const PLACES: u32 = 2048;
    let Some(mut node) = Node::with_connections("share", PLACES) else {
        return;
    };
    // Any of them might have all of the map, as far as its own bound goes.
    let settings = Settings {
        endpoint_connections: PLACES,
        ..node.tables().settings().unwrap()
    };
    node.tables().set_settings(&settings).unwrap();
    let mut taken = 0;
    let mut first = None;
    for number in 1..=12 {
        let greedy = another(&node, number);
        let opened = (1..=u16::MAX)
            .take_while(|port| out(&mut node, &greedy, *port, SYN) == Outcome::Pass(0))
            .count();
        let opened = u32::try_from(opened).unwrap();
        let refused = out(&mut node, &greedy, 60_000, SYN);
        assert_eq!(refused, Outcome::Drop(Reason::EndpointFull), "{number}");
        taken += opened;
        match number {
            1 => assert_eq!(opened, PLACES / 2),
            _ => assert!(opened >= 4, "{number}: {opened}, {taken} are taken"),
        }
        // Whoever has flows keeps them.
        let first = first.get_or_insert(greedy);
        assert_eq!(out(&mut node, first, 1, ACK), Outcome::Pass(0), "{number}");
    }
    assert!(taken < PLACES, "{taken}");
    // What is forgotten is free again, for everybody.
    let later = boot_time() + Duration::from_secs(100);
    let collected = node.tables().collect(later).unwrap();
    assert_eq!((collected.left, collected.removed), (0, taken as usize));
    let fresh = another(&node, 13);
    let opened = (1..=u16::MAX)
        .take_while(|port| out(&mut node, &fresh, *port, SYN) == Outcome::Pass(0))
        .count();
    assert_eq!(opened, PLACES as usize / 2);
}
