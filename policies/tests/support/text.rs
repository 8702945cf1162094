//! The same documents as text.

use std::fmt::Write;

use handfast_policies::{Direction, Protocol};

use super::model::*;

pub fn document(number: usize, document: &Document) -> String {
    match document {
        Document::Policy(policy) => own(number, policy),
        Document::NetworkPolicy(policy) => network_policy(number, policy),
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "))
}

fn map(fields: Vec<String>) -> String {
    format!("{{{}}}", fields.join(", "))
}

fn strings(words: &[&str]) -> String {
    list(words.iter().map(|word| format!("\"{word}\"")))
}

fn selector(selector: &Selector, source: &str) -> String {
    let mut labels = Vec::new();
    let mut expressions = Vec::new();
    for (key, is) in selector {
        let of = |operator: &str, values: &[&str]| {
            let values = match values {
                [] => String::new(),
                values => format!(", values: {}", strings(values)),
            };
            format!("{{key: \"{source}{key}\", operator: {operator}{values}}}")
        };
        match is {
            Is::In(values) if values.len() == 1 => labels.push(format!("{key}: {}", values[0])),
            Is::In(values) => expressions.push(of("In", values)),
            Is::NotIn(values) => expressions.push(of("NotIn", values)),
            Is::Exists => expressions.push(of("Exists", &[])),
            Is::Absent => expressions.push(of("DoesNotExist", &[])),
        }
    }
    format!(
        "{{matchLabels: {}, matchExpressions: {}}}",
        map(labels),
        list(expressions)
    )
}

fn protocol(protocol: Option<Protocol>) -> String {
    protocol.map_or_else(String::new, |protocol| {
        format!(", protocol: {}", protocol.to_string().to_uppercase())
    })
}

fn rule(rule: &Rule) -> String {
    let side = match rule.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let mut fields = Vec::new();
    match &rule.peers {
        Peers::Unsaid => {}
        Peers::Endpoints(selectors) => fields.push(format!(
            "{side}Endpoints: {}",
            list(selectors.iter().map(|s| selector(s, "k8s:")))
        )),
        Peers::Reserved(name) => fields.push(format!(
            "{side}Endpoints: [{{matchLabels: {{\"reserved:{name}\": \"\"}}}}]"
        )),
        Peers::Entities(names) => fields.push(format!("{side}Entities: {}", strings(names))),
        Peers::Cidrs(nets) => fields.push(format!("{side}CIDR: {}", strings(nets))),
        Peers::CidrSet(cidr, except) => fields.push(format!(
            "{side}CIDRSet: [{{cidr: \"{cidr}\", except: {}}}]",
            strings(except)
        )),
    }
    match &rule.traffic {
        Traffic::Unsaid => {}
        Traffic::Ports(ports) => {
            let items = list(ports.iter().map(port));
            fields.push(format!("toPorts: [{{ports: {items}}}]"));
        }
        Traffic::Icmps(types) => {
            let items = types.iter().map(|(family, number)| {
                let family = match family {
                    Protocol::Icmpv6 => "IPv6",
                    _ => "IPv4",
                };
                format!("{{family: {family}, type: {number}}}")
            });
            fields.push(format!("icmps: [{{fields: {}}}]", list(items)));
        }
    }
    if let Some((mode, _)) = rule.mode {
        fields.push(format!("authentication: {{mode: {mode}}}"));
    }
    map(fields)
}

fn port(port: &Port) -> String {
    match port {
        Port::Range(first, last, named) if first == last => {
            format!("{{port: \"{first}\"{}}}", protocol(*named))
        }
        Port::Range(first, last, named) => {
            format!("{{port: {first}, endPort: {last}{}}}", protocol(*named))
        }
        Port::Named(name, named) => format!("{{port: {name}{}}}", protocol(*named)),
    }
}

fn own(number: usize, policy: &Policy) -> String {
    let mut text = head(
        "handfast.io/v1alpha1",
        "HandfastPolicy",
        number,
        policy.namespace,
    );
    writeln!(
        text,
        "  endpointSelector: {}",
        selector(&policy.subject, "")
    )
    .unwrap();
    for (name, direction, deny) in [
        ("ingress", Direction::Ingress, false),
        ("ingressDeny", Direction::Ingress, true),
        ("egress", Direction::Egress, false),
        ("egressDeny", Direction::Egress, true),
    ] {
        let rules = policy.rules.iter();
        let rules = rules.filter(|r| r.direction == direction && r.deny == deny);
        writeln!(text, "  {name}: {}", list(rules.map(rule))).unwrap();
    }
    let said = [
        policy.default_deny.0.map(|said| format!("ingress: {said}")),
        policy.default_deny.1.map(|said| format!("egress: {said}")),
    ];
    let said = said.into_iter().flatten().collect();
    writeln!(text, "  enableDefaultDeny: {}", map(said)).unwrap();
    text
}

fn head(version: &str, kind: &str, number: usize, namespace: Option<&str>) -> String {
    let namespace = namespace.map_or_else(String::new, |n| format!(", namespace: {n}"));
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: p{number}{namespace}}}\nspec:\n"
    )
}

fn network_policy(number: usize, policy: &NetworkPolicy) -> String {
    let mut text = head(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        number,
        policy.namespace,
    );
    if let Some(pods) = &policy.pods {
        writeln!(text, "  podSelector: {}", selector(pods, "")).unwrap();
    }
    if let Some(types) = &policy.types {
        let types = types.iter().map(|direction| format!("{direction:?}"));
        writeln!(text, "  policyTypes: {}", list(types)).unwrap();
    }
    for (name, side, rules) in [
        ("ingress", "from", &policy.ingress),
        ("egress", "to", &policy.egress),
    ] {
        if let Some(rules) = rules {
            let rules = rules.iter().map(|rule| network_rule(rule, side));
            writeln!(text, "  {name}: {}", list(rules)).unwrap();
        }
    }
    // A spec that says nothing at all is still a mapping.
    if text.ends_with("spec:\n") {
        text.truncate(text.len() - 1);
        text.push_str(" {}\n");
    }
    text
}

fn network_rule(rule: &KubernetesRule, side: &str) -> String {
    let mut fields = Vec::new();
    if let Some(peers) = &rule.peers {
        let peers = peers.iter().map(|peer| match peer {
            KubernetesPeer::Pods(pods) => format!("{{podSelector: {}}}", selector(pods, "")),
            KubernetesPeer::Namespaces(namespaces, None) => {
                format!("{{namespaceSelector: {}}}", selector(namespaces, ""))
            }
            KubernetesPeer::Namespaces(namespaces, Some(pods)) => format!(
                "{{namespaceSelector: {}, podSelector: {}}}",
                selector(namespaces, ""),
                selector(pods, "")
            ),
            KubernetesPeer::Block(cidr, except) => format!(
                "{{ipBlock: {{cidr: \"{cidr}\", except: {}}}}}",
                strings(except)
            ),
        });
        fields.push(format!("{side}: {}", list(peers)));
    }
    if let Some(ports) = &rule.ports {
        let ports = ports.iter().map(|port| {
            let (port, named) = match port {
                KubernetesPort::Every(named) => (Vec::new(), named),
                KubernetesPort::Range(first, last, named) if first == last => {
                    (vec![format!("port: {first}")], named)
                }
                KubernetesPort::Range(first, last, named) => (
                    vec![format!("port: {first}"), format!("endPort: {last}")],
                    named,
                ),
                KubernetesPort::Named(name, named) => (vec![format!("port: {name}")], named),
            };
            let named = named.map(|p| format!("protocol: {}", p.to_string().to_uppercase()));
            map(port.into_iter().chain(named).collect())
        });
        fields.push(format!("ports: {}", list(ports)));
    }
    map(fields)
}
