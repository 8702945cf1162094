//! Policy files: all is taken or nothing, and every complaint names a place that exists.

use handfast_policies::{PolicySet, Source};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let source = Source {
        name: "fuzz.yaml".to_owned(),
        text: text.to_owned(),
    };
    if let Err(errors) = PolicySet::read(vec![source]) {
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

pub fn seeds() -> Vec<Vec<u8>> {
    vec![CILIUM.into(), OWN.into(), BROKEN.into()]
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

const OWN: &str = r#"{"apiVersion": "handfast.dev/v1", "kind": "HandfastPolicy", "metadata": {"name": "db"},
 "spec": {"endpointSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"fromEndpoints": [{}],
 "authentication": {"mode": "required", "peers": ["spiffe://example.org/*"], "maxAge": "1h"},
 "encryption": {"mode": "required"}, "toPorts": [{"ports": [{"port": "5432", "protocol": "TCP"}]}]}]}}"#;

const BROKEN: &str = "kind: CiliumNetworkPolicy\nspec:\n  endpointSelektor: {}\n---\n- &a [*a]\n";
