//! Two workloads of one node: no tunnel between them, but the same proof and the same policy.

use crate::harness::counters::Arrivals;
use crate::harness::mesh::{Pair, spiffe_id, workload_addresses};
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

#[test]
fn same_node_pairs_are_proven_and_the_wrong_client_never_arrives() {
    let Some(_turn) = support::turn("same node") else {
        return;
    };
    let mesh = Mesh::start();
    let node = &mesh.n1;
    let server = mesh.workload(node, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(&support::example_policy());
    let wrong = workload_addresses(1, 4);
    let arrivals = Arrivals::watch(&server.place, &[("wrong", &wrong)]).unwrap();
    let good = mesh.workload(node, "good", &["client=good"], 3);
    let bad = mesh.workload(node, "bad", &["client=bad"], 4);
    for address in workload_addresses(1, 2) {
        let url = support::url(address);
        assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE), "{url}");
        assert!(support::curl(&bad, &url, 1).is_err(), "{url}");
    }
    assert_eq!(arrivals.packets("wrong").unwrap(), 0);
    wait::until("the pair", SOON, || {
        let pairs: Vec<Pair> = node.json(&["pair", "list"])?;
        Ok(pairs
            .iter()
            .any(|pair| {
                let mut ends = [pair.local.as_str(), pair.remote.as_str()];
                ends.sort_unstable();
                ends == [spiffe_id("good"), spiffe_id("nginx")]
            })
            .then_some(()))
    })
    .unwrap();
    // Two identities are one pair, whichever is named first, wherever pairs are counted.
    let counted = wait::until("as many pairs everywhere", SOON, || {
        let listed: Vec<Pair> = node.json(&["pair", "list"])?;
        let status: serde_json::Value = node.json(&["status"])?;
        let words = ["-sS", "--noproxy", "*", "http://127.0.0.1:9750/metrics"];
        let metrics = node.host.place.run(&mut command("curl", &words), SOON)?;
        let proven = format!("handfast_agent_pairs{{state=\"proven\"}} {}", listed.len());
        let same = metrics.stdout.lines().any(|line| line == proven);
        Ok((same && status["pairs"] == listed.len()).then_some(()))
    });
    counted.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
}
