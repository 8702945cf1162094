//! Policy files: all is taken or nothing, and every complaint names a place that exists.

use handfast_policies::tools::check::check;
use handfast_policies::tools::inventory::Inventory;
use handfast_policies::{Direction, PolicySet, Protocol, Remote, Source, Workload, split};
use spiffe::SpiffeId;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let source = Source {
        name: "fuzz.yaml".to_owned(),
        text: text.to_owned(),
    };
    let read = PolicySet::read(vec![source.clone()]);
    if let Ok(set) = &read {
        asked(set, source);
    }
    if let Err(errors) = read {
        assert!(!errors.is_empty(), "refused without a reason");
        // YAML takes a carriage return for a line's end too.
        let lines = text.split(['\n', '\r']).count();
        for error in errors {
            assert_eq!(error.file, "fuzz.yaml");
            assert!(
                (1..=lines + 1).contains(&error.line),
                "line {} of {lines}: {}",
                error.line,
                error.message
            );
            assert!(!error.message.is_empty());
        }
    }
}

/// What was read can be asked, checked, read again and taken apart.
fn asked(set: &PolicySet, source: Source) {
    assert_eq!(split(&source.text).concat(), source.text);
    let again = set
        .updated(vec![source])
        .expect("what was read once is read again");
    assert!(again.changed_since(set).is_empty());
    let local = Workload {
        spiffe_id: SpiffeId::new("spiffe://example.org/local").expect("a SPIFFE ID"),
        labels: [
            ("run", "nginx"),
            ("app", "db"),
            ("handfast.io/port.http", "80"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    };
    let remotes = [
        Remote::Workload(local.clone()),
        Remote::Host,
        Remote::World,
        Remote::Unknown,
    ];
    let policy = set.of_workload(&local);
    for remote in remotes {
        for entry in policy.entries(&remote) {
            let rule = set.rule(entry.rule).expect("a rule of the set");
            assert_eq!(
                (rule.direction, rule.verdict),
                (entry.direction, entry.verdict)
            );
            let port = entry.ports.first();
            let ruling = policy.ruling(&remote, entry.direction, entry.protocol, port);
            assert_eq!(
                ruling.entry(),
                Some(&entry),
                "an entry decides its own ports"
            );
        }
        let echo = policy.ruling(&remote, Direction::Egress, Protocol::Icmp, 8);
        assert!(
            echo.entry()
                .is_none_or(|entry| entry.direction == Direction::Egress)
        );
    }
    let findings = check(set, &Inventory::default());
    assert!(findings.iter().all(|finding| !finding.message.is_empty()));
}

pub fn seeds() -> Vec<Vec<u8>> {
    [CILIUM, CLUSTERWIDE, KUBERNETES, OWN, BROKEN]
        .map(Into::into)
        .into()
}

const CILIUM: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
spec:
  endpointSelector:
    matchLabels: {run: nginx}
  ingress:
  - fromEndpoints:
    - matchLabels: {client: good}
    authentication: {mode: required}
    toPorts:
    - ports:
      - {port: "80", protocol: TCP}
      - {port: "8000", endPort: 8080, protocol: TCP}
  egress:
  - toCIDR: ["192.0.2.0/24"]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: second
spec:
  endpointSelector:
    matchExpressions:
    - {key: tier, operator: In, values: [a, b]}
  ingress:
  - {}
"#;

const OWN: &str = r#"{"apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy", "metadata": {"name": "db"},
 "spec": {"endpointSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"fromEndpoints": [{}],
 "authentication": {"mode": "required", "peers": ["spiffe://example.org/*"], "maxAge": "1h"},
 "encryption": {"mode": "required"}, "toPorts": [{"ports": [{"port": "5432", "protocol": "TCP"}]}]}]}}"#;

const BROKEN: &str = "kind: CiliumNetworkPolicy\nspec:\n  endpointSelektor: {}\n---\n- &a [*a]\n";

const CLUSTERWIDE: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: everywhere}
specs:
- endpointSelector: {}
  enableDefaultDeny: {ingress: false, egress: true}
  ingressDeny:
  - fromEntities: [world-ipv4, host]
    icmps: [{fields: [{family: IPv6, type: EchoRequest}, {type: 8}]}]
- endpointSelector: {matchExpressions: [{key: "k8s:a", operator: DoesNotExist}]}
  egress:
  - toEntities: [cluster]
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
    toPorts: [{ports: [{port: http}, {port: "0", protocol: UDP}]}]
"#;

const KUBERNETES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}
      podSelector: {}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    ports:
    - {port: 5432, endPort: 5433}
    - {port: http, protocol: UDP}
  - {}
"#;
