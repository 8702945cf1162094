//! Nothing between managed addresses is ever on the underlay in clear: two workloads talk all the time, both ways and
//! in both families, while everything that happens to a node happens to these. What is on the wire is captured and
//! looked through, inside VXLAN, Geneve, IPIP and GRE too; and at the end the capture is shown frames that it must find.

mod events;
mod talk;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use self::events::{EVENTS, Event, a_way_past_the_tunnel};
use self::talk::Talk;
use crate::harness::capture::{Capture, WireWatch, inject};
use crate::harness::lab::Lab;
use crate::harness::mesh::{Authority, Node, TUNNEL_PORTS, ranges, workload_addresses};
use crate::harness::scan::canary;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

/// In every datagram, so that it is known in any disguise.
const MARKER: &[u8] = b"said between two workloads, in confidence";
const CANARY: &[u8] = b"planted, to be found";

#[test]
fn nothing_between_managed_addresses_is_in_clear_whatever_happens() {
    through("wireguard", EVENTS);
}

#[test]
fn nothing_between_managed_addresses_is_in_clear_over_ipsec_whatever_happens() {
    through("ipsec", EVENTS);
}

/// `HANDFAST_LEAK_EVENTS` of them, in an order that follows from `HANDFAST_SEED`.
#[test]
#[ignore = "takes as long as it is told to: scripts/soak.sh runs it"]
fn nothing_between_managed_addresses_is_in_clear_however_long_it_goes_on() {
    let number = |name: &str, usual: u64| {
        let told = std::env::var(name).ok();
        told.map_or(usual, |told| told.parse().unwrap())
    };
    let (count, mut state) = (
        number("HANDFAST_LEAK_EVENTS", 50),
        number("HANDFAST_SEED", 1),
    );
    let order: Vec<Event> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            EVENTS[usize::try_from(state >> 33).unwrap() % EVENTS.len()]
        })
        .collect();
    through("wireguard", &order);
}

fn through(encryption: &str, events: &[Event]) {
    let Some(_turn) = support::turn_over(&format!("leaks over {encryption}"), encryption) else {
        return;
    };
    // Cold: the wire is watched and the workloads talk before any agent has run.
    let lab = Lab::create("hft").unwrap();
    let wire = Capture::start(
        lab.switch(),
        WireWatch::new(ranges(), CANARY, MARKER, &TUNNEL_PORTS),
    )
    .unwrap();
    let authority = Authority::start(&lab, support::binary()).unwrap();
    let one = lab.workload("one").unwrap();
    let two = lab.workload("two").unwrap();
    let talk = [
        Talk::start(&one, workload_addresses(2, 2)),
        Talk::start(&two, workload_addresses(1, 2)),
    ];
    let [n1, n2] = [1, 2].map(|number| {
        let mut node = Node::create(&lab, support::binary(), number).unwrap();
        node.also(&["--encryption", encryption]);
        a_way_past_the_tunnel(&node);
        node.join(&authority).unwrap();
        node.run().unwrap();
        node
    });
    let mut mesh = Mesh {
        n1,
        n2,
        authority,
        lab,
    };
    for (node, workload) in [(&mesh.n1, &one), (&mesh.n2, &two)] {
        let (name, netns) = (&workload.short, workload.ns.name());
        mesh.authority.entry(name, netns, &["side=any"]).unwrap();
        node.attach(workload, 2).unwrap();
    }
    reaches(&mesh, &talk, "from cold");
    is_clean(&wire, "from cold");
    for (what, happens) in events {
        happens(&mut mesh);
        reaches(&mesh, &talk, what);
        is_clean(&wire, what);
        eprintln!("{what}: nothing in clear");
    }

    // The last: a node is no longer of the mesh. Nothing has to arrive any more, and nothing may show.
    let evicted = ["node", "evict", "n2", "--reason", "the end of this test"];
    let said = mesh.authority.cli(&evicted).unwrap();
    said.success("handfast node evict").unwrap();
    wait::pause(Duration::from_secs(2)).unwrap();
    is_clean(&wire, "a node is evicted");
    let sent: u64 = talk.into_iter().map(Talk::stop).sum();
    assert!(sent > 1000, "they hardly spoke: {sent}");
    assert_eq!(wire.lost().unwrap(), 0, "the capture missed frames");
    let tunnelled = wire.with(|wire| wire.tunnelled);
    assert!(tunnelled > 500, "{tunnelled} frames in the tunnel");

    finds_what_is_planted(&mesh, &wire);
}

/// The capture finds every frame that is put onto the wire past all gates, bare and in each disguise: those that are
/// known to be planted, and those that say what only workloads say.
fn finds_what_is_planted(mesh: &Mesh, wire: &Capture<WireWatch>) {
    // Onto the switch itself, where no gate is.
    let spare = mesh.lab.workload("spare").unwrap();
    let switch = mesh.lab.switch();
    let pair = "link add planted type veth peer name planted netns";
    switch.ip(&format!("{pair} {}", spare.ns.name())).unwrap();
    switch.ip("link set planted up").unwrap();
    spare.ns.ip("link set planted up").unwrap();
    let inner6 = |node| Ipv6Addr::new(0xfd77, 0, 0, node, 0, 0, 0, 2);
    let nobody = Ipv4Addr::new(172, 31, 250, 250);
    let mut planted = 0;
    for words in [CANARY, MARKER] {
        let frames = canary::frames(
            (Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 2, 2)),
            (inner6(1), inner6(2)),
            (nobody, nobody),
            words,
        );
        for (_, frame) in &frames {
            assert!(inject(&spare.ns, "planted", frame).unwrap());
        }
        planted = frames.len();
    }
    let all = wait::until("the planted frames", SOON, || {
        let seen = wire.with(|wire| (wire.canaries.len(), wire.clear, wire.secrets));
        let each = u64::try_from(planted)?;
        Ok((seen == (planted, each, each)).then_some(()))
    });
    all.unwrap_or_else(|error| {
        panic!(
            "{error:#}: {planted} frames, {}",
            wire.with(|wire| wire.describe_findings())
        )
    });
}

#[track_caller]
fn is_clean(wire: &Capture<WireWatch>, when: &str) {
    wire.with(|wire| {
        let found = (wire.clear, wire.secrets);
        assert_eq!(found, (0, 0), "{when}: {}", wire.describe_findings());
    });
}

/// Waits until both hear the other, by both families.
#[track_caller]
fn reaches(mesh: &Mesh, talk: &[Talk; 2], when: &str) {
    let before = talk.each_ref().map(Talk::heard);
    let all = wait::until("both to hear the other", 4 * SOON, || {
        let now = talk.each_ref().map(Talk::heard);
        let more = now.iter().zip(&before).all(|(now, before)| {
            let families = now.iter().zip(before);
            families.into_iter().all(|(now, before)| *now > before + 20)
        });
        Ok(more.then_some(()))
    });
    all.unwrap_or_else(|error| panic!("{when}: {error:#}\n{}", mesh.evidence()));
}
