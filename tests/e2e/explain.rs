//! What is asked about one flow is answered from either end's node: which rule, which proof, until when, or exactly what
//! is missing where. What a node that is out of reach would say is unknown.

use serde::Deserialize;

use crate::harness::lab::{Lab, underlay};
use crate::harness::mesh::{Authority, Node, Verdict, spiffe_id};
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

const POLICY: &str = "
apiVersion: handfast.io/v1alpha1
kind: HandfastPolicy
metadata: {name: explained}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
    - fromEndpoints: [{matchLabels: {client: watched}}]
      authentication: {mode: audit}
    - fromEndpoints: [{matchLabels: {client: tested}}]
      authentication: {mode: test-always-fail}
";

#[derive(Debug, Deserialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    what: String,
    state: String,
    detail: String,
}

impl Report {
    #[track_caller]
    fn has(&self, what: &str, state: &str, words: &str) {
        let fits = |check: &&Check| {
            check.what == what && check.state == state && check.detail.contains(words)
        };
        assert!(
            self.checks.iter().any(|check| fits(&check)),
            "no {what:?} {state} with {words:?} in {self:#?}"
        );
    }
}

fn verify(node: &Node, from: &str, to: &str) -> Report {
    let mut ask = node.command(&["verify", from, to, "--output", "json"]);
    let said = node.host.place.run(&mut ask, SOON).unwrap();
    serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"))
}

#[test]
fn a_flow_is_explained_from_either_end_and_what_is_out_of_reach_is_unknown() {
    let Some(_turn) = support::turn("explain") else {
        return;
    };
    let mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(POLICY);
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    mesh.workload(&mesh.n1, "bad", &["client=bad"], 4);
    let url = support::url(crate::harness::mesh::workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE));

    let source = verify(&mesh.n1, "good", "nginx:80");
    let destination = verify(&mesh.n2, "good", "nginx:80");
    for (report, other) in [(&source, "n2"), (&destination, "n1")] {
        assert!(report.ok, "{report:#?}");
        report.has("ingress rule", "ok", "explained");
        report.has("pair", "ok", "ends in");
        report.has("proof", "ok", "ends in");
        report.has(&format!("pair on {other}"), "ok", "ends in");
        report.has(&format!("announcement on {other}"), "ok", "confirmed");
    }
    source.has("destination", "ok", &spiffe_id("nginx"));
    destination.has("source", "ok", &spiffe_id("good"));

    let denied = verify(&mesh.n1, "bad", "nginx:80");
    assert!(!denied.ok);
    denied.has("ingress rule", "missing", "no rule allows this flow");

    // Neither end is here: it is said where to ask.
    let said = mesh.n1.cli(&["verify", "nginx", "n2:80"]).unwrap();
    support::fails(&said, &["neither", "node of either"]);

    // The session's packets no longer get through; the tunnel's do.
    let [v4, v6] = underlay(2);
    let rules = format!(
        "table inet partition {{
           chain out {{
             type filter hook output priority 0
             ip daddr {v4} tcp dport 7250 drop
             ip daddr {v4} tcp sport 7250 drop
             ip6 daddr {v6} tcp dport 7250 drop
             ip6 daddr {v6} tcp sport 7250 drop
           }}
         }}"
    );
    let place = &mesh.n1.host.place;
    let said = place.run(&mut command("nft", &[&rules]), SOON).unwrap();
    said.success("nft").unwrap();
    let alone = verify(&mesh.n1, "good", "nginx:80");
    assert!(!alone.ok, "{alone:#?}");
    alone.has("on n2", "unknown", "n2");
    alone.has("pair", "ok", "proven");

    // Its address goes to another, and the peer does not know: that is what is missing.
    let removed = mesh.n1.cli(&["endpoint", "remove", "good"]).unwrap();
    removed.success("endpoint remove").unwrap();
    mesh.workload(&mesh.n1, "next", &["client=good"], 3);
    let next = verify(&mesh.n1, "next", "nginx:80");
    next.has("announcement", "missing", "as another endpoint's");
}

#[derive(Debug, Deserialize)]
struct Pair {
    local: String,
    remote: String,
    local_proof: Option<Proof>,
    remote_proof: Option<Proof>,
    rules: Vec<String>,
    expires_in_s: u64,
}

#[derive(Debug, Deserialize)]
struct Proof {
    serial: String,
    expires_in_s: u64,
}

#[test]
fn pairs_are_listed_with_rule_and_proofs_and_a_revoked_end_is_named_from_either_node() {
    let Some(_turn) = support::turn("pairs and revocation explained") else {
        return;
    };
    let mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(POLICY);
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let url = support::url(crate::harness::mesh::workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE));

    let (client, server_id) = (spiffe_id("good"), spiffe_id("nginx"));
    let mut serials = Vec::new();
    for (node, local, remote) in [
        (&mesh.n1, &client, &server_id),
        (&mesh.n2, &server_id, &client),
    ] {
        let pairs: Vec<Pair> = node.json(&["pair", "list"]).unwrap();
        let mut fitting = pairs.iter();
        let pair = fitting.find(|pair| pair.local == *local && pair.remote == *remote);
        let pair = pair.unwrap_or_else(|| panic!("{pairs:#?}"));
        assert!(
            pair.rules.iter().any(|rule| rule.contains("explained")),
            "{pair:#?}"
        );
        let proofs = [&pair.local_proof, &pair.remote_proof];
        let [ours, theirs] = proofs.map(|proof| proof.as_ref().unwrap());
        let first = ours.expires_in_s.min(theirs.expires_in_s);
        assert!(pair.expires_in_s <= first + 1, "{pair:#?}");
        serials.push([ours.serial.clone(), theirs.serial.clone()]);
    }
    serials[1].reverse();
    assert_eq!(serials[0], serials[1], "both ends name the same proofs");

    let words = [
        "revoke",
        "--spiffe-id",
        &client,
        "--reason",
        "test",
        "--wait",
        "20s",
    ];
    let said = mesh.authority.cli(&words).unwrap();
    said.success("handfast revoke").unwrap();
    for node in [&mesh.n1, &mesh.n2] {
        let report = verify(node, "good", "nginx:80");
        assert!(!report.ok, "{report:#?}");
        report.has("revocation", "missing", &client);
    }

    // A whole node: the others name it, and it says of itself that it is turned away.
    let words = ["revoke", "--node", "n1", "--reason", "test"];
    let said = mesh.authority.cli(&words).unwrap();
    said.success("handfast revoke").unwrap();
    let address = crate::harness::mesh::workload_addresses(1, 3)[0].to_string();
    for (node, what) in [(&mesh.n2, "revocation"), (&mesh.n1, "node")] {
        let named = wait::until("the revoked node to be named", SOON, || {
            let report = verify(node, &address, "nginx:80");
            let mut checks = report.checks.into_iter();
            Ok(checks.find(|check| check.what == what && check.detail.contains("node")))
        });
        assert_eq!(named.unwrap().state, "missing");
    }
    let undo = ["revoke", "--node", "n1", "--undo", "--reason", "test"];
    let said = mesh.authority.cli(&undo).unwrap();
    said.success("handfast revoke --undo").unwrap();
    wait::until("the alarm to be over", SOON * 2, || {
        let alarms = mesh.status(&mesh.n1).alarms;
        let mut turned_away = alarms.iter().filter(|one| one.text.contains("turns"));
        Ok(turned_away.next().is_none().then_some(()))
    })
    .unwrap();
}

#[test]
fn a_dry_run_of_what_would_be_refused_fails_and_wrong_words_are_wrong_usage() {
    let Some(_turn) = support::turn("revoke, dry") else {
        return;
    };
    let lab = Lab::create("hft").unwrap();
    let authority = Authority::start(&lab, support::binary()).unwrap();
    let revoke = |words: &[&str]| {
        let all = [&["revoke", "--reason", "test"], words].concat();
        authority.cli(&all).unwrap()
    };
    let id = spiffe_id("nobody");
    for words in [
        ["--node", "nobody"].as_slice(),
        &["--node", "nobody", "--dry-run"],
        &["--spiffe-id", &id, "--undo"],
        &["--spiffe-id", &id, "--undo", "--dry-run"],
    ] {
        support::fails(&revoke(words), &["nobody", "nothing was changed"]);
    }
    assert_eq!(revoke(&["--spiffe-id", "nobody"]).code(), 2);
    let verify = ["verify", "a", "b:80", "--protocol", "smoke"];
    assert_eq!(authority.cli(&verify).unwrap().code(), 2);
}

#[test]
fn audited_and_always_failing_flows_are_counted_and_seen() {
    let Some(_turn) = support::turn("audit and test modes") else {
        return;
    };
    let mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(POLICY);
    let watched = mesh.workload(&mesh.n1, "watched", &["client=watched"], 3);
    let tested = mesh.workload(&mesh.n1, "tested", &["client=tested"], 4);
    let url = support::url(crate::harness::mesh::workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&watched, &url, 5).as_deref(), Ok(PAGE));
    assert!(support::curl(&tested, &url, 2).is_err());

    // The agent hears of verdicts when it comes to it.
    let seen = |words: &[&str], fits: &dyn Fn(&Verdict) -> bool| {
        let seen = wait::until(&format!("a verdict by {words:?}"), SOON, || {
            Ok(mesh.n2.observed(words)?.iter().any(fits).then_some(()))
        });
        seen.unwrap_or_else(|error| panic!("{error:#}: {:#?}", mesh.n2.observed(&[])));
    };
    seen(&["--verdict", "dropped"], &|verdict| {
        verdict.reason.contains("test-always-fail")
    });
    seen(&["--from", "watched"], &|verdict| {
        matches!(verdict.verdict.as_str(), "audit" | "forwarded")
    });
    let packets = mesh.status(&mesh.n2).packets("test-always-fail");
    assert!(packets > 0, "{packets} packets counted");
}

#[test]
fn revoke_names_the_nodes_that_have_applied_it_and_those_that_have_not() {
    let Some(_turn) = support::turn("revoke says where") else {
        return;
    };
    let mut mesh = Mesh::start();
    mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let id = spiffe_id("good");
    let words = [
        "revoke",
        "--spiffe-id",
        &id,
        "--reason",
        "test",
        "--wait",
        "20s",
    ];
    let said = mesh
        .authority
        .cli(&words)
        .unwrap()
        .success("revoke")
        .unwrap();
    assert!(
        said.stdout.contains("applied on 2 of 2 nodes: n1, n2"),
        "{said:?}"
    );

    mesh.n2.agent().unwrap().kill();
    let undo = [
        "revoke",
        "--spiffe-id",
        &id,
        "--undo",
        "--reason",
        "test",
        "--wait",
        "5s",
    ];
    let said = mesh
        .authority
        .cli(&undo)
        .unwrap()
        .success("revoke --undo")
        .unwrap();
    assert!(
        said.stdout.contains("applied on 1 of 2 nodes: n1"),
        "{said:?}"
    );
    assert!(said.stdout.contains("not yet on 1: n2"), "{said:?}");
}

#[test]
fn a_workload_without_an_entry_is_told_what_to_do_and_its_flows_what_they_lack() {
    let Some(_turn) = support::turn("no entry") else {
        return;
    };
    let mut mesh = Mesh::start();
    let nobody = mesh.lab.workload("nobody").unwrap();
    let netns = nobody.ns.name();
    let [v4, _] = crate::harness::mesh::workload_addresses(1, 5).map(|one| one.to_string());
    let add = [
        "endpoint",
        "add",
        "--netns",
        netns,
        "--name",
        "nobody",
        "--address",
        &v4,
    ];
    let said = mesh.n1.cli(&add).unwrap().success("endpoint add").unwrap();
    let selector = format!("--selector netns:{netns}");
    for words in ["heard of", &selector] {
        assert!(said.stderr.contains(words), "{said:?}");
    }
    let lacks = verify(&mesh.n1, "nobody", "10.77.2.2:80");
    lacks.has("source", "missing", "no entry's selectors match it");

    mesh.authority.server().unwrap().kill();
    wait::until("the CA to be missed", SOON, || {
        Ok((!mesh.status(&mesh.n1).ca_connected).then_some(()))
    })
    .unwrap();
    let lacks = verify(&mesh.n1, "nobody", "10.77.2.2:80");
    lacks.has("source", "missing", "the CA is not reached");
}
