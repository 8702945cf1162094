//! The short way of an established packet: what it looks at each time, what it takes from the flow's entry, and
//! that a change of the tables is never overlooked by it, not even one whose writer died.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::net::IpAddr;

use aya::maps::{Array, HashMap, Map, MapData};
use handfast_bpf::*;
use handfast_layout as layout;
use support::{packets::*, run::*};

fn data(node: &mut Node, a: &Addresses) -> Outcome {
    let bytes = frame(&ip(a.me, a.them, TCP, &tcp(40000, 80, ACK)));
    node.run("to_tunnel", GATED, &bytes)
}

/// A map, past the tables.
fn pinned(node: &Node, name: &str) -> MapData {
    MapData::from_pin(node.pins().join(name)).unwrap()
}

fn set_revision(node: &Node, revision: impl Fn(u64) -> u64) {
    let map = Map::Array(pinned(node, "revision"));
    let mut map = Array::<_, u64>::try_from(map).unwrap();
    let before = map.get(&0, 0).unwrap();
    map.set(0, revision(before), 0).unwrap();
}

fn forget_local(node: &Node, address: IpAddr) {
    let map = Map::HashMap(pinned(node, "locals"));
    let mut map = HashMap::<_, layout::Addr, layout::Local>::try_from(map).unwrap();
    let address = match address {
        IpAddr::V4(v4) => layout::Addr::v4(v4.octets()),
        IpAddr::V6(v6) => layout::Addr::v6(v6.octets()),
    };
    map.remove(&address).unwrap();
}

#[test]
fn whose_an_address_is_gets_looked_up_again_only_when_the_tables_say_so() {
    for a in families() {
        let Some(mut node) = Node::new(&format!("short-{}", icmp_proto(a.me))) else {
            return;
        };
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        // Behind the tables' back: nobody has said that anything changed.
        forget_local(&node, a.me);
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        set_revision(&node, |before| before + 2);
        assert_eq!(data(&mut node, &a), Outcome::Drop(Reason::NoEndpoint));
    }
}

#[test]
fn a_change_whose_writer_died_in_the_middle_is_seen_by_every_packet() {
    for a in families() {
        let Some(mut node) = Node::new(&format!("torn-{}", icmp_proto(a.me))) else {
            return;
        };
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        // An agent that begins a change, and is killed after one of its writes.
        set_revision(&node, |before| before | 1);
        assert_eq!(data(&mut node, &a), Outcome::Pass(0), "judged at length");
        forget_local(&node, a.me);
        assert_eq!(data(&mut node, &a), Outcome::Drop(Reason::NoEndpoint));
        // The next one puts it right, by any change of its own.
        let mine = Local {
            endpoint: ENDPOINT,
            identity: ME,
        };
        node.tables().set_local(a.me, mine).unwrap();
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        forget_local(&node, a.me);
        assert_eq!(data(&mut node, &a), Outcome::Pass(0), "the short way again");
    }
}

#[test]
fn session_pair_and_policy_are_looked_at_for_every_packet() {
    type Change = (&'static str, fn(&Node), Outcome);
    let changes: [Change; 3] = [
        (
            "sessions",
            |node| {
                let map = Map::HashMap(pinned(node, "sessions"));
                let mut map = HashMap::<_, u32, layout::Session>::try_from(map).unwrap();
                let mut session = map.get(&PEER.0, 0).unwrap();
                session.state = layout::SESSION_CUT;
                map.insert(PEER.0, session, 0).unwrap();
            },
            Outcome::Hold,
        ),
        (
            "auth",
            |node| {
                let map = Map::HashMap(pinned(node, "auth"));
                let mut map = HashMap::<_, layout::AuthKey, layout::Auth>::try_from(map).unwrap();
                let key = layout::AuthKey::new(ME.0, THEM.0, PEER.0);
                map.remove(&key).unwrap();
            },
            Outcome::Hold,
        ),
        (
            "policy",
            |node| node.tables().replace_policy(ENDPOINT, &[]).unwrap(),
            Outcome::Drop(Reason::NoRule),
        ),
    ];
    for (name, change, outcome) in changes {
        let a = families()[0];
        let Some(mut node) = Node::new(&format!("short-{name}")) else {
            return;
        };
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        assert_eq!(data(&mut node, &a), Outcome::Pass(0));
        change(&node);
        assert_eq!(data(&mut node, &a), outcome, "{name}");
    }
}
