//! `handfast agent detach` takes everything of ours away and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use crate::harness::lab::underlay;
use crate::harness::mesh::{Node, workload_addresses};
use crate::harness::process::{Finished, Process, command};
use crate::support::{self, Mesh, PAGE, SOON};

#[test]
fn detach_leaves_nothing_of_ours_while_other_traffic_goes_on() {
    let Some(_turn) = support::turn("detach") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let client = mesh.workload(&mesh.n1, "good", &["client=good"], 2);
    let _http = support::serve(&mesh.lab, &server);
    let url = support::url(workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&client, &url, 5).as_deref(), Ok(PAGE));
    let mut ping = steady_ping(&mesh.n1);

    // Once with the agent running, once with it dead.
    mesh.n2.agent().unwrap().kill();
    // Somebody else's device under a name of ours: what is whose must be settled first, and nothing opens meanwhile.
    for (node, name) in [
        (&mesh.n1, "hf-wg1"),
        (&mesh.n2, "hf-wg1"),
        (&mesh.n2, "hf-xfrm0"),
    ] {
        let before = traces(node);
        ip(node, &["link", "add", name, "type", "bridge"]);
        support::fails(&detach(node), &[name, "nothing was changed"]);
        ip(node, &["link", "del", name]);
        assert_eq!(traces(node), before, "{}", node.name());
    }
    // Nor is a running agent stopped by it.
    mesh.n1.cli(&["status"]).unwrap().success("status").unwrap();
    assert_eq!(support::curl(&client, &url, 5).as_deref(), Ok(PAGE));
    for node in [&mesh.n1, &mesh.n2] {
        detach(node).success("handfast agent detach").unwrap();
        nothing_of_ours(node);
    }
    assert!(mesh.n1.agent().unwrap().wait(SOON).unwrap().success());
    let status = ping.wait(SOON).unwrap();
    assert!(
        status.success() && ping.output().contains(" 0% packet loss"),
        "{}",
        ping.output()
    );
}

/// Pings the other host over the underlay, for longer than a detach takes.
fn steady_ping(node: &Node) -> Process {
    let [v4, _] = underlay(2);
    let words = ["-c", "60", "-i", "0.05", "-W", "1", &v4.to_string()];
    node.host
        .place
        .spawn("underlay-ping", &mut command("ping", &words))
        .unwrap()
}

fn detach(node: &Node) -> Finished {
    let mut detach = node.command(&["agent", "detach"]);
    detach
        .arg("--data-dir")
        .arg(node.data_dir())
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--bpf-dir")
        .arg(node.bpf_dir());
    node.host.place.run(&mut detach, SOON).unwrap()
}

fn ip(node: &Node, words: &[&str]) {
    node.host
        .place
        .run(&mut command("ip", words), SOON)
        .unwrap()
        .success("ip")
        .unwrap();
}

/// The pins of our programs and links, and the names of our devices.
fn traces(node: &Node) -> (Vec<PathBuf>, Vec<String>) {
    let mut pins: Vec<PathBuf> = Vec::new();
    let mut folders = vec![node.bpf_dir().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            pins.push(path);
        }
    }
    pins.sort();
    let links = command("ip", &["-brief", "link", "show"]);
    let links = node.host.place.run(&mut { links }, SOON).unwrap();
    // Not their state: a device whose process was killed loses its carrier when the kernel comes to it.
    let names = links
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next());
    let ours = names.filter(|name| name.contains("hf-"));
    (pins, ours.map(str::to_owned).collect())
}

fn nothing_of_ours(node: &Node) {
    let asked = |program: &str, words: &[&str]| {
        node.host
            .place
            .run(&mut command(program, words), Duration::from_secs(5))
            .unwrap()
            .success(program)
            .unwrap()
            .stdout
    };
    for (program, words) in [
        ("ip", ["-o", "link", "show"].as_slice()),
        ("ip", &["rule", "show"]),
        ("ip", &["-6", "rule", "show"]),
        ("ip", &["route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("nft", &["list", "ruleset"]),
    ] {
        let said = asked(program, words);
        for trace in ["hf-", "handfast", "7250"] {
            assert!(
                !said.contains(trace),
                "{} {program} {words:?} still shows {trace}:\n{said}",
                node.name()
            );
        }
    }
    assert!(
        !node.bpf_dir().exists(),
        "{} is still there",
        node.bpf_dir().display()
    );
}
