//! What happens to a mesh while its workloads talk.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::lab::underlay;
use crate::harness::mesh::Node;
use crate::harness::wait;
use crate::support::{Mesh, SOON};

/// Something that happens, and what it is called.
pub type Event = (&'static str, fn(&mut Mesh));

/// Everything that may happen to nodes; after each the workloads must reach each other again.
pub const EVENTS: &[Event] = &[
    ("a policy that requires proofs", |mesh| {
        mesh.apply(&policy("required"));
    }),
    ("a policy that does not", |mesh| {
        mesh.apply(&policy("disabled"));
    }),
    ("another endpoint comes and goes", |mesh| {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..3 {
            let name = format!("churn{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let _workload = mesh.workload(&mesh.n1, &name, &[], 9);
            command(&mesh.n1, &["endpoint", "remove", &name]);
        }
    }),
    ("the tunnel's keys change", |mesh| {
        command(&mesh.n1, &["tunnel", "rotate-keys"]);
    }),
    ("every pair is forgotten", |mesh| {
        command(&mesh.n2, &["pair", "flush"]);
    }),
    (
        "an agent stops, and its successor renews the session",
        |mesh| {
            mesh.n1.agent().unwrap().interrupt(SOON).unwrap();
            wait::pause(Duration::from_millis(500)).unwrap();
            mesh.n1.run().unwrap();
        },
    ),
    ("an agent is killed, and starts again", |mesh| {
        mesh.n2.agent().unwrap().kill();
        wait::pause(Duration::from_millis(500)).unwrap();
        mesh.n2.run().unwrap();
    }),
    ("both agents are killed at once", |mesh| {
        for node in [&mut mesh.n1, &mut mesh.n2] {
            node.agent().unwrap().kill();
        }
        for node in [&mut mesh.n1, &mut mesh.n2] {
            node.run().unwrap();
        }
    }),
    ("the underlay goes down, and up again", |mesh| {
        mesh.n1.host.ns.ip("link set eth0 down").unwrap();
        wait::pause(Duration::from_millis(500)).unwrap();
        mesh.n1.host.ns.ip("link set eth0 up").unwrap();
        underlay_again(mesh);
    }),
    ("somebody takes the tunnel's routes away", |mesh| {
        for family in ["-4", "-6"] {
            let flush = format!("{family} route flush table 7250");
            mesh.n1.host.ns.ip(&flush).unwrap();
        }
    }),
    ("somebody deletes the tunnel's device", |mesh| {
        for device in ["hf-wg0", "hf-wg1", "hf-xfrm0"] {
            // One of them is there.
            let _ = mesh.n1.host.ns.ip(&format!("link del {device}"));
        }
        wait::pause(Duration::from_secs(1)).unwrap();
        // A service manager does it, where the agent has ended over this.
        if !mesh.n1.agent().unwrap().running() {
            mesh.n1.launch().unwrap();
        }
    }),
];

/// What the network of a cluster may have long before any agent runs (flannel's host-gw): plain routes between the
/// nodes' workloads. Without handfast everything here would cross the wire in clear.
pub fn a_way_past_the_tunnel(node: &Node) {
    let other = 3 - node.number;
    let [v4, v6] = underlay(other);
    for route in [
        format!("route replace 10.77.{other}.0/24 via {v4}"),
        format!("-6 route replace fd77:0:0:{other}::/64 via {v6}"),
    ] {
        node.host.ns.ip(&route).unwrap();
    }
}

/// What goes with an interface that goes down: IPv6's addresses, and routes.
fn underlay_again(mesh: &Mesh) {
    for address in mesh.n1.host.addresses.iter().filter(|a| a.is_ipv6()) {
        let add = format!("-6 addr replace {address}/64 dev eth0 nodad");
        mesh.n1.host.ns.ip(&add).unwrap();
    }
    a_way_past_the_tunnel(&mesh.n1);
}

#[track_caller]
fn command(node: &Node, words: &[&str]) {
    let said = node.cli(words).unwrap();
    said.success(&words.join(" ")).unwrap();
}

fn policy(mode: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: leaks}}
spec:
  endpointSelector: {{matchLabels: {{side: any}}}}
  ingress:
    - fromEndpoints: [{{matchLabels: {{side: any}}}}]
      authentication: {{mode: {mode}}}
"
    )
}
