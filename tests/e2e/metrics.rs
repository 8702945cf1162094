//! A real agent, scraped: everything that docs/metrics.md lists for agents is there, and counts what happened.

use std::collections::BTreeMap;

use crate::harness::mesh::{Node, workload_addresses};
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// Values by name and labels, as they stand in the exposition.
fn scrape(node: &Node) -> BTreeMap<String, f64> {
    let words = [
        "-sS",
        "--noproxy",
        "*",
        "-m",
        "5",
        "http://127.0.0.1:9750/metrics",
    ];
    let said = node.host.place.run(&mut command("curl", &words), SOON);
    let text = said.unwrap().success("curl").unwrap().stdout;
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

#[test]
fn what_happened_on_a_node_is_in_its_metrics() {
    let Some(_turn) = support::turn("metrics") else {
        return;
    };
    let mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(&support::example_policy());
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let bad = mesh.workload(&mesh.n1, "bad", &["client=bad"], 4);
    let url = support::url(workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE));
    assert!(support::curl(&bad, &url, 1).is_err());

    // The node asks for its workload's identity as the workload does.
    let socket = format!("unix://{}", mesh.n1.run_dir().join("agent.sock").display());
    let fetch = ["svid", "fetch", "x509", "--socket", &socket];
    let fetched = good
        .place
        .run(&mut command(support::binary(), &fetch), SOON);
    fetched.unwrap().success("svid fetch").unwrap();
    let stranger = mesh
        .n1
        .host
        .place
        .run(&mut command(support::binary(), &fetch), SOON);
    assert!(stranger.unwrap().success("svid fetch").is_err());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs_f64();

    let at_least = [
        ("handfast_agent_svids{kind=\"node\"}", 1.0),
        ("handfast_agent_svids{kind=\"proof\"}", 2.0),
        ("handfast_agent_svids{kind=\"workload\"}", 1.0),
        (
            "handfast_agent_svid_nearest_expiry_timestamp_seconds{kind=\"node\"}",
            now,
        ),
        (
            "handfast_agent_svid_nearest_expiry_timestamp_seconds{kind=\"proof\"}",
            now,
        ),
        (
            "handfast_agent_svid_nearest_expiry_timestamp_seconds{kind=\"workload\"}",
            now,
        ),
        ("handfast_agent_issue_seconds_count{kind=\"workload\"}", 1.0),
        ("handfast_agent_ca_connected", 1.0),
        ("handfast_agent_ca_sequence", 1.0),
        ("handfast_agent_bundle_sequence", 1.0),
        ("handfast_agent_deny_list_number", 1.0),
        ("handfast_agent_watched_workloads", 0.0),
        ("handfast_agent_workload_attestation_seconds_count", 2.0),
        ("handfast_agent_workload_api_calls_total{code=\"Ok\"}", 1.0),
        (
            "handfast_agent_workload_api_calls_total{code=\"PermissionDenied\"}",
            1.0,
        ),
        (
            "handfast_agent_workload_api_streams{method=\"FetchX509SVID\"}",
            0.0,
        ),
        ("handfast_agent_handshake_seconds_count", 1.0),
        ("handfast_agent_proof_verification_seconds_count", 1.0),
        (
            "handfast_agent_hold_seconds_count{outcome=\"released\"}",
            1.0,
        ),
        ("handfast_agent_pairs{state=\"recorded\"}", 1.0),
        ("handfast_agent_pairs{state=\"proven\"}", 1.0),
        ("handfast_agent_peers{state=\"live\"}", 1.0),
        ("handfast_agent_map_entries{map=\"auth\"}", 1.0),
        ("handfast_agent_map_entries{map=\"connections\"}", 1.0),
        ("handfast_agent_map_entries{map=\"policy\"}", 1.0),
        ("handfast_agent_map_entries{map=\"remotes\"}", 1.0),
        ("handfast_agent_packets_total{reason=\"held\"}", 1.0),
        ("handfast_agent_packets_total{reason=\"opened\"}", 1.0),
        ("handfast_agent_held_packets", 0.0),
        ("handfast_agent_held_bytes", 0.0),
        ("handfast_agent_events_lost_total{at=\"gates\"}", 0.0),
    ];
    for (name, least) in at_least {
        // Labels may be more than are asked for here.
        let (base, label) = name.split_once('{').unwrap_or((name, "}"));
        let label = label.trim_end_matches('}');
        let reached = wait::until(name, SOON, || {
            let found = scrape(&mesh.n1);
            let fits = |key: &str| key.split('{').next() == Some(base) && key.contains(label);
            let value = found
                .iter()
                .filter(|(key, _)| fits(key))
                .map(|(_, value)| *value);
            Ok(value.reduce(f64::max).filter(|value| *value >= least))
        });
        reached.unwrap_or_else(|error| panic!("{error:#}: {:#?}", scrape(&mesh.n1)));
    }
}

#[test]
fn every_metric_of_a_node_is_documented() {
    let Some(_turn) = support::turn("documented metrics") else {
        return;
    };
    let mesh = Mesh::start();
    let documented = std::fs::read_to_string(support::repository("docs/metrics.md")).unwrap();
    let suffixes = ["_bucket", "_sum", "_count"];
    for key in scrape(&mesh.n1).keys() {
        let name = key.split('{').next().unwrap_or(key);
        let name = suffixes
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is not in docs/metrics.md"
        );
    }
}
