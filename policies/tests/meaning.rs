//! What policies mean: Cilium's semantics case by case, and ours where Cilium has none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::time::Duration;

use handfast_policies::{
    Authentication, Direction, Encryption, Entry, PolicySet, Protocol, Remote, Source, Verdict,
    Workload, lookup,
};
use spiffe::SpiffeId;

use Authentication::{Audit, Disabled, Required, TestAlwaysFail};
use Direction::{Egress, Ingress};
use Protocol::{Any, Sctp, Tcp, Udp};

fn workload(id: &str, labels: &[(&str, &str)]) -> Workload {
    let id = if id.contains("://") {
        id.to_owned()
    } else {
        format!("spiffe://example.org/{id}")
    };
    let labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Workload {
        spiffe_id: SpiffeId::new(id).unwrap(),
        labels: labels.collect::<BTreeMap<_, _>>(),
    }
}

fn nginx() -> Workload {
    workload("nginx", &[("run", "nginx")])
}

fn good() -> Remote {
    Remote::Workload(workload("good", &[("client", "good")]))
}

fn bad() -> Remote {
    Remote::Workload(workload("bad", &[("client", "bad")]))
}

fn document(kind: &str, namespace: Option<&str>, name: &str, spec: &str) -> String {
    let version = if kind == "HandfastPolicy" {
        "handfast.io/v1alpha1"
    } else {
        "cilium.io/v2"
    };
    let namespace = namespace
        .map(|n| format!(", namespace: {n}"))
        .unwrap_or_default();
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {{{spec}}}\n"
    )
}

#[track_caller]
fn read(text: &str) -> PolicySet {
    PolicySet::read(vec![Source {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    }])
    .unwrap_or_else(|errors| panic!("{errors:#?}\n{text}"))
}

/// CiliumNetworkPolicies without a namespace.
#[track_caller]
fn cilium(specs: &[&str]) -> PolicySet {
    let documents = specs.iter().enumerate();
    read(
        &documents
            .map(|(n, spec)| document("CiliumNetworkPolicy", None, &format!("p{n}"), spec))
            .collect::<String>(),
    )
}

#[track_caller]
fn native(specs: &[&str]) -> PolicySet {
    let documents = specs.iter().enumerate();
    read(
        &documents
            .map(|(n, spec)| document("HandfastPolicy", None, &format!("p{n}"), spec))
            .collect::<String>(),
    )
}

fn decision(
    set: &PolicySet,
    local: &Workload,
    remote: &Remote,
    direction: Direction,
    protocol: Protocol,
    port: u16,
) -> Option<Entry> {
    lookup(&set.entries(local, remote), direction, protocol, port).cloned()
}

/// Whether a flow passes: by default where the workload is not selected.
fn passes(
    set: &PolicySet,
    local: &Workload,
    remote: &Remote,
    direction: Direction,
    protocol: Protocol,
    port: u16,
) -> bool {
    match decision(set, local, remote, direction, protocol, port) {
        Some(entry) => entry.verdict == Verdict::Allow,
        None => !set.selected(local, direction),
    }
}

fn receives(set: &PolicySet, remote: &Remote, port: u16) -> bool {
    passes(set, &nginx(), remote, Ingress, Tcp, port)
}

const EVERYONE: [fn() -> Remote; 6] = [
    good,
    bad,
    || Remote::Cidr("10.0.0.0/8".parse().unwrap()),
    || Remote::Host,
    || Remote::World,
    || Remote::Unknown,
];

#[test]
fn the_example_lets_only_the_good_client_in_and_only_on_80_and_only_proven() {
    let set = read(include_str!("../../examples/nginx.yaml"));
    let entries = set.entries(&nginx(), &good());
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].auth, Some(Required));
    assert_eq!(
        set.rule(entries[0].rule).unwrap().to_string(),
        "nginx spec.ingress[0] (examples:13)".replace("examples", "p.yaml")
    );
    assert!(receives(&set, &good(), 80));
    assert!(!receives(&set, &good(), 81));
    assert!(!passes(&set, &nginx(), &good(), Ingress, Udp, 80));
    assert!(!passes(&set, &nginx(), &good(), Ingress, Any, 0));
    for remote in EVERYONE.iter().skip(1) {
        assert!(!receives(&set, &remote(), 80), "{:?}", remote());
    }
    let Remote::Workload(client) = good() else {
        unreachable!()
    };
    assert!(
        !set.selected(&client, Ingress),
        "the client itself stays open"
    );
    assert!(set.selected(&nginx(), Ingress));
    assert!(
        !set.selected(&nginx(), Egress),
        "no egress rule, no default deny"
    );
}

#[test]
fn an_empty_rule_denies_everything_and_an_empty_list_nothing() {
    let closed = cilium(&["endpointSelector: {}, ingress: [{}], egress: []"]);
    for remote in EVERYONE {
        assert!(!receives(&closed, &remote(), 80), "{:?}", remote());
    }
    assert!(!closed.selected(&nginx(), Egress));
}

#[test]
fn no_endpoints_at_all_is_nobody_and_an_empty_selector_is_every_workload() {
    let nobody = cilium(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: \"80\"}]}]}]",
    ]);
    let workloads = cilium(&["endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]"]);
    for remote in EVERYONE {
        let remote = remote();
        assert!(!receives(&nobody, &remote, 80), "{remote:?}");
        let is_workload = matches!(remote, Remote::Workload(_));
        assert_eq!(receives(&workloads, &remote, 80), is_workload, "{remote:?}");
    }
}

#[test]
fn a_rule_without_peers_is_for_everybody() {
    let set = cilium(&[
        "endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]",
    ]);
    for remote in EVERYONE {
        assert!(receives(&set, &remote(), 80), "{:?}", remote());
        assert!(!receives(&set, &remote(), 443), "{:?}", remote());
    }
}

#[test]
fn peers_and_ports_of_one_rule_must_both_match() {
    let set = cilium(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {client: good}}], toPorts: \
                        [{ports: [{port: \"80\", protocol: TCP}]}]}]",
    ]);
    assert!(receives(&set, &good(), 80));
    assert!(!receives(&set, &good(), 443));
    assert!(!receives(&set, &bad(), 80));
}

#[test]
fn rules_and_policies_add_up() {
    let set = cilium(&[
        "endpointSelector: {matchLabels: {run: nginx}}, ingress: [{fromEndpoints: [{matchLabels: {client: good}}]}, \
         {fromCIDR: [10.0.0.0/8]}]",
        "endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {client: bad}}], toPorts: [{ports: [{port: \
         \"443\"}]}]}]",
    ]);
    assert!(receives(&set, &good(), 80));
    assert!(receives(
        &set,
        &Remote::Cidr("10.0.0.0/8".parse().unwrap()),
        80
    ));
    assert!(receives(&set, &bad(), 443));
    assert!(!receives(&set, &bad(), 80));
    assert!(!receives(&set, &Remote::World, 443));
}

#[test]
fn specs_of_one_document_count_each_for_itself() {
    let set = read(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspecs:\n\
         - {endpointSelector: {matchLabels: {run: nginx}}, ingress: [{}]}\n\
         - {endpointSelector: {matchLabels: {client: good}}, egress: [{toEndpoints: [{matchLabels: {run: nginx}}]}]}\n",
    );
    let Remote::Workload(client) = good() else {
        unreachable!()
    };
    assert!(set.selected(&nginx(), Ingress) && !set.selected(&nginx(), Egress));
    assert!(set.selected(&client, Egress) && !set.selected(&client, Ingress));
}

#[test]
fn expressions_mean_what_they_mean_in_kubernetes() {
    let matches = |expression: &str, remote: &Remote| {
        let set = cilium(&[&format!(
            "endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{matchExpressions: [{{{expression}}}]}}]}}]"
        )]);
        receives(&set, remote, 80)
    };
    let bare = Remote::Workload(workload("bare", &[]));
    for (expression, for_good, for_bad, for_bare) in [
        (
            "key: client, operator: In, values: [good, better]",
            true,
            false,
            false,
        ),
        (
            "key: client, operator: NotIn, values: [good]",
            false,
            true,
            true,
        ),
        ("key: client, operator: Exists", true, true, false),
        ("key: client, operator: DoesNotExist", false, false, true),
    ] {
        let found = [
            matches(expression, &good()),
            matches(expression, &bad()),
            matches(expression, &bare),
        ];
        assert_eq!(found, [for_good, for_bad, for_bare], "{expression}");
    }
}

#[test]
fn the_prefixes_k8s_and_any_select_signed_labels() {
    for key in ["client", "k8s:client", "any:client"] {
        let set = cilium(&[&format!(
            "endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{matchLabels: {{\"{key}\": good}}}}]}}]"
        )]);
        assert!(
            receives(&set, &good(), 80) && !receives(&set, &bad(), 80),
            "{key}"
        );
    }
}

#[test]
fn reserved_labels_select_the_host_and_the_world() {
    let rule = |label: &str| {
        cilium(&[&format!(
            "endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{matchLabels: {{\"reserved:{label}\": \"\"}}}}]}}]"
        )])
    };
    let received = |set: &PolicySet| EVERYONE.map(|remote| receives(set, &remote(), 80));
    assert_eq!(
        received(&rule("host")),
        [false, false, false, true, false, false]
    );
    assert_eq!(
        received(&rule("world")),
        [false, false, true, false, true, false]
    );
}

#[test]
fn a_namespaced_policy_stays_in_its_namespace_unless_a_peer_names_another() {
    let at = |name: &str, namespace: &str| {
        let namespace_labels =
            format!("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name={namespace}");
        let (key, value) = namespace_labels.split_once('=').unwrap();
        workload(
            name,
            &[
                ("io.kubernetes.pod.namespace", namespace),
                ("app", "x"),
                (key, value),
            ],
        )
    };
    let set = |peer: &str| {
        read(&document(
            "CiliumNetworkPolicy",
            Some("shop"),
            "p",
            &format!("endpointSelector: {{}}, ingress: [{{fromEndpoints: [{peer}]}}]"),
        ))
    };
    let from = |peer: &str, namespace: &str| {
        passes(
            &set(peer),
            &at("local", "shop"),
            &Remote::Workload(at("remote", namespace)),
            Ingress,
            Tcp,
            80,
        )
    };
    assert!(!set("{}").selected(&at("local", "bank"), Ingress));
    assert!(from("{}", "shop") && !from("{}", "bank"));
    for bank in [
        "{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": bank}}",
        "{matchLabels: {\"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name\": bank}}",
    ] {
        assert!(from(bank, "bank") && !from(bank, "shop"), "{bank}");
    }
    let anywhere =
        "{matchExpressions: [{key: \"k8s:io.kubernetes.pod.namespace\", operator: Exists}]}";
    assert!(from(anywhere, "bank") && from(anywhere, "shop"));
    let no_namespace = Remote::Workload(workload("bare", &[("app", "x")]));
    assert!(!passes(
        &set("{}"),
        &at("local", "shop"),
        &no_namespace,
        Ingress,
        Tcp,
        80
    ));
}

#[test]
fn a_policy_without_a_namespace_speaks_of_every_workload() {
    let set = cilium(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {client: good}}]}]",
    ]);
    let elsewhere = workload(
        "good",
        &[("client", "good"), ("io.kubernetes.pod.namespace", "bank")],
    );
    assert!(receives(&set, &Remote::Workload(elsewhere), 80));
}

#[test]
fn exceptions_are_cut_out_of_a_prefix_but_not_out_of_other_rules() {
    let set = cilium(&[
        "endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}, \
                        {toCIDR: [10.96.1.1]}]",
    ]);
    let to = |net: &str| {
        passes(
            &set,
            &nginx(),
            &Remote::Cidr(net.parse().unwrap()),
            Egress,
            Tcp,
            443,
        )
    };
    assert!(to("10.0.0.0/8"));
    assert!(!to("10.96.0.0/12"));
    assert!(to("10.96.1.1/32"));
    let named: Vec<_> = set.cidrs().iter().map(ToString::to_string).collect();
    assert_eq!(named, ["10.0.0.0/8", "10.96.0.0/12", "10.96.1.1/32"]);
}

#[test]
fn prefixes_never_select_a_workload() {
    let set = cilium(&["endpointSelector: {}, ingress: [{fromCIDR: [0.0.0.0/0, \"::/0\"]}]"]);
    assert!(!receives(&set, &good(), 80));
    assert!(!receives(&set, &Remote::Host, 80));
    assert!(receives(
        &set,
        &Remote::Cidr("0.0.0.0/0".parse().unwrap()),
        80
    ));
}

#[test]
fn a_prefix_of_all_ipv6_does_not_swallow_ipv4() {
    let set = cilium(&["endpointSelector: {}, ingress: [{fromCIDR: [\"::/0\"]}]"]);
    let v4 = "0.0.0.0/0".parse().unwrap();
    assert!(set.cidrs().contains(&v4));
    assert!(!receives(&set, &Remote::Cidr(v4), 80));
}

#[test]
fn any_with_a_port_means_the_protocols_with_ports() {
    for protocol in ["", ", protocol: ANY", ", protocol: any"] {
        let set = cilium(&[&format!(
            "endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{{port: \"53\"{protocol}}}]}}]}}]"
        )]);
        for each in [Tcp, Udp, Sctp] {
            assert!(
                passes(&set, &nginx(), &good(), Ingress, each, 53),
                "{each:?}"
            );
        }
        assert!(
            !passes(&set, &nginx(), &good(), Ingress, Any, 0),
            "ICMP has no port 53"
        );
    }
}

#[test]
fn port_zero_is_every_port_and_an_end_port_makes_a_range() {
    let zero = cilium(&[
        "endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: \"0\", protocol: UDP}]}]}]",
    ]);
    assert!(passes(&zero, &nginx(), &good(), Ingress, Udp, 65535));
    assert!(!receives(&zero, &good(), 80));
    let range = cilium(&[
        "endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: \"80\", endPort: 90, protocol: TCP}]}]}]",
    ]);
    let open: Vec<u16> = (70..100)
        .filter(|port| receives(&range, &good(), *port))
        .collect();
    assert_eq!(open, (80..=90).collect::<Vec<_>>());
}

#[test]
fn a_rule_without_ports_allows_every_protocol() {
    let set = cilium(&["endpointSelector: {}, ingress: [{fromEndpoints: [{}], toPorts: []}]"]);
    for protocol in [Any, Tcp, Udp, Sctp] {
        assert!(passes(&set, &nginx(), &good(), Ingress, protocol, 7));
    }
}

#[test]
fn deny_wins_over_every_allow() {
    let set = cilium(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]",
        "endpointSelector: {}, ingressDeny: [{fromEndpoints: [{matchLabels: {client: bad}}]}, {toPorts: [{ports: [{port: \"22\"}]}]}]",
    ]);
    assert!(receives(&set, &good(), 80));
    assert!(!receives(&set, &good(), 22));
    assert!(!receives(&set, &bad(), 80));
    let entry = decision(&set, &nginx(), &good(), Ingress, Tcp, 22).unwrap();
    assert_eq!(set.rule(entry.rule).unwrap().field, "spec.ingressDeny[1]");
}

#[test]
fn deny_rules_alone_bring_default_deny_too() {
    let set =
        cilium(&["endpointSelector: {}, ingressDeny: [{toPorts: [{ports: [{port: \"22\"}]}]}]"]);
    assert!(!receives(&set, &good(), 22) && !receives(&set, &good(), 80));
}

fn auth_at(set: &PolicySet, port: u16) -> Option<Authentication> {
    decision(set, &nginx(), &good(), Ingress, Tcp, port)
        .expect("a rule allows it")
        .auth
}

#[test]
fn a_rule_that_says_nothing_of_authentication_leaves_it_open() {
    let set = cilium(&["endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]"]);
    assert_eq!(auth_at(&set, 80), None);
}

#[test]
fn of_rules_for_the_same_traffic_the_stronger_authentication_holds() {
    let rule = |mode: &str| {
        format!(
            "endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{}}], authentication: {{mode: {mode}}}}}]"
        )
    };
    for (a, b, wins) in [
        ("disabled", "required", Required),
        ("required", "test-always-fail", TestAlwaysFail),
        ("audit", "required", Required),
        ("audit", "disabled", Audit),
    ] {
        for (a, b) in [(a, b), (b, a)] {
            assert_eq!(
                auth_at(&native(&[&rule(a), &rule(b)]), 80),
                Some(wins),
                "{a} {b}"
            );
        }
    }
}

#[test]
fn the_closer_rule_decides_about_authentication_and_a_silent_one_inherits_it() {
    let set = cilium(&["endpointSelector: {}, ingress: [\
        {fromEndpoints: [{}], authentication: {mode: required}}, \
        {toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}], authentication: {mode: disabled}}, \
        {toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]"]);
    assert_eq!(auth_at(&set, 22), Some(Required), "the wide rule");
    assert_eq!(
        auth_at(&set, 8080),
        Some(Disabled),
        "the narrow rule that says otherwise"
    );
    assert_eq!(
        auth_at(&set, 80),
        Some(Required),
        "the narrow rule that is silent"
    );
}

#[test]
fn among_equal_ports_the_rule_that_names_peers_is_closer() {
    let set = cilium(&["endpointSelector: {}, ingress: [\
        {toPorts: [{ports: [{port: \"80\", protocol: TCP}]}], authentication: {mode: required}}, \
        {fromEndpoints: [{matchLabels: {client: good}}], toPorts: [{ports: [{port: \"80\", protocol: TCP}]}], \
        authentication: {mode: disabled}}]"]);
    assert_eq!(auth_at(&set, 80), Some(Disabled));
    assert_eq!(
        decision(&set, &nginx(), &bad(), Ingress, Tcp, 80)
            .unwrap()
            .auth,
        Some(Required)
    );
}

#[test]
fn peers_by_spiffe_id_narrow_the_rule() {
    let set = native(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [{}], authentication: {mode: required, peers: \
                        [\"spiffe://example.org/ns/*/sa/web\", \"spiffe://example.org/batch/**\"]}}]",
    ]);
    let from = |id: &str| receives(&set, &Remote::Workload(workload(id, &[])), 80);
    assert!(from("ns/shop/sa/web") && from("batch/a") && from("batch/a/b/c"));
    for other in [
        "ns/shop/sa/db",
        "ns/shop/x/sa/web",
        "ns/shop/sa/web/x",
        "batch",
        "ns/shop/sa",
    ] {
        assert!(!from(other), "{other}");
    }
    for remote in EVERYONE.iter().skip(2) {
        assert!(!receives(&set, &remote(), 80), "{:?}", remote());
    }
}

#[test]
fn only_a_spiffe_id_pattern_selects_a_workload_of_another_trust_domain() {
    let foreign = Remote::Workload(workload(
        "spiffe://partner.example/web",
        &[("client", "good")],
    ));
    let by_label = native(&[
        "endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {client: good}}, {}]}]",
    ]);
    assert!(!receives(&by_label, &foreign, 80));
    let by_id = native(&[
        "endpointSelector: {}, ingress: [{authentication: {mode: required, peers: [\"spiffe://partner.example/**\"]}}]",
    ]);
    assert!(receives(&by_id, &foreign, 80));
    assert!(!receives(&by_id, &good(), 80));
}

#[test]
fn encryption_and_age_come_with_the_rule() {
    let set = native(&["endpointSelector: {}, ingress: [\
        {fromEndpoints: [{}], encryption: {mode: required}, authentication: {mode: required, maxAge: 12h}}, \
        {toPorts: [{ports: [{port: 80}]}], encryption: {mode: disabled}, authentication: {mode: required, maxAge: 1h30m}}]"]);
    let at = |port| decision(&set, &nginx(), &good(), Ingress, Tcp, port).unwrap();
    assert_eq!(
        (at(22).encryption, at(22).max_age),
        (
            Some(Encryption::Required),
            Some(Duration::from_secs(43_200))
        )
    );
    assert_eq!(
        (at(80).encryption, at(80).max_age),
        (Some(Encryption::Disabled), Some(Duration::from_secs(5_400)))
    );
}

#[test]
fn a_pair_is_wanted_if_both_ends_allow_some_flow() {
    let Remote::Workload(client) = good() else {
        unreachable!()
    };
    let Remote::Workload(other) = bad() else {
        unreachable!()
    };
    let wanted = |set: &PolicySet, a: &Workload, b: &Workload| {
        let pairing = set.pairing(a, b);
        assert_eq!(pairing, set.pairing(b, a), "both ends must agree");
        pairing.wanted
    };
    assert!(
        wanted(&PolicySet::default(), &nginx(), &client),
        "without policies everything flows"
    );

    let isolated = cilium(&[
        "endpointSelector: {}, ingress: [{}], egress: [{}]",
        "endpointSelector: {matchLabels: {run: nginx}}, ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]",
        "endpointSelector: {matchLabels: {client: good}}, egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: \"70\", endPort: 90, protocol: TCP}]}]}]",
        "endpointSelector: {matchLabels: {client: bad}}, egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: \"80\", protocol: UDP}, {port: \"81\"}]}]}]",
    ]);
    assert!(wanted(&isolated, &nginx(), &client));
    assert!(!wanted(&isolated, &nginx(), &other), "no port in common");
    assert!(!wanted(&isolated, &client, &other));
}

#[test]
fn a_pairing_lives_as_long_as_the_shortest_age_of_its_flows() {
    let Remote::Workload(client) = good() else {
        unreachable!()
    };
    let set = native(&[
        "endpointSelector: {matchLabels: {run: nginx}}, ingress: [{fromEndpoints: [{}], authentication: {mode: required, maxAge: 2h}}]",
        "endpointSelector: {matchLabels: {client: good}}, egress: [{toEndpoints: [{}], authentication: {mode: required, maxAge: 1h}}]",
    ]);
    assert_eq!(
        set.pairing(&nginx(), &client).max_age,
        Some(Duration::from_secs(3600))
    );
}
