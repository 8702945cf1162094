//! From Cilium's policies to ours.

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
    migrate(&sources, &Inventory::default(), Some(enforcer)).unwrap_or_else(|e| panic!("{e:#?}"))
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
