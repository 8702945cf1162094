//! An address that changes hands: nothing of the new workload is taken for the old one's, and nothing that was meant
//! for the old one reaches the new one, whatever has become of the peer meanwhile.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::capture::{Capture, WireWatch};
use crate::harness::lab::Workload;
use crate::harness::mesh::{Endpoint, TUNNEL_PORTS, workload_addresses};
use crate::harness::process::{command, tool};
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

/// In every packet of the workload that has the address next.
const OF_THE_NEW: &[u8] = b"sent by the new workload";
/// In every packet that the server sends to the old one.
const FOR_THE_OLD: &[u8] = b"meant for the old workload";
/// The port of both.
const PORT: u16 = 4000;
/// Index of the server, of the address that changes hands, of a bystander.
const SERVER: u8 = 2;
const CONTESTED: u8 = 3;
const BYSTANDER: u8 = 4;

/// Only `client: good` may reach the server, by any protocol, proven; and the server sends to nobody else. Nothing
/// keeps anybody from sending to the new workload but that the server's node takes it for another.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: reuse}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
  egress:
    - toEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
";

#[test]
fn an_address_changes_hands_with_the_peer_in_reach() {
    change_hands("reachable", |_| {}, |_| {});
}

#[test]
fn an_address_changes_hands_while_the_peer_is_slow() {
    let slow = |mesh: &mut Mesh| {
        for (ns, device) in both_ends(mesh) {
            let words = [
                "-n", &ns, "qdisc", "add", "dev", device, "root", "tbf", "rate", "24kbit", "burst",
                "3000", "latency", "5s",
            ];
            tool("tc", &words).unwrap();
        }
    };
    let again = |mesh: &mut Mesh| {
        for (ns, device) in both_ends(mesh) {
            tool("tc", &["-n", &ns, "qdisc", "del", "dev", device, "root"]).unwrap();
        }
    };
    change_hands("slow", slow, again);
}

#[test]
fn an_address_changes_hands_while_only_packets_reach_the_peer() {
    change_hands("partitioned", partition, heal);
}

#[test]
fn an_address_changes_hands_while_its_own_agent_is_killed_and_the_peer_is_out_of_reach() {
    let cut_and_kill = |mesh: &mut Mesh| {
        partition(mesh);
        let removed = mesh.n1.cli(&["endpoint", "remove", "old"]).unwrap();
        removed.success("handfast endpoint remove").unwrap();
        mesh.n1.agent().unwrap().kill();
        mesh.n1.run().unwrap();
    };
    change_hands("own agent killed", cut_and_kill, heal);
}

/// The worst of partitions: the tunnel works on, and no withdrawal gets through.
fn partition(mesh: &mut Mesh) {
    let rules = "table inet partition {
        chain in {
            type filter hook prerouting priority -400;
            tcp dport 7250 drop
            tcp sport 7250 drop
        }
    }";
    let said = mesh.n2.host.place.run(&mut command("nft", &[rules]), SOON);
    said.unwrap().success("nft").unwrap();
}

fn heal(mesh: &mut Mesh) {
    let words = ["delete", "table", "inet", "partition"];
    let said = mesh.n2.host.place.run(&mut command("nft", &words), SOON);
    said.unwrap().success("nft").unwrap();
}

#[test]
fn an_address_changes_hands_while_the_peers_agent_is_dead() {
    let kill = |mesh: &mut Mesh| mesh.n2.agent().unwrap().kill();
    change_hands("its agent killed", kill, |mesh| mesh.n2.run().unwrap());
}

/// The bridge's port toward the second node, and that node's own interface.
fn both_ends(mesh: &Mesh) -> [(String, &'static str); 2] {
    [
        (mesh.lab.switch().name().to_owned(), "n2"),
        (mesh.n2.host.ns.name().to_owned(), "eth0"),
    ]
}

/// The old workload talks; the peer is hurt; the old one goes and another identity has its address at once; the peer
/// comes back.
fn change_hands(how: &str, hurt: impl FnOnce(&mut Mesh), heal: impl FnOnce(&mut Mesh)) {
    let Some(_turn) = support::turn(how) else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], SERVER);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(POLICY);
    let old = mesh.workload(&mesh.n1, "old", &["client=good"], CONTESTED);
    let new = mesh.lab.workload("new").unwrap();
    let labels = ["client=bad"];
    mesh.authority.entry("new", new.ns.name(), &labels).unwrap();
    let addresses = workload_addresses(1, CONTESTED);
    let url = support::url(workload_addresses(2, SERVER)[0]);
    assert!(support::curl(&old, &url, 5).is_ok());

    let at_server = Capture::start(&server.ns, watch(OF_THE_NEW)).unwrap();
    let at_old = Capture::start(&old.ns, watch(FOR_THE_OLD)).unwrap();
    let talk = Talk::start(&server, FOR_THE_OLD, &addresses);
    let _warm = Talk::start(&old, b"of the old one", &workload_addresses(2, SERVER));
    wait::until("the server's packets at the old workload", SOON, || {
        Ok(at_old.with(|seen| seen.secrets > 10).then_some(()))
    })
    .unwrap();

    hurt(&mut mesh);
    // Unless the hurting has done it.
    let endpoints: Vec<Endpoint> = mesh.n1.json(&["endpoint", "list"]).unwrap();
    if endpoints.iter().any(|endpoint| endpoint.name == "old") {
        let removed = mesh.n1.cli(&["endpoint", "remove", "old"]).unwrap();
        removed.success("handfast endpoint remove").unwrap();
    }
    let at_new = Capture::start(&new.ns, watch(FOR_THE_OLD)).unwrap();
    mesh.n1.attach(&new, CONTESTED).unwrap();
    mesh.n1.identified("new").unwrap();
    let flood = Talk::start(&new, OF_THE_NEW, &workload_addresses(2, SERVER));
    wait::pause(Duration::from_secs(4)).unwrap();
    heal(&mut mesh);
    // Longer than the address rests, and than a session needs to come back.
    wait::pause(Duration::from_secs(8)).unwrap();

    let (went, meant) = (flood.stop(), talk.stop());
    assert!(went > 500, "{how}: the new workload sent {went}");
    assert!(meant > 500, "{how}: the server sent {meant}");
    let seen = (
        at_server.with(|seen| seen.secrets),
        at_new.with(|seen| seen.secrets),
    );
    assert_eq!(
        seen,
        (0, 0),
        "{how}: packets of the new workload at the server, packets for the old at the new; {}",
        mesh.evidence()
    );
    // It is not just that nothing works any more.
    let bystander = mesh.workload(&mesh.n1, "good", &["client=good"], BYSTANDER);
    let page = wait::until("the right client after all that", SOON, || {
        Ok(support::curl(&bystander, &url, 3).ok())
    });
    assert!(page.is_ok(), "{how}: {}", mesh.evidence());
}

fn watch(marker: &[u8]) -> WireWatch {
    WireWatch::new(Vec::new(), b"", marker, &TUNNEL_PORTS)
}

/// Datagrams to port [`PORT`] of some addresses, a few hundred a second.
struct Talk {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Talk {
    fn start(from: &Workload, words: &'static [u8], to: &[IpAddr]) -> Self {
        // One for both families: what is IPv4 shows as a mapped address.
        let bind = || Ok(UdpSocket::bind(("::", PORT))?);
        let socket = from.ns.inside(bind).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mapped = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => *v6,
        };
        let to: Vec<SocketAddr> = to
            .iter()
            .map(|address| SocketAddr::new(mapped(address).into(), PORT))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !ending.load(Ordering::Relaxed) {
                for to in &to {
                    // A link that is gone refuses.
                    sent += u64::from(socket.send_to(words, to).is_ok());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it, and says how many were sent.
    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
