//! The other files that `handfast policy` reads: workloads, test cases, observed flows, policies to migrate.

use handfast_policies::Source;
use handfast_policies::tools::cases::{Cases, junit};
use handfast_policies::tools::graph::{graph, html, svg};
use handfast_policies::tools::inventory::Inventory;
use handfast_policies::tools::migrate::{Enforcer, migrate};
use handfast_policies::tools::observed;
use handfast_policies::tools::suggest::{Proofs, suggest};
use handfast_policies::{PolicySet, ReadError};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let source = Source {
        name: "fuzz.yaml".to_owned(),
        text: text.to_owned(),
    };
    let inventory = Inventory::read(&source)
        .map_err(refused)
        .unwrap_or_default();
    let set = PolicySet::default();
    if let Ok(cases) = Cases::read(&source).map_err(refused) {
        let outcomes = cases.run(&set, &cases.inventory);
        let report = junit(&[(source.name.clone(), outcomes)]);
        assert!(report.ends_with("</testsuites>\n"));
    }
    if let Ok(flows) = observed::read(&source, &inventory).map_err(refused) {
        let suggestion = suggest(&flows, &inventory, Proofs::Required).expect("YAML is written");
        let suggested = Source {
            name: "suggested".to_owned(),
            text: suggestion.yaml,
        };
        PolicySet::read(vec![suggested]).expect("what is suggested is read");
        let graph = graph(&set, &inventory, Some(&flows), true);
        assert!(!html(&graph, text).contains("<script>alert"));
        assert!(svg(&graph).ends_with("</svg>"));
    }
    for enforcer in [Enforcer::Cilium, Enforcer::Handfast] {
        if let Ok(migration) = migrate(std::slice::from_ref(&source), &inventory, Some(enforcer)) {
            let own = Source {
                name: "own".to_owned(),
                text: migration.own,
            };
            PolicySet::read(vec![own]).expect("what is migrated is read");
        }
    }
}

fn refused(errors: Vec<ReadError>) {
    assert!(!errors.is_empty(), "refused without a reason");
}

pub fn seeds() -> Vec<Vec<u8>> {
    [WORKLOADS, CASES, OBSERVED, CILIUM].map(Into::into).into()
}

const WORKLOADS: &str = "workloads:\n- {name: web, spiffeId: 'spiffe://example.org/web', labels: {app: web}, addresses: \
    [10.0.0.1, 'fd00::1']}\nneeds:\n- {name: names, to: 10.0.0.3, port: 53, protocol: udp}\n";

const CASES: &str = "policies: [p.yaml]\nworkloads:\n- {spiffeId: 'spiffe://example.org/web', labels: {app: web}}\n\
    tests:\n- {name: a, from: web, to: world, port: 443, expect: allow, authentication: required}\n";

const OBSERVED: &str = r#"{"time":1.5,"verdict":"dropped","reason":"no-rule","gate":"to-tunnel","direction":"egress","source":"10.0.0.1","source_port":4000,"destination":"10.0.0.2","destination_port":80,"protocol":"tcp","from":"spiffe://example.org/web","to":null,"rule":null}
{"time":2.5,"verdict":"forwarded","reason":"","gate":"to-tunnel","direction":"egress","source":"10.0.0.1","source_port":4000,"destination":"10.0.0.2","destination_port":80,"protocol":"icmp","from":null,"to":"spiffe://example.org/db","rule":"a"}
"#;

const CILIUM: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a, namespace: b}\nspec:\n  \
    endpointSelector: {matchLabels: {app: web}}\n  ingress:\n  - fromEndpoints: [{}]\n    authentication: {mode: \
    required}\n    toPorts: [{ports: [{port: '80'}], rules: {http: []}}]\n  egress:\n  - toFQDNs: []\n";
