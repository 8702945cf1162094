//! What changes between two sets.

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
