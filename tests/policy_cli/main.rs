//! `handfast policy` as people and pipelines call it: what it prints, what it writes, how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const SHOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop");

fn policy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_handfast"))
        .arg("policy")
        .args(args)
        .env("HANDFAST_CA_SOCKET", "/nonexistent/ca.sock")
        .output()
        .unwrap()
}

fn shop(file: &str) -> String {
    format!("{SHOP}/{file}")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn good(args: &[&str]) -> String {
    let output = policy(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    out(&output)
}

/// Fails with this exit code, and says why.
#[track_caller]
fn fails(args: &[&str], code: i32) -> String {
    let output = policy(args);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {} {}",
        out(&output),
        err(&output)
    );
    err(&output)
}

fn write(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_good_set_is_checked_and_ends_well() {
    let listed = good(&[
        "check",
        &shop("policies.yaml"),
        "--workloads",
        &shop("workloads.yaml"),
    ]);
    assert!(
        listed.contains("CiliumClusterwideNetworkPolicy  -          no-telnet"),
        "{listed}"
    );
}

#[test]
fn a_mistake_is_named_with_file_line_and_column() {
    let folder = TempDir::new().unwrap();
    let text = std::fs::read_to_string(shop("policies.yaml"))
        .unwrap()
        .replace("fromEntities: [world]", "fromEntities: [wrold]");
    let path = write(&folder, "p.yaml", text);
    let error = fails(&["check", &path], 1);
    assert!(
        error.starts_with(&format!(
            "{path}:15:22: spec.ingress[0].fromEntities[0]: unknown entity \"wrold\""
        )),
        "{error}"
    );
    assert!(error.ends_with("1 error; nothing was changed\n"), "{error}");
}

/// The policy that the README shows: written for Cilium.
fn readme_policy() -> String {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let (_, begun) = text.split_once("cat > db.yaml <<'END'\n").unwrap();
    let (policy, _) = begun.split_once("END\n").unwrap();
    policy.to_owned()
}

#[test]
fn the_readmes_policy_is_read_unchanged_and_a_mistake_in_any_line_is_explained_with_it() {
    let folder = TempDir::new().unwrap();
    let policy = readme_policy();
    good(&["check", &write(&folder, "good.yaml", &policy)]);
    // What stands there, the slip, and what is said of it.
    let slips = [
        (
            "apiVersion: cilium.io/v2",
            "apiVersion: cilium.io/v3",
            "cilium.io/v2",
        ),
        (
            "kind: CiliumNetworkPolicy",
            "kind: CiliumNetworkPolicies",
            "kind",
        ),
        ("  name: db", "  nme: db", "name"),
        (
            "  endpointSelector:",
            "  endpointSelectors:",
            "endpointSelector",
        ),
        (
            "    matchLabels:\n      app: db",
            "    matchLabel:\n      app: db",
            "matchLabels",
        ),
        ("      app: db", "      app: [db]", "matchLabels"),
        ("  ingress:", "  ingres:", "ingress"),
        ("  - fromEndpoints:", "  - fromEndpoint:", "fromEndpoints"),
        (
            "    authentication:",
            "    authentcation:",
            "authentication",
        ),
        ("      mode: required", "      mode: require", "required"),
        ("    toPorts:", "    toPort:", "toPorts"),
        ("    - ports:", "    - port:", "ports"),
        (
            "      - port: \"5432\"",
            "      - port: \"54322222\"",
            "port",
        ),
        ("        protocol: TCP", "        protocol: TCPP", "TCP"),
    ];
    for (right, wrong, hint) in slips {
        let (before, _) = policy
            .split_once(right)
            .unwrap_or_else(|| panic!("{right:?}"));
        // The first line of a slip is the wrong one, unless the slip is in a later one.
        let line =
            before.lines().count() + usize::from(before.is_empty() || before.ends_with('\n'));
        let path = write(&folder, "slip.yaml", policy.replacen(right, wrong, 1));
        let error = fails(&["check", &path], 1);
        assert!(
            error.contains(&format!("{path}:{line}:")),
            "{wrong:?}, line {line}: {error}"
        );
        assert!(error.contains(hint), "{wrong:?}: {error}");
        assert!(error.ends_with("nothing was changed\n"), "{error}");
    }
}

#[test]
fn what_is_not_even_text_is_named_with_its_place() {
    let folder = TempDir::new().unwrap();
    let path = write(
        &folder,
        "p.yaml",
        b"apiVersion: cilium.io/v2\nkind: \xff\xfe\n",
    );
    let error = fails(&["check", &path], 1);
    assert!(error.starts_with(&format!("{path}:2:7")), "{error}");
}

#[test]
fn a_set_that_would_cut_agents_from_the_ca_is_refused_unless_somebody_insists() {
    let folder = TempDir::new().unwrap();
    let workloads = write(
        &folder,
        "w.yaml",
        "- {spiffeId: 'spiffe://example.org/ca', labels: {app: ca}, addresses: [192.0.2.1]}\n",
    );
    let closed = write(
        &folder,
        "p.yaml",
        "apiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {name: closed}\nspec: {endpointSelector: {}, ingress: [{}]}\n",
    );
    let args = [
        "check",
        &closed,
        "--workloads",
        &workloads,
        "--ca-address",
        "192.0.2.1:7251",
    ];
    let error = fails(&args, 1);
    assert!(
        error.contains("refused: agents reach the CA: host -> ca tcp/7251 is denied"),
        "{error}"
    );
    assert!(error.contains("--allow-cut"), "{error}");
    good(&[&args[..], &["--allow-cut"]].concat());
    fails(&["check", &closed, "--store-address", "192.0.2.1:5432"], 2);
}

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
    good(&["diff", &before, &before, "--fail-on-widening"]);
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
fn a_migration_needs_to_know_who_enforces_and_overwrites_nothing() {
    let folder = TempDir::new().unwrap();
    let cilium = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nginx.yaml");
    let target = folder.path().join("moved");
    let target = target.to_str().unwrap();
    let error = fails(&["migrate", "--from", "cilium", cilium, "--out", target], 1);
    assert!(error.contains("say --enforcer cilium"), "{error}");
    assert!(!Path::new(target).exists(), "nothing was written");
    let args = [
        "migrate",
        "--from",
        "cilium",
        cilium,
        "--enforcer",
        "cilium",
        "--out",
        target,
    ];
    let output = policy(&args);
    assert!(output.status.success(), "{}", err(&output));
    assert!(
        err(&output).contains("is an allow as well"),
        "{}",
        err(&output)
    );
    good(&["check", &format!("{target}/handfast-policies.yaml")]);
    let stripped = std::fs::read_to_string(format!("{target}/cilium-policies.yaml")).unwrap();
    assert!(!stripped.contains("authentication"), "{stripped}");
    let error = fails(&args, 1);
    assert!(error.contains("it must not exist yet"), "{error}");
}

#[test]
fn the_published_schemas_are_what_the_command_prints() {
    let schema: serde_json::Value =
        serde_json::from_str(&good(&["schema", "--kind", "NetworkPolicy"])).unwrap();
    let committed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/policies/schema/NetworkPolicy.json"
    );
    let committed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(committed).unwrap()).unwrap();
    assert_eq!(schema, committed);
    let crd = good(&["schema", "--crd"]);
    let committed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/policies/schema/handfastpolicies.handfast.io.yaml"
    );
    assert_eq!(crd, std::fs::read_to_string(committed).unwrap());
}
