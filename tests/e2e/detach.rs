//! `handfast agent detach` takes everything of ours away and nothing else.

use std::time::Duration;

use crate::harness::lab::underlay;
use crate::harness::mesh::{Node, workload_addresses};
use crate::harness::process::{Process, command};
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
    for node in [&mesh.n1, &mesh.n2] {
        let (data, run, bpf) = (node.data_dir(), node.run_dir(), node.bpf_dir());
        let mut detach = node.command(&["agent", "detach"]);
        detach
            .arg("--data-dir")
            .arg(data)
            .arg("--run-dir")
            .arg(run)
            .arg("--bpf-dir")
            .arg(bpf);
        node.host
            .place
            .run(&mut detach, SOON)
            .unwrap()
            .success("handfast agent detach")
            .unwrap();
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
