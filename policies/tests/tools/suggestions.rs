//! From what was seen to policies.

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
fn what_handfast_sends_to_see_a_packet_through_the_tunnel_is_left_out_and_named() {
    let (_, inventory) = shop();
    let probe = OBSERVED.lines().next().unwrap();
    let probe = probe
        .replace("\"destination_port\": 443", "\"destination_port\": 9")
        .replace("\"tcp\"", "\"udp\"");
    let seen = format!("{OBSERVED}\n{probe}\n");
    let flows = observed::read(&source("o.jsonl", &seen), &inventory).unwrap();
    let suggestion = suggest(&flows, &inventory, Proofs::Audit).unwrap();
    let without = observed::read(&source("o.jsonl", OBSERVED), &inventory).unwrap();
    let without = suggest(&without, &inventory, Proofs::Audit).unwrap();
    assert_eq!(suggestion.yaml, without.yaml);
    let named = |note: &String| note.starts_with("1 flows to udp/9 are left out");
    assert!(
        suggestion.notes.iter().any(named),
        "{:#?}",
        suggestion.notes
    );
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
