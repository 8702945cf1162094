//! What is asked of policies that are good.

use std::process::Command;

use tempfile::TempDir;

use crate::{err, fails, good, out, policy, shop, write};

#[test]
fn cases_end_well_or_fail_and_leave_a_junit_report() {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("report.xml");
    let report = report.to_str().unwrap();
    good(&["test", &shop("tests.yaml"), "--junit", report]);
    let xml = std::fs::read_to_string(report).unwrap();
    assert!(xml.contains("tests=\"11\" failures=\"0\""), "{xml}");
    let wrong = write(
        &folder,
        "t.yaml",
        format!(
            "policies: [{}]\nworkloads: {}\ntests:\n- {{from: shop/web, to: shop/orders-db, port: 5432, expect: allow}}\n",
            shop("policies.yaml"),
            shop("workloads.yaml")
        ),
    );
    let error = fails(&["test", &wrong, "--junit", report], 1);
    assert!(error.contains("1 of 1 tests failed"), "{error}");
    assert!(
        std::fs::read_to_string(report)
            .unwrap()
            .contains("<failure message=")
    );
}

#[test]
fn a_flow_is_explained_for_people_and_for_programs() {
    let (policies, workloads) = (shop("policies.yaml"), shop("workloads.yaml"));
    let args = [
        "explain",
        "shop/orders",
        "10.42.2.13:5432",
        "--policy",
        &policies,
        "--workloads",
        &workloads,
    ];
    let words = good(&args);
    assert!(
        words.starts_with("shop/orders -> shop/orders-db tcp/5432: allowed if proven\n"),
        "{words}"
    );
    assert!(
        words.contains("allowed by shop/orders-db-proofs spec.ingress[0] ("),
        "{words}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&good(&[&args[..], &["--output", "json"]].concat())).unwrap();
    assert_eq!(json["outcome"], "proven");
    assert_eq!(json["ends"][1]["rule"]["line"], 140);
    let error = fails(
        &[
            "explain",
            "nobody",
            "shop/web:80",
            "--policy",
            &policies,
            "--workloads",
            &workloads,
        ],
        1,
    );
    assert!(
        error.contains("no workload is called \"nobody\""),
        "{error}"
    );
    fails(&["explain", "a", "b", "--policy", &policies], 2);
}

#[test]
fn a_proof_that_nobody_can_tell_of_does_not_hide_the_explanation() {
    let (policies, workloads) = (shop("policies.yaml"), shop("workloads.yaml"));
    let flow = ["explain", "shop/orders", "shop/orders-db:5432", "--proof"];
    let nobody = ["--agent-socket", "/nonexistent/admin.sock"];
    let files = ["--policy", &policies, "--workloads", &workloads];
    let output = policy(&[&flow[..], &nobody, &files].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        out(&output).contains("allowed if proven"),
        "{}",
        out(&output)
    );
    let error = err(&output);
    assert!(error.contains("on the node of either end"), "{error}");
    assert!(error.contains("/nonexistent/admin.sock"), "{error}");
    // Neither the CA nor an agent.
    let error = fails(&[&flow[..], &nobody].concat(), 1);
    assert!(error.contains("/nonexistent/ca.sock"), "{error}");
}

#[test]
fn without_files_the_ca_is_asked() {
    let error = fails(&["explain", "app=a", "app=b:80"], 1);
    assert!(error.contains("/nonexistent/ca.sock"), "{error}");
}

#[test]
fn a_pipeline_can_refuse_what_widens_access() {
    let folder = TempDir::new().unwrap();
    let before = shop("policies.yaml");
    let wider = std::fs::read_to_string(&before)
        .unwrap()
        .replace("port: 443", "port: 0");
    let after = write(&folder, "p.yaml", wider);
    let workloads = shop("workloads.yaml");
    let args = ["diff", &before, &after, "--workloads", &workloads];
    assert!(good(&args).contains("world"), "the change is listed");
    let error = fails(&[&args[..], &["--fail-on-widening"]].concat(), 1);
    assert!(error.contains("widen access"), "{error}");
    let none = policy(&["diff", &before, &before, "--fail-on-widening"]);
    assert_eq!((none.status.code(), out(&none)), (Some(0), String::new()));
    assert!(err(&none).contains("no flow"), "{none:?}");
}

#[test]
fn the_graph_comes_in_every_form() {
    let (policies, workloads, observed) = (
        shop("policies.yaml"),
        shop("workloads.yaml"),
        shop("observed.jsonl"),
    );
    let args = [
        "graph",
        &policies,
        "--workloads",
        &workloads,
        "--observed",
        &observed,
    ];
    let of = |format: &str| good(&[&args[..], &["--format", format]].concat());
    assert!(of("html").starts_with("<!doctype html>"));
    assert!(of("svg").starts_with("<svg "));
    assert!(of("dot").starts_with("digraph policies {"));
    let json: serde_json::Value = serde_json::from_str(&of("json")).unwrap();
    assert_eq!(json["nodes"].as_array().unwrap().len(), 9);
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("shop.html");
    assert_eq!(
        good(&[&args[..], &["--out", page.to_str().unwrap()]].concat()),
        ""
    );
    assert!(page.exists());
}

#[test]
fn what_is_suggested_can_be_checked_at_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("suggested.yaml");
    let path = path.to_str().unwrap();
    good(&[
        "suggest",
        &shop("observed.jsonl"),
        "--workloads",
        &shop("workloads.yaml"),
        "--out",
        path,
    ]);
    let listed = good(&["check", path, "--workloads", &shop("workloads.yaml")]);
    assert_eq!(listed.matches("HandfastPolicy").count(), 6, "{listed}");
}

#[test]
fn the_commands_of_the_documentation_do_what_they_say() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/policies.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let (_, block) = docs.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("shop")).unwrap();
    for name in [
        "policies.yaml",
        "workloads.yaml",
        "tests.yaml",
        "observed.jsonl",
    ] {
        std::fs::copy(shop(name), folder.path().join("shop").join(name)).unwrap();
    }
    std::fs::copy(shop("policies.yaml"), folder.path().join("changed.yaml")).unwrap();
    // What asks the CA is tried elsewhere.
    let lines: Vec<_> = block
        .lines()
        .filter(|line| !line.contains("policy apply"))
        .collect();
    assert_eq!(lines.len(), 6, "{block}");
    for line in lines {
        let (line, _) = line.split_once('#').unwrap_or((line, ""));
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("handfast"));
        let output = Command::new(env!("CARGO_BIN_EXE_handfast"))
            .args(words)
            .current_dir(&folder)
            .env("HANDFAST_CA_SOCKET", "/nonexistent/ca.sock")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {}", err(&output));
    }
}
