//! Documents that mean harm, or are merely large: each is refused with a reason, or read, and soon.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fmt::Write;
use std::time::{Duration, Instant};

use handfast_policies::tools::cases::Cases;
use handfast_policies::tools::check::check;
use handfast_policies::tools::inventory::Inventory;
use handfast_policies::tools::observed;
use handfast_policies::{PolicySet, Remote, Source, Workload};
use spiffe::SpiffeId;

/// Generous, since tests are built without optimisation and share their cores.
const SOON: Duration = Duration::from_secs(30);

fn source(text: String) -> Source {
    Source {
        name: "p.yaml".to_owned(),
        text,
    }
}

/// The first error, which must come soon.
#[track_caller]
fn refused(text: impl Into<String>) -> String {
    let began = Instant::now();
    let errors = PolicySet::read(vec![source(text.into())]).expect_err("the text is refused");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    errors[0].to_string()
}

fn with_rule(rule: &str) -> String {
    format!(
        "apiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: a}}\nspec:\n  endpointSelector: \
         {{}}\n  ingress:\n  - {rule}\n"
    )
}

#[test]
fn aliases_that_would_grow_without_end_are_refused_at_the_first() {
    let mut bomb = String::from("a: &a [x]\n");
    for (name, before) in ('b'..='z').zip('a'..) {
        writeln!(
            bomb,
            "{name}: &{name} [*{before}, *{before}, *{before}, *{before}]"
        )
        .unwrap();
    }
    assert_eq!(
        refused(bomb),
        "p.yaml:2:8: aliases (*name) are not read: write the value out"
    );
}

#[test]
fn merge_keys_are_refused_like_any_unknown_field() {
    assert!(refused("x: &x {a: b}\ny:\n  <<: *x\n").contains("aliases"));
    assert_eq!(
        refused(with_rule("{<<: {fromEndpoints: [{}]}}")),
        "p.yaml:7:6: spec.ingress[0].<<: unknown field: use fromEndpoints, fromEntities, fromCIDR, fromCIDRSet, \
         toPorts, icmps, authentication or encryption"
    );
}

#[test]
fn nesting_ends_at_a_level_and_not_at_the_end_of_the_stack() {
    for text in [
        "[".repeat(500_000),
        "{a: ".repeat(200_000),
        "- ".repeat(400_000),
    ] {
        let error = refused(text);
        // The parser has a bound of its own, and looks ahead in mappings.
        let bounded = ["nested deeper than 32 levels", "recursion limit exceeded"];
        assert!(
            bounded.iter().any(|words| error.ends_with(words)),
            "{error}"
        );
    }
}

#[test]
fn a_scalar_as_large_as_the_text_may_be_is_refused_by_what_it_stands_for() {
    let large = "x".repeat(900_000);
    let error = refused(with_rule(&format!("fromCIDR: [\"{large}\"]")));
    assert!(
        error.ends_with("not a prefix: write one such as 10.0.0.0/8 or 2001:db8::/32"),
        "{}",
        error.len()
    );
    let error = refused(with_rule(&format!("{large}: 1")));
    assert!(
        error.len() < 1000,
        "an error does not repeat it: {}",
        error.len()
    );
    let error = refused(with_rule(&format!(
        "fromEndpoints: [{{matchLabels: {{a: \"{large}\"}}}}]"
    )));
    assert!(error.contains("not a label's value"), "{}", error.len());
}

#[test]
fn a_text_of_more_than_a_mebibyte_is_refused_unread() {
    assert!(refused("a".repeat((1 << 20) + 1)).contains("1048576 is the most that is read"));
}

#[test]
fn a_key_that_stands_twice_is_refused_wherever_it_is() {
    assert!(
        refused(with_rule("{fromEndpoints: [{}], fromEndpoints: []}"))
            .contains("stands here twice")
    );
    assert!(
        refused(with_rule("fromEndpoints: [{matchLabels: {a: b, a: c}}]"))
            .contains("stands here twice")
    );
}

#[test]
fn numbers_that_are_none_are_refused_as_what_they_are() {
    for (port, error) in [
        ("0x50", "not a port"),
        ("1e3", "not a port"),
        ("80.5", "not a port: write a number from 0 to 65535"),
        (
            "18446744073709551696",
            "not a port: write a number from 0 to 65535",
        ),
        ("+80", "not a port: write a number from 0 to 65535"),
        ("null", "port is missing"),
        ("[80]", "expected a string or a number, found a list"),
        ("\"８０\"", "not a port: write a number from 0 to 65535"),
        ("Http", "or a name of at most 15 of a-z, 0-9 and single -"),
        ("a--b", "or a name of at most 15 of a-z, 0-9 and single -"),
    ] {
        let found = refused(with_rule(&format!(
            "toPorts: [{{ports: [{{port: {port}}}]}}]"
        )));
        assert!(found.contains(error), "{port}: {found}");
    }
}

#[test]
fn ranges_turned_round_prefixes_with_host_bits_and_unknown_entities_are_refused() {
    for (rule, error) in [
        (
            "toPorts: [{ports: [{port: 90, endPort: 80}]}]",
            "the range is turned round: endPort 80 is below port 90",
        ),
        (
            "fromCIDR: [2001:db8::1/64]",
            "2001:db8::1/64 has bits set beyond its length: write 2001:db8::/64",
        ),
        (
            "fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.2.3/16]}]",
            "10.1.2.3/16 has bits set beyond its length: write 10.1.0.0/16",
        ),
        (
            "fromEntities: [wrold]",
            "unknown entity \"wrold\": use all, none, world, world-ipv4, world-ipv6, host or cluster; did you mean \
             world?",
        ),
        (
            "icmps: [{fields: [{type: 256}]}]",
            "not a type: write a number from 0 to 255, or a name such as EchoRequest",
        ),
        (
            "icmps: [{fields: [{type: EchoRequst}]}]",
            "did you mean EchoRequest?",
        ),
        (
            "{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: 80}]}]}",
            "icmps and toPorts cannot stand in one rule: write a rule for each",
        ),
    ] {
        let found = refused(with_rule(rule));
        assert!(found.ends_with(error), "{found}");
    }
}

#[test]
fn a_network_policy_that_kubernetes_would_refuse_is_refused() {
    let spec = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a}}\nspec: {spec}\n"
        )
    };
    for (written, error) in [
        (
            "{ingress: [{from: [{}]}]}",
            "it names nobody: write podSelector, namespaceSelector, both, or ipBlock",
        ),
        (
            "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            "ipBlock stands alone: write an item of its own for each",
        ),
        (
            "{ingress: [{ports: [{endPort: 90}]}]}",
            "there is no port that the range begins with: write port",
        ),
        (
            "{ingress: [{ports: [{port: http, endPort: 90}]}]}",
            "a port with a name begins no range: remove endPort, or write the number",
        ),
        (
            "{ingress: [{ports: [{port: 0}]}]}",
            "write a number from 1 to 65535, or leave port out to mean every one",
        ),
        ("{policyTypes: [Ingres]}", "did you mean Ingress?"),
        (
            "{podSelector: {matchLabels: {\"k8s:a\": b}}}",
            "not a label's name: use letters, digits, -, _, . and /",
        ),
        (
            "{endpointSelector: {}}",
            "handfast does not enforce endpointSelector: write podSelector",
        ),
    ] {
        let found = refused(spec(written));
        assert!(found.ends_with(error), "{written}: {found}");
    }
}

fn workload(labels: &[(&str, &str)]) -> Workload {
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Workload {
        spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
        labels: labels.collect(),
    }
}

#[test]
fn ten_thousand_rules_are_read_compiled_and_checked_soon() {
    let began = Instant::now();
    let mut text = with_rule("{fromEntities: [none]}");
    for number in 0..9_999 {
        let (port, label) = (1 + number % 60_000, number % 100);
        writeln!(
            text,
            "  - {{fromEndpoints: [{{matchLabels: {{a: l{label}}}}}], toPorts: [{{ports: [{{port: {port}}}]}}]}}"
        )
        .unwrap();
    }
    assert!(
        text.len() > 800_000 && text.len() < 1 << 20,
        "{}",
        text.len()
    );
    let set = PolicySet::read(vec![source(text)]).unwrap();
    assert_eq!(set.rules().count(), 10_000);
    let remote = Remote::Workload(workload(&[("a", "l7")]));
    assert_eq!(set.entries(&workload(&[]), &remote).len(), 3 * 100);
    let findings = check(&set, &Inventory::default());
    assert!(
        findings
            .iter()
            .any(|finding| finding.message.contains("too many to compare"))
    );
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn ten_thousand_overlapping_and_contradicting_ranges_compile_soon() {
    let mut text = with_rule("{fromEntities: [none]}");
    for number in 0..4_999 {
        writeln!(
            text,
            "  - {{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: {}, endPort: {}}}]}}]}}",
            1 + number,
            60_000 - number
        )
        .unwrap();
    }
    text.push_str("  ingressDeny:\n");
    for number in 0..2_000 {
        writeln!(
            text,
            "  - {{toPorts: [{{ports: [{{port: {}}}]}}]}}",
            1 + number * 30
        )
        .unwrap();
    }
    let set = PolicySet::read(vec![source(text)]).unwrap();
    let began = Instant::now();
    let entries = set.entries(&workload(&[]), &Remote::Workload(workload(&[])));
    assert!(entries.len() > 4_000, "{}", entries.len());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn selectors_over_labels_that_nobody_has_are_read_and_select_as_they_say() {
    let set = PolicySet::read(vec![source(with_rule(
        "fromEndpoints: [{matchExpressions: [{key: missing, operator: NotIn, values: [a]}]}]",
    ))])
    .unwrap();
    assert_eq!(
        set.entries(&workload(&[]), &Remote::Workload(workload(&[])))
            .len(),
        1
    );
    assert!(
        set.entries(
            &workload(&[]),
            &Remote::Workload(workload(&[("missing", "a")]))
        )
        .is_empty()
    );
}

#[test]
fn a_named_port_that_a_label_does_not_give_rightly_opens_nothing() {
    let set = PolicySet::read(vec![source(with_rule(
        "toPorts: [{ports: [{port: http}]}]",
    ))])
    .unwrap();
    for value in [
        "",
        "0",
        "65536",
        "80-TPC",
        "-80",
        "80-",
        "http",
        "80-TCP-UDP",
        " 80",
    ] {
        let local = workload(&[("handfast.io/port.http", value)]);
        assert!(set.entries(&local, &Remote::World).is_empty(), "{value:?}");
    }
    let local = workload(&[("handfast.io/port.http", "80-SCTP")]);
    assert_eq!(set.entries(&local, &Remote::World).len(), 1);
}

#[test]
fn the_tools_files_are_read_as_carefully() {
    for text in [
        "a: &a [*a]\n",
        "[[[[",
        "{tests: 1}",
        "tests: []\n",
        "",
        "workloads: {}\n",
        "- 1\n",
    ] {
        assert!(Cases::read(&source(text.to_owned())).is_err(), "{text:?}");
        assert!(
            Inventory::read(&source(text.to_owned())).is_err() || text.starts_with("workloads"),
            "{text:?}"
        );
    }
    let long = format!("{{\"verdict\": \"{}\"}}\n", "x".repeat(100_000));
    let errors = observed::read(&source(long.repeat(50)), &Inventory::default()).unwrap_err();
    assert_eq!(errors.len(), 20, "no more than these are listed");
}

/// As large as a registry prints it: far beyond what a policy may be, and with names that are all alike.
#[test]
fn tens_of_thousands_of_workloads_are_read_and_found_soon() {
    let count = 30_000;
    let entry = |number: usize| {
        format!(
            "{{\"id\": \"{number:032x}\", \"spiffe_id\": \"spiffe://example.org/ns/shop/sa/web\", \"parent_id\": null, \
             \"selectors\": [\"k8s:pod-uid:{number:032x}\"], \"labels\": {{\"app\": \"web\", \"number\": \"{number}\"}}}}"
        )
    };
    let entries: Vec<_> = (0..count).map(entry).collect();
    let text = format!("[{}]", entries.join(",\n"));
    assert!(text.len() > 4 << 20, "{} bytes", text.len());
    let began = Instant::now();
    let inventory = Inventory::read(&source(text)).unwrap();
    let last = inventory.named(&format!("shop/web-{count}")).unwrap();
    assert_eq!(last.workload.labels["number"], (count - 1).to_string());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}
