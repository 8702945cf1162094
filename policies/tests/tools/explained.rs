//! Why a flow passes or does not.

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
