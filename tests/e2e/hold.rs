//! A held packet is given back whole, in time, to the place it was taken from (DATAPATH.md).

use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::counters::Retransmissions;
use crate::harness::lab::Workload;
use crate::harness::mesh::workload_addresses;
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// While the server's agent is stopped no pair can be proven: whatever the client sends must wait.
#[test]
fn a_held_first_packet_to_a_service_address_connects_without_a_retransmission() {
    let Some(_turn) = support::turn("held first packet") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    let virtual_addresses: [IpAddr; 2] =
        ["10.96.0.80".parse().unwrap(), "fd96::80".parse().unwrap()];
    mesh.service(&mesh.n1, virtual_addresses, workload_addresses(2, 2));
    mesh.apply(&support::example_policy());

    // A pair is identities, an announcement is an address: a client of its own for each family.
    for (index, address) in (3..).zip(virtual_addresses) {
        let peer = mesh.n2.agent().unwrap().id().cast_signed();
        kill(Pid::from_raw(peer), Signal::SIGSTOP).unwrap();
        let client = mesh.workload(&mesh.n1, &format!("good{index}"), &["client=good"], index);
        connects_when_the_peer_wakes(&mesh, [&client, &server], address, peer);
        assert_eq!(entries_of_connection_tracking(&mesh, index), 1);
    }
}

fn connects_when_the_peer_wakes(mesh: &Mesh, ends: [&Workload; 2], address: IpAddr, peer: i32) {
    let before = ends.map(|w| Retransmissions::read(&w.ns).unwrap());
    let held = mesh.status(&mesh.n1).packets("held");
    let [client, _] = ends;
    let url = support::url(address);
    let mut curl = client
        .place
        .spawn(
            "held-curl",
            &mut command("curl", &["-sS", "-g", "--noproxy", "*", "-m", "5", &url]),
        )
        .unwrap();
    // A SYN is sent again after a second: from when it waits, the peer sleeps for a part of that.
    mesh.holds(&mesh.n1, held).unwrap();
    wait::pause(Duration::from_millis(200)).unwrap();
    assert!(
        curl.running(),
        "it got an answer without a proof: {}",
        curl.output()
    );
    kill(Pid::from_raw(peer), Signal::SIGCONT).unwrap();
    assert!(curl.wait(SOON).unwrap().success(), "{}", curl.output());
    assert!(curl.output().contains(PAGE));
    for (workload, before) in ends.into_iter().zip(before) {
        let since = Retransmissions::read(&workload.ns).unwrap().since(before);
        assert_eq!(
            since.syn, 0,
            "{}: SYN sent again to {address}",
            workload.short
        );
    }
}

/// Entries of the client's address to port 80; where the kernel shows none at all, the answer wanted is given.
fn entries_of_connection_tracking(mesh: &Mesh, index: u8) -> usize {
    let table = mesh.n1.host.ns.inside(|| {
        Ok(std::fs::read_to_string(
            "/proc/thread-self/net/nf_conntrack",
        ))
    });
    let Ok(Ok(table)) = table else {
        eprintln!(
            "skipped: the count of conntrack entries: the kernel has no /proc/net/nf_conntrack"
        );
        return 1;
    };
    let clients = workload_addresses(1, index);
    let is_ours = |line: &&str| {
        let original = line.split(" dst=").next().unwrap_or_default();
        line.contains("dport=80")
            && line.contains(" tcp ")
            && clients.iter().any(|client| {
                let text = match client {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => address
                        .segments()
                        .map(|segment| format!("{segment:04x}"))
                        .join(":"),
                };
                original.ends_with(&format!("src={text}"))
            })
    };
    table.lines().filter(is_ours).count()
}
