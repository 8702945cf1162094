//! What is odd, and what would cut a lifeline.

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
        refusals(&["endpointSelector: {matchLabels: {app: ca}}, ingress: [{fromEndpoints: [{}]}]"]),
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
