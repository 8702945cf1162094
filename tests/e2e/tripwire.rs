//! Nothing between managed addresses leaves a node in clear, whoever made the packet and whatever is around it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::harness::capture::{Capture, WireWatch, inject};
use crate::harness::mesh::{Node, TUNNEL_PORTS, ranges};
use crate::harness::scan::{Wrapping, canary};
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

#[test]
fn clear_frames_planted_on_the_node_itself_never_reach_the_underlay() {
    let Some(_turn) = support::turn("tripwire") else {
        return;
    };
    let mesh = Mesh::start();
    // Prefixes are known, and gates stand, from the first endpoints on.
    let _one = mesh.workload(&mesh.n1, "one", &[], 2);
    let _two = mesh.workload(&mesh.n2, "two", &[], 2);
    let watch = WireWatch::new(ranges(), b"planted-canary", b"no secret", &TUNNEL_PORTS);
    let wire = Capture::start(mesh.lab.switch(), watch).unwrap();
    let nobody = Ipv4Addr::new(172, 31, 250, 250);
    let inner6 = |node| Ipv6Addr::new(0xfd77, 0, 0, node, 0, 0, 0, 2);
    let frames = canary::frames(
        (Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 2, 2)),
        (inner6(1), inner6(2)),
        (nobody, nobody),
        b"planted-canary",
    );
    for (_, frame) in frames
        .iter()
        .filter(|(wrapping, _)| *wrapping != Wrapping::IcmpError)
    {
        inject(&mesh.n1.host.ns, "eth0", frame).unwrap();
    }
    wait::pause(Duration::from_millis(300)).unwrap();
    let seen = wire.with(|wire| std::mem::take(&mut wire.canaries));
    assert_eq!(seen, [], "{} frames got out", seen.len());
    assert!(stopped_by_the_tripwire(&mesh, &mesh.n1) >= 9);

    // The other direction: somebody on the underlay pretends to be the other node's workload.
    for (_, frame) in frames
        .iter()
        .filter(|(wrapping, _)| *wrapping == Wrapping::Plain)
    {
        inject(mesh.lab.switch(), "n2", frame).unwrap();
    }
    wait::until("the tripwire of the other node", SOON, || {
        Ok((stopped_by_the_tripwire(&mesh, &mesh.n2) >= 2).then_some(()))
    })
    .unwrap();
}

fn stopped_by_the_tripwire(mesh: &Mesh, node: &Node) -> u64 {
    let status = mesh.status(node);
    ["wire-out", "wire-out-inside", "wire-in", "wire-in-inside"]
        .iter()
        .map(|reason| status.packets(reason))
        .sum()
}
