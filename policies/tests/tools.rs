//! The tools, on the example of a small shop and on policies made for one question each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use handfast_policies::tools::cases::{Cases, junit};
use handfast_policies::tools::check::{Finding, Level, check};
use handfast_policies::tools::diff::{Change, diff};
use handfast_policies::tools::explain::explain;
use handfast_policies::tools::flow::{Flow, Outcome};
use handfast_policies::tools::graph::{Graph, State, dot, graph, html, svg};
use handfast_policies::tools::inventory::Inventory;
use handfast_policies::tools::migrate::{Enforcer, Migration, migrate};
use handfast_policies::tools::observed;
use handfast_policies::tools::suggest::{Proofs, suggest};
use handfast_policies::{PolicySet, Protocol, Source};

const POLICIES: &str = include_str!("../../examples/shop/policies.yaml");
const WORKLOADS: &str = include_str!("../../examples/shop/workloads.yaml");
const OBSERVED: &str = include_str!("../../examples/shop/observed.jsonl");

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

#[track_caller]
fn read(text: &str) -> PolicySet {
    PolicySet::read(vec![source("p.yaml", text)]).unwrap_or_else(|e| panic!("{e:#?}\n{text}"))
}

fn shop() -> (PolicySet, Inventory) {
    let inventory = Inventory::read(&source("workloads.yaml", WORKLOADS)).unwrap();
    (read(POLICIES), inventory)
}

/// HandfastPolicies without a namespace, one for each spec.
fn native(specs: &[&str]) -> PolicySet {
    let document = |(number, spec): (usize, &&str)| {
        format!(
            "---\napiVersion: handfast.io/v1alpha1\nkind: HandfastPolicy\nmetadata: {{name: p{number}}}\nspec: \
             {{{spec}}}\n"
        )
    };
    read(&specs.iter().enumerate().map(document).collect::<String>())
}

fn said(findings: &[Finding], level: Level) -> Vec<String> {
    let found = findings.iter().filter(|finding| finding.level == level);
    found.map(ToString::to_string).collect()
}

mod check_ {
    use super::*;

    #[test]
    fn the_shop_has_nothing_odd_about_it() {
        let (set, inventory) = shop();
        let findings = check(&set, &inventory);
        assert!(findings.is_empty(), "{findings:#?}");
    }

    #[test]
    fn selectors_that_find_none_of_the_known_workloads_are_named() {
        let (_, inventory) = shop();
        let set = native(&[
            "endpointSelector: {matchLabels: {app: wbe}}, ingress: [{}]",
            "endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: gateway}}, \
             {matchLabels: {app: gatewya}}]}]",
        ]);
        assert_eq!(
            said(&check(&set, &inventory), Level::Warning),
            [
                "warning: p.yaml:5: spec.endpointSelector: selects none of the known workloads, so the policy does \
                 nothing: check the labels",
                "warning: p.yaml:10: spec.ingress[0] (peer 2): selects none of the known workloads: check the labels",
            ]
        );
    }

    #[test]
    fn rules_that_never_decide_are_named_with_those_that_do() {
        let set = native(&[
            "endpointSelector: {}, ingress: [{fromEndpoints: [{}]}], ingressDeny: [{toPorts: [{ports: [{port: 20, \
             endPort: 30, protocol: TCP}]}]}]",
            "endpointSelector: {matchLabels: {a: b}}, ingress: [{fromEndpoints: [{matchLabels: {c: d}}], toPorts: \
             [{ports: [{port: 80, protocol: TCP}]}]}, {fromCIDR: [10.0.0.0/8], toPorts: [{ports: [{port: 22, \
             protocol: TCP}]}]}, {fromEndpoints: [{}], authentication: {mode: required}}]",
        ]);
        assert_eq!(
            said(&check(&set, &Inventory::default()), Level::Warning),
            [
                "warning: p.yaml:10: spec.ingress[0]: changes nothing: p0 spec.ingress[0] (p.yaml:5) says all of it",
                "warning: p.yaml:10: spec.ingress[1]: allows nothing: p0 spec.ingressDeny[0] (p.yaml:5) denies all \
                 that it allows",
            ]
        );
    }

    #[test]
    fn of_two_rules_that_say_the_same_the_later_one_is_superfluous() {
        let rule = "endpointSelector: {}, egress: [{toEntities: [world]}]";
        let set = native(&[rule, rule]);
        let warnings = said(&check(&set, &Inventory::default()), Level::Warning);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("p.yaml:10"), "{warnings:?}");
    }

    const CA: &str = "
workloads:
- {spiffeId: spiffe://example.org/ca, labels: {app: ca}, addresses: [10.0.0.1]}
- {spiffeId: spiffe://example.org/store, labels: {app: store}, addresses: [10.0.0.2]}
- {spiffeId: spiffe://example.org/dns, labels: {app: dns}, addresses: [10.0.0.3]}
- {spiffeId: spiffe://example.org/web, labels: {app: web}, addresses: [10.0.0.4]}
needs:
- {name: agents reach the CA, to: ca, port: 7251}
- {name: the CA reaches its store, from: ca, to: store, port: 5432}
- {name: agents resolve names, to: dns, port: 53, protocol: udp}
";

    fn refusals(specs: &[&str]) -> Vec<String> {
        let inventory = Inventory::read(&source("w", CA)).unwrap();
        said(&check(&native(specs), &inventory), Level::Refused)
    }

    #[test]
    fn what_would_cut_agents_from_the_ca_is_refused() {
        assert_eq!(
            refusals(&[
                "endpointSelector: {matchLabels: {app: ca}}, ingress: [{fromEndpoints: [{}]}]"
            ]),
            [
                "refused: agents reach the CA: host -> ca tcp/7251 is denied, since a policy closes that direction \
                 and no rule allows it: add a rule that does"
            ]
        );
    }

    #[test]
    fn a_proof_cannot_be_asked_of_what_gives_proofs() {
        let refused = refusals(&[
            "endpointSelector: {matchLabels: {app: ca}}, ingress: [{fromEntities: [host, world], authentication: \
             {mode: required}}]",
        ]);
        assert_eq!(
            refused,
            [
                "refused: p.yaml:5: spec.ingress[0]: agents reach the CA: host -> ca tcp/7251 needs a proof, which \
                 nobody can have without it"
            ]
        );
    }

    #[test]
    fn what_would_cut_the_ca_from_its_store_is_refused_with_the_rule() {
        assert_eq!(
            refusals(&[
                "endpointSelector: {}, enableDefaultDeny: {egress: false}, egressDeny: [{toEndpoints: \
                        [{matchLabels: {app: store}}]}]"
            ]),
            [
                "refused: p.yaml:5: spec.egressDeny[0]: the CA reaches its store: ca -> store tcp/5432 is denied"
            ]
        );
    }

    #[test]
    fn what_would_cut_agents_from_names_is_refused_and_cut_workloads_are_named() {
        let refused = refusals(&[
            "endpointSelector: {matchLabels: {app: dns}}, ingress: [{fromEndpoints: [{}]}]",
        ]);
        assert_eq!(refused.len(), 1, "{refused:?}");
        let inventory = Inventory::read(&source("w", CA)).unwrap();
        let set = native(&["endpointSelector: {matchLabels: {app: web}}, egress: [{}]"]);
        assert_eq!(
            said(&check(&set, &inventory), Level::Warning),
            [
                "warning: web cannot ask any of the name servers given: if they look names up, add a rule"
            ]
        );
    }

    #[test]
    fn a_policy_that_leaves_the_lifelines_alone_is_not_refused() {
        assert!(
            refusals(&[
                "endpointSelector: {matchLabels: {app: ca}}, ingress: [{fromEntities: [host, world], toPorts: \
                 [{ports: [{port: 7251, protocol: TCP}]}]}], egress: [{toEndpoints: [{matchLabels: {app: store}}]}]",
                "endpointSelector: {matchLabels: {app: web}}, ingress: [{}]",
            ])
            .is_empty()
        );
    }
}

mod explain_ {
    use super::*;

    #[test]
    fn the_deciding_rule_is_named_with_its_line_at_each_end() {
        let (set, inventory) = shop();
        let flow = Flow {
            from: inventory.end("shop/orders").unwrap(),
            to: inventory.end("10.42.2.13").unwrap(),
            protocol: Protocol::Tcp,
            port: 5432,
        };
        let explanation = explain(&set, &flow);
        assert_eq!(explanation.outcome, Outcome::Proven);
        let whys: Vec<_> = explanation
            .ends
            .iter()
            .map(|end| end.why.as_str())
            .collect();
        assert_eq!(
            whys,
            [
                "allowed by shop/orders spec.egress[0] (p.yaml:81)",
                "allowed by shop/orders-db-proofs spec.ingress[0] (p.yaml:140), both ends proven",
            ]
        );
        let others: Vec<_> = explanation.ends[1]
            .others
            .iter()
            .map(|o| (o.rule.policy.as_str(), o.why))
            .collect();
        assert_eq!(
            others,
            [
                ("orders-db", "another rule speaks of the flow more closely"),
                ("no-telnet", "it does not name the port"),
            ]
        );
    }

    #[test]
    fn a_flow_that_nothing_allows_says_so_and_what_came_close() {
        let (set, inventory) = shop();
        let flow = Flow {
            from: inventory.end("shop/gateway").unwrap(),
            to: inventory.end("shop/orders").unwrap(),
            protocol: Protocol::Tcp,
            port: 8080,
        };
        let explanation = explain(&set, &flow);
        assert_eq!(explanation.outcome, Outcome::Denied);
        assert_eq!(
            explanation.ends[0].why,
            "a policy closes this direction here, and no rule allows the flow"
        );
        assert!(
            explanation.ends[1]
                .others
                .iter()
                .any(|other| other.why == "it does not name the other end")
        );
    }

    #[test]
    fn a_name_that_is_nearly_right_is_guessed() {
        let (_, inventory) = shop();
        let error = inventory.end("shop/gatewya").unwrap_err();
        assert!(error.ends_with("did you mean shop/gateway?"), "{error}");
    }
}

mod cases_ {
    use super::*;

    const TESTS: &str = include_str!("../../examples/shop/tests.yaml");

    #[test]
    fn the_shops_cases_go_as_they_must() {
        let (set, inventory) = shop();
        let cases = Cases::read(&source("tests.yaml", TESTS)).unwrap();
        let outcomes = cases.run(&set, &inventory);
        assert_eq!(outcomes.len(), 11);
        let failed: Vec<_> = outcomes.iter().filter(|o| o.failure.is_some()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn a_case_that_goes_otherwise_says_why_and_junit_has_it() {
        let (set, inventory) = shop();
        let text = "tests:\n- {name: 'a < b & c', from: shop/reports, to: shop/orders-db, port: 5432, expect: allow}\n\
                    - {from: shop/web, to: shop/orders, port: 8080, expect: allow, authentication: audit}\n\
                    - {from: shop/web, to: shop/orders, port: 8080, expect: allow, rule: 'web spec.ingress[0]'}\n\
                    - {from: nobody, to: shop/orders, port: 8080, expect: allow}\n";
        let cases = Cases::read(&source("t.yaml", text)).unwrap();
        let outcomes = cases.run(&set, &inventory);
        let failures: Vec<_> = outcomes
            .iter()
            .map(|o| o.failure.clone().unwrap())
            .collect();
        assert!(failures[0].starts_with("shop/reports -> shop/orders-db tcp/5432 is denied: egress of shop/reports: no policy"), "{failures:#?}");
        assert!(
            failures[1].starts_with("authentication is required, not audit"),
            "{failures:#?}"
        );
        assert!(
            failures[2].starts_with("web spec.ingress[0] does not decide: "),
            "{failures:#?}"
        );
        assert!(
            failures[3].starts_with("no workload is called \"nobody\""),
            "{failures:#?}"
        );
        let xml = junit(&[("t.yaml".to_owned(), outcomes)]);
        assert!(xml.contains("tests=\"4\" failures=\"4\""), "{xml}");
        assert!(
            xml.contains("name=\"a &lt; b &amp; c\" file=\"t.yaml\" line=\"2\""),
            "{xml}"
        );
        assert_eq!(
            xml.matches("<testcase").count(),
            xml.matches("</testcase>").count()
        );
    }

    #[test]
    fn a_broken_case_is_an_error_with_its_line() {
        let text = "tests:\n- {from: a, to: b, port: 1, expect: allow}\n- {from: a, to: b, port: 1, expect: maybe}\n\
                    - {from: a, port: 1, expect: deny}\n";
        let errors = Cases::read(&source("t.yaml", text)).unwrap_err();
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(
            lines[0].starts_with("t.yaml:3:3: tests[1]: unknown variant `maybe`"),
            "{lines:#?}"
        );
        assert!(
            lines[1].starts_with("t.yaml:4:3: tests[2]: missing field `to`"),
            "{lines:#?}"
        );
    }
}

mod diff_ {
    use super::*;

    fn brief(changes: &[Change]) -> Vec<String> {
        let brief = |change: &Change| {
            format!(
                "{} -> {} {} {}: {:?} -> {:?}",
                change.from, change.to, change.protocol, change.ports, change.before, change.after
            )
        };
        changes.iter().map(brief).collect()
    }

    #[test]
    fn the_same_policies_differ_in_nothing() {
        let (set, inventory) = shop();
        assert!(diff(&set, &read(POLICIES), &inventory).is_empty());
    }

    #[test]
    fn a_port_more_and_a_proof_less_are_all_that_is_named() {
        let (set, inventory) = shop();
        let wider = POLICIES
            .replace("port: 5432\n          endPort: 5433", "port: 5432\n          endPort: 5440")
            .replacen("            - port: \"8080\"\n              protocol: TCP\n      authentication:\n        mode: required", "            - port: \"8080\"\n              protocol: TCP", 1);
        assert_ne!(wider, POLICIES);
        let changes = diff(&set, &read(&wider), &inventory);
        assert_eq!(
            brief(&changes),
            [
                "shop/web -> shop/orders tcp 8080: Proven -> Allowed",
                "monitoring/prometheus -> shop/orders-db tcp 5434-5440: Denied -> Allowed",
            ]
        );
        assert!(changes.iter().all(Change::widens));
        assert_eq!(changes[0].rule_after.as_ref().unwrap().line, 71);
    }

    #[test]
    fn without_workloads_those_that_the_selectors_describe_are_compared() {
        let before = native(&[
            "endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{matchLabels: {app: api}}]}]",
        ]);
        let after = native(&[
            "endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]",
        ]);
        assert_eq!(
            brief(&diff(&before, &after, &Inventory::default())),
            [
                "app=api -> app=db any any: Allowed -> Denied",
                "app=web -> app=db any any: Denied -> Allowed",
            ]
        );
    }

    #[test]
    fn default_deny_that_comes_is_seen_for_every_protocol_but_those_of_which_more_is_said() {
        let after = native(&[
            "endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [all], toPorts: [{ports: [{port: 5432, protocol: TCP}]}]}]",
        ]);
        let changes = brief(&diff(&PolicySet::default(), &after, &Inventory::default()));
        assert!(
            changes.contains(&"world -> app=db other than tcp any: Allowed -> Denied".to_owned()),
            "{changes:#?}"
        );
        assert!(
            changes.contains(&"world -> app=db tcp 0-5431: Allowed -> Denied".to_owned()),
            "{changes:#?}"
        );
        assert!(
            changes.contains(&"world -> app=db tcp 5433-65535: Allowed -> Denied".to_owned()),
            "{changes:#?}"
        );
    }
}

mod graph_ {
    use super::*;

    fn drawn() -> Graph {
        let (set, inventory) = shop();
        let flows = observed::read(&source("o.jsonl", OBSERVED), &inventory).unwrap();
        graph(&set, &inventory, Some(&flows), false)
    }

    fn edges(graph: &Graph) -> Vec<(String, String, State, String)> {
        let name = |node: usize| graph.nodes[node].name.clone();
        let edge = |edge: &handfast_policies::tools::graph::Edge| {
            (
                name(edge.from),
                name(edge.to),
                edge.state,
                edge.traffic.join(" "),
            )
        };
        graph.edges.iter().map(edge).collect()
    }

    #[test]
    fn configuration_and_observation_are_told_apart() {
        let edges = edges(&drawn());
        let has = |from: &str, to: &str, state, traffic: &str| {
            let wanted = (from.to_owned(), to.to_owned(), state, traffic.to_owned());
            assert!(edges.contains(&wanted), "{wanted:?} in {edges:#?}");
        };
        has("shop/gateway", "shop/web", State::Proven, "tcp/8080");
        has("world", "shop/gateway", State::Open, "tcp/443");
        has(
            "monitoring/prometheus",
            "shop/web",
            State::AuditOnly,
            "tcp/9100",
        );
        has(
            "monitoring/prometheus",
            "shop/orders-db",
            State::NeverSeen,
            "tcp/5432-5433",
        );
        has("shop/reports", "shop/orders-db", State::Denied, "tcp/5432");
        has("shop/reports", "shop/web", State::Unexpected, "tcp/9100");
        has("shop/orders", "192.0.2.53", State::Open, "udp/53");
        has(
            "shop/orders",
            "192.0.2.53",
            State::NeverSeen,
            "tcp/53 sctp/53",
        );
        has(
            "shop/orders",
            "198.51.100.0/24",
            State::NeverSeen,
            "tcp/443",
        );
    }

    #[test]
    fn what_is_said_of_the_world_is_not_said_again_of_its_parts() {
        let graph = drawn();
        assert!(
            !graph
                .nodes
                .iter()
                .any(|node| node.name.starts_with("198.51.100.128"))
        );
        assert!(!graph.nodes.iter().any(|node| node.name == "host"));
    }

    #[test]
    fn every_form_has_every_node_and_edge() {
        let graph = drawn();
        let (dot, svg, html) = (dot(&graph), svg(&graph), html(&graph, "The <shop>"));
        assert_eq!(dot.matches(" -> n").count(), graph.edges.len());
        for text in [&svg, &html] {
            assert_eq!(text.matches("data-node=").count(), graph.nodes.len());
            assert_eq!(text.matches("data-edge=").count(), graph.edges.len());
        }
        assert!(html.contains("<title>The &lt;shop&gt;</title>"));
    }

    #[test]
    fn the_page_fetches_nothing_and_names_cannot_break_out_of_it() {
        let evil = "</script><script>alert(1)</script>";
        let workloads = format!(
            "- {{name: '{evil}', spiffeId: 'spiffe://example.org/a', labels: {{app: a}}}}\n"
        );
        let inventory = Inventory::read(&source("w", &workloads)).unwrap();
        let set = native(&["endpointSelector: {}, ingress: [{fromEntities: [world]}]"]);
        let page = html(&graph(&set, &inventory, None, false), evil);
        assert!(!page.contains("<script>alert"), "{page}");
        assert_eq!(page.matches("<script").count(), 2);
        assert!(
            !page.contains("http://")
                || page.matches("http://").count()
                    == page.matches("http://www.w3.org/2000/svg").count()
        );
        assert!(!page.contains("https://"));
    }

    #[test]
    fn a_thousand_replicas_are_one_node() {
        let workloads: String = (0..1000)
            .map(|n| format!("- {{spiffeId: spiffe://example.org/w{n}, labels: {{app: web}}}}\n"))
            .collect();
        let inventory = Inventory::read(&source("w", &workloads)).unwrap();
        let set = native(&[
            "endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]",
        ]);
        let graph = graph(&set, &inventory, None, false);
        assert_eq!(
            graph
                .nodes
                .iter()
                .filter(|node| node.kind == "workload")
                .count(),
            1
        );
        assert_eq!(graph.nodes[0].alike, 999);
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error_with_its_number() {
        let text = OBSERVED.lines().next().unwrap().to_owned()
            + "\n{\"verdict\": \"forwarded\"}\nnonsense\n";
        let errors = observed::read(&source("o.jsonl", &text), &Inventory::default()).unwrap_err();
        assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3]);
    }
}

mod suggest_ {
    use super::*;

    #[test]
    fn what_is_suggested_allows_what_passed_and_no_more() {
        let (_, inventory) = shop();
        let flows = observed::read(&source("o.jsonl", OBSERVED), &inventory).unwrap();
        let suggestion = suggest(&flows, &inventory, Proofs::Required).unwrap();
        let set = read(&suggestion.yaml);
        let tests = "
tests:
- {from: 203.0.113.9, to: shop/gateway, port: 443, expect: allow}
- {from: 203.0.113.10, to: shop/gateway, port: 443, expect: deny}
- {from: shop/gateway, to: shop/web, port: 8080, expect: allow, authentication: required}
- {from: shop/gateway, to: shop/web, port: 8081, expect: deny}
- {from: shop/web, to: shop/orders, port: 8080, expect: allow, authentication: required}
- {from: shop/orders, to: shop/orders-db, port: 5432, expect: allow, authentication: required}
- {from: monitoring/prometheus, to: shop/web, port: 9100, expect: allow, authentication: required}
- {from: shop/orders, to: 192.0.2.53, port: 53, protocol: udp, expect: allow}
- {from: shop/orders, to: 192.0.2.53, port: 53, expect: deny}
- {from: shop/reports, to: shop/web, port: 9100, expect: allow, authentication: required}
- {from: shop/reports, to: shop/orders-db, port: 5432, expect: deny}
- {from: shop/gateway, to: shop/orders, port: 8080, expect: deny}
";
        let cases = Cases::read(&source("t.yaml", tests)).unwrap();
        let outcomes = cases.run(&set, &inventory);
        let failed: Vec<_> = outcomes.iter().filter(|o| o.failure.is_some()).collect();
        assert!(failed.is_empty(), "{failed:#?}\n{}", suggestion.yaml);
        let dropped: Vec<_> = suggestion
            .notes
            .iter()
            .filter(|note| note.contains("only seen to be dropped"))
            .collect();
        assert_eq!(dropped.len(), 2, "{:#?}", suggestion.notes);
    }

    #[test]
    fn a_workload_that_nobody_knows_is_named_and_left_out() {
        let flows = observed::read(&source("o.jsonl", OBSERVED), &Inventory::default()).unwrap();
        let suggestion = suggest(&flows, &Inventory::default(), Proofs::Audit).unwrap();
        assert_eq!(suggestion.documents, 0);
        assert!(
            suggestion.notes.iter().any(|note| note
                .starts_with("spiffe://example.org/ns/shop/sa/web is none of the workloads given")),
            "{:#?}",
            suggestion.notes
        );
    }
}

mod migrate_ {
    use super::*;

    const CILIUM: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: gateway}}]
    authentication: {mode: required}
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
  - fromEndpoints: [{matchLabels: {app: prometheus}}]
  egress:
  - toFQDNs: [{matchName: example.org}]
  - toEndpoints: [{matchLabels: {app: db}}]
"#;

    #[track_caller]
    fn moved(text: &str, enforcer: Enforcer) -> Migration {
        let sources = [source("c.yaml", text)];
        migrate(&sources, &Inventory::default(), Some(enforcer))
            .unwrap_or_else(|e| panic!("{e:#?}"))
    }

    #[test]
    fn two_enforcers_of_one_policy_are_an_error_until_somebody_says_who() {
        let errors = migrate(&[source("c.yaml", CILIUM)], &Inventory::default(), None).unwrap_err();
        assert_eq!(errors.len(), 1);
        let error = errors[0].to_string();
        assert!(
            error.starts_with("c.yaml:2:1: web: Cilium and handfast would both enforce"),
            "{error}"
        );
    }

    #[test]
    fn beside_cilium_handfast_asks_for_proofs_and_closes_nothing() {
        let migration = moved(CILIUM, Enforcer::Cilium);
        let own = read(&migration.own);
        assert_eq!(own.policies()[0].ingress, 1);
        assert_eq!(own.policies()[0].egress, 0);
        assert!(
            migration
                .own
                .contains("enableDefaultDeny:\n    ingress: false\n    egress: false"),
            "{}",
            migration.own
        );
        assert!(
            !migration.stripped.contains("authentication"),
            "{}",
            migration.stripped
        );
        assert!(
            migration.stripped.contains("method: GET"),
            "Cilium keeps what it alone can do"
        );
        assert!(migration.stripped.contains("toFQDNs"));
        assert!(migration.changes.is_empty(), "{:#?}", migration.changes);
    }

    #[test]
    fn alone_handfast_says_what_it_cannot_say() {
        let migration = moved(CILIUM, Enforcer::Handfast);
        assert!(migration.stripped.is_empty());
        let own = read(&migration.own);
        assert_eq!(
            (own.policies()[0].ingress, own.policies()[0].egress),
            (2, 1)
        );
        let warned = |text: &str| {
            assert!(
                migration.warnings.iter().any(|w| w.contains(text)),
                "{text}: {:#?}",
                migration.warnings
            )
        };
        warned(
            "ingress[0].toPorts has rules: handfast allows every request on these ports, so this widens access",
        );
        warned(
            "egress[0] has toFQDNs: handfast cannot say this, so the rule is left out and egress is not closed",
        );
    }

    #[test]
    fn a_rule_that_requires_a_proof_is_an_allow_and_said_to_be_one() {
        let migration = moved(CILIUM, Enforcer::Cilium);
        let widening: Vec<_> = migration
            .warnings
            .iter()
            .filter(|w| w.contains("is an allow as well"))
            .collect();
        assert_eq!(widening.len(), 1, "{:#?}", migration.warnings);
        assert!(widening[0].contains("nothing else allows app=gateway,io.kubernetes.pod.namespace=shop -> app=web,io.kubernetes.pod.namespace=shop tcp 80"), "{}", widening[0]);
        let covered = CILIUM.replace(
            "  - fromEndpoints: [{matchLabels: {app: prometheus}}]",
            "  - fromEndpoints: [{}]",
        );
        let migration = moved(&covered, Enforcer::Cilium);
        assert!(
            !migration
                .warnings
                .iter()
                .any(|w| w.contains("is an allow as well")),
            "{:#?}",
            migration.warnings
        );
    }

    #[test]
    fn the_verdicts_of_the_shops_own_policy_stay_what_they_were() {
        let document = POLICIES
            .split("---\n")
            .find(|d| d.contains("kind: CiliumNetworkPolicy"))
            .unwrap();
        for enforcer in [Enforcer::Cilium, Enforcer::Handfast] {
            let migration = moved(document, enforcer);
            assert!(
                migration.changes.is_empty(),
                "{enforcer:?} {:#?}",
                migration.changes
            );
        }
    }

    #[test]
    fn a_mistake_keeps_its_line() {
        let wrong = CILIUM.replace("mode: required", "mode: requierd");
        let errors = migrate(
            &[source("c.yaml", &wrong)],
            &Inventory::default(),
            Some(Enforcer::Cilium),
        )
        .unwrap_err();
        assert!(
            errors[0]
                .to_string()
                .starts_with("c.yaml:9:28: spec.ingress[0].authentication.mode"),
            "{errors:#?}"
        );
    }

    #[test]
    fn specs_become_documents_of_their_own() {
        let text = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: two}\nspecs:\n\
                    - {endpointSelector: {matchLabels: {a: b}}, ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]}\n\
                    - {endpointSelector: {}, egress: [{toEndpoints: [{}], authentication: {mode: required}}]}\n";
        let migration = moved(text, Enforcer::Handfast);
        let names: Vec<_> = read(&migration.own)
            .policies()
            .iter()
            .map(|p| p.name.clone())
            .collect();
        assert_eq!(names, ["two-1", "two-2"]);
        assert!(migration.changes.is_empty(), "{:#?}", migration.changes);
    }
}
