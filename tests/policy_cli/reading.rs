//! What is read, and what is wrong with it.

use std::path::Path;

use tempfile::TempDir;

use crate::{err, fails, good, out, policy, shop, write};

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
fn a_file_without_a_policy_is_said_to_have_none() {
    let folder = TempDir::new().unwrap();
    let empty = write(&folder, "empty.yaml", "");
    let output = policy(&["check", &empty]);
    assert_eq!(
        (output.status.code(), out(&output)),
        (Some(0), String::new())
    );
    assert!(err(&output).contains("there is no policy"), "{output:?}");
    // A program gets what it reads.
    let report = good(&["check", &empty, "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["ok"], true);
}

#[test]
fn what_kubectl_prints_is_read_from_standard_input() {
    let folder = TempDir::new().unwrap();
    let text = std::fs::read_to_string(shop("policies.yaml")).unwrap();
    let item = text.split("---\n").nth(2).unwrap();
    let item = item.replace('\n', "\n  ");
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: \"\"}}\nitems:\n- {item}\n"
    );
    let path = write(&folder, "list.yaml", list);
    assert!(good(&["check", &path]).contains("orders"));
    let moved = good(&[
        "migrate",
        "--from",
        "cilium",
        &path,
        "--enforcer",
        "handfast",
    ]);
    assert!(moved.contains("kind: HandfastPolicy"), "{moved}");
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
fn a_machine_that_is_closed_is_refused_but_for_ports_that_it_keeps_open_whatever_policy_says() {
    let folder = TempDir::new().unwrap();
    let machines =
        "- {spiffeId: 'spiffe://example.org/m', labels: {app: m}, selectors: ['endpoint:host']}\n";
    let machines = write(&folder, "m.yaml", machines);
    let closed = write(
        &folder,
        "p.yaml",
        "apiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {name: closed}\nspec: {endpointSelector: {}, ingress: [{}]}\n",
    );
    let args = ["check", &closed, "--workloads", &machines];
    let error = fails(&args, 1);
    assert!(error.contains("--exempt tcp/22"), "{error}");
    good(&[&args[..], &["--exempt", "tcp/22"]].concat());
    // The list of another port, or protocol, opens nothing here.
    for other in ["tcp/2222", "udp/22"] {
        fails(&[&args[..], &["--exempt", other]].concat(), 1);
    }
    fails(&[&args[..], &["--exempt", "22"]].concat(), 2);
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
    assert!(error.contains("exists already"), "{error}");
    // Nor is half of it written.
    std::fs::remove_file(format!("{target}/handfast-policies.yaml")).unwrap();
    let error = fails(&args, 1);
    assert!(error.contains("cilium-policies.yaml exists"), "{error}");
    assert!(!Path::new(&format!("{target}/handfast-policies.yaml")).exists());
    let none = write(&folder, "none.yaml", "# nothing\n");
    let args = ["migrate", "--from", "cilium", &none, "--enforcer", "cilium"];
    let error = fails(&args, 1);
    assert!(error.contains("no policy of Cilium's"), "{error}");
}
