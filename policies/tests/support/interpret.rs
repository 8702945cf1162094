//! What the documents mean, said as plainly as can be: no compilation, no order, no speed.

use handfast_policies::{Authentication, Direction, Protocol, Remote, Workload};
use ipnet::IpNet;

use super::model::*;

#[derive(Debug, PartialEq)]
pub enum Meaning {
    /// Nothing closes this end, and nothing speaks of the flow.
    Open,
    Denied,
    Allowed(Option<Authentication>),
}

/// One flow, seen from one of its ends.
pub struct Flow<'a> {
    pub local: &'a Workload,
    pub remote: &'a Remote,
    pub direction: Direction,
    pub protocol: Protocol,
    /// The destination's port, or the type of an ICMP message.
    pub port: u16,
}

/// A rule that speaks of the flow.
struct Speaks {
    /// How narrowly: fewer ports first, then rules that name somebody.
    width: (u32, bool),
    deny: bool,
    mode: Option<Authentication>,
}

pub fn interpret(documents: &[Document], flow: &Flow<'_>) -> Meaning {
    let mut closed = false;
    let mut speaking = Vec::new();
    for document in documents {
        match document {
            Document::Policy(policy) => {
                if !in_namespace(policy.namespace, flow.local)
                    || !selects(&policy.subject, &flow.local.labels)
                {
                    continue;
                }
                let mut rules = policy.rules.iter();
                let has_rule = rules.any(|rule| rule.direction == flow.direction);
                let said = match flow.direction {
                    Direction::Ingress => policy.default_deny.0,
                    Direction::Egress => policy.default_deny.1,
                };
                closed |= said.unwrap_or(has_rule);
                speaking.extend(policy.rules.iter().filter_map(|r| speaks(policy, r, flow)));
            }
            Document::NetworkPolicy(policy) => {
                let selected = in_namespace(policy.namespace, flow.local)
                    && policy
                        .pods
                        .as_ref()
                        .is_none_or(|pods| selects(pods, &flow.local.labels));
                if !selected || !closes(policy, flow.direction) {
                    continue;
                }
                closed = true;
                speaking.extend(network_policy_speaks(policy, flow));
            }
        }
    }
    if speaking.iter().any(|rule| rule.deny) {
        return Meaning::Denied;
    }
    if speaking.is_empty() {
        return if closed {
            Meaning::Denied
        } else {
            Meaning::Open
        };
    }
    let narrowest = speaking
        .iter()
        .filter(|rule| rule.mode.is_some())
        .map(|rule| rule.width)
        .min();
    let deciding = speaking.iter().filter(|rule| Some(rule.width) == narrowest);
    Meaning::Allowed(deciding.filter_map(|rule| rule.mode).max())
}

fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector.iter().all(|(key, is)| {
        let value = labels.get(*key).map(String::as_str);
        match is {
            Is::In(values) => value.is_some_and(|v| values.contains(&v)),
            Is::NotIn(values) => !value.is_some_and(|v| values.contains(&v)),
            Is::Exists => value.is_some(),
            Is::Absent => value.is_none(),
        }
    })
}

fn in_namespace(namespace: Option<&str>, workload: &Workload) -> bool {
    namespace.is_none_or(|n| workload.labels.get(NAMESPACE).is_some_and(|l| l == n))
}

fn contains(net: &str, other: &IpNet) -> bool {
    net.parse::<IpNet>().unwrap().contains(other)
}

fn is_entity(name: &str, remote: &Remote) -> bool {
    match name {
        "all" => true,
        "world" => matches!(remote, Remote::World | Remote::Cidr(_)),
        "world-ipv4" => matches!(remote, Remote::Cidr(net) if contains("0.0.0.0/0", net)),
        "world-ipv6" => matches!(remote, Remote::Cidr(net) if contains("::/0", net)),
        "host" => *remote == Remote::Host,
        "cluster" => matches!(remote, Remote::Host | Remote::Workload(_)),
        "none" => false,
        other => panic!("{other}"),
    }
}

fn is_peer(policy: &Policy, rule: &Rule, remote: &Remote) -> bool {
    match (&rule.peers, remote) {
        // `{}` closes and allows nothing; ports alone are for everybody.
        (Peers::Unsaid, _) => !matches!(rule.traffic, Traffic::Unsaid),
        (Peers::Endpoints(selectors), Remote::Workload(workload)) => {
            selectors.iter().any(|selector| {
                let named = |key: &str| key == NAMESPACE || key == TEAM_OF_NAMESPACE;
                let names_namespace = selector.iter().any(|(key, _)| named(key));
                selects(selector, &workload.labels)
                    && (names_namespace || in_namespace(policy.namespace, workload))
            })
        }
        (Peers::Reserved(name), remote) => is_entity(name, remote),
        (Peers::Entities(names), remote) => names.iter().any(|name| is_entity(name, remote)),
        (Peers::Cidrs(nets), Remote::Cidr(net)) => nets.iter().any(|n| contains(n, net)),
        (Peers::CidrSet(cidr, except), Remote::Cidr(net)) => {
            contains(cidr, net) && !except.iter().any(|n| contains(n, net))
        }
        _ => false,
    }
}

fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp)
}

/// The number that whoever is called gives a port of this name.
fn named(name: &str, wanted: Option<Protocol>, flow: &Flow<'_>) -> Option<u16> {
    let called = match (flow.direction, flow.remote) {
        (Direction::Ingress, _) => flow.local,
        (Direction::Egress, Remote::Workload(workload)) => workload,
        (Direction::Egress, _) => return None,
    };
    let text = called.labels.get(&format!("handfast.io/port.{name}"))?;
    let (number, protocol) = match text.strip_suffix("-UDP") {
        Some(number) => (number, Protocol::Udp),
        None => (text.as_str(), Protocol::Tcp),
    };
    let right = wanted.is_none_or(|wanted| wanted == protocol) && flow.protocol == protocol;
    right.then(|| number.parse().unwrap())
}

fn covers(protocol: Option<Protocol>, first: u16, last: u16, flow: &Flow<'_>) -> bool {
    has_ports(flow.protocol)
        && protocol.is_none_or(|named| named == flow.protocol)
        && (first..=last).contains(&flow.port)
}

/// How narrowly a rule speaks of the flow's protocol and port: `None` if not at all.
fn width(traffic: &Traffic, flow: &Flow<'_>) -> Option<u32> {
    match traffic {
        Traffic::Unsaid => Some(1 << 20),
        Traffic::Ports(ports) => {
            let widths = ports.iter().filter_map(|port| match port {
                Port::Range(0, 0, protocol) => {
                    covers(*protocol, 0, u16::MAX, flow).then_some(65_535)
                }
                Port::Range(first, last, protocol) => {
                    covers(*protocol, *first, *last, flow).then(|| u32::from(last - first))
                }
                Port::Named(name, protocol) => {
                    (named(name, *protocol, flow) == Some(flow.port)).then_some(0)
                }
            });
            widths.min()
        }
        Traffic::Icmps(types) => {
            let is_named = |(family, number): &(Protocol, u8)| {
                *family == flow.protocol && u16::from(*number) == flow.port
            };
            types.iter().any(is_named).then_some(0)
        }
    }
}

fn speaks(policy: &Policy, rule: &Rule, flow: &Flow<'_>) -> Option<Speaks> {
    if rule.direction != flow.direction || !is_peer(policy, rule, flow.remote) {
        return None;
    }
    let anybody = match &rule.peers {
        Peers::Unsaid => true,
        Peers::Entities(names) => names.contains(&"all"),
        _ => false,
    };
    Some(Speaks {
        width: (width(&rule.traffic, flow)?, anybody),
        deny: rule.deny,
        mode: rule.mode.map(|(_, mode)| mode),
    })
}

fn closes(policy: &NetworkPolicy, direction: Direction) -> bool {
    match &policy.types {
        Some(types) if !types.is_empty() => types.contains(&direction),
        _ => {
            let has_egress = policy
                .egress
                .as_ref()
                .is_some_and(|rules| !rules.is_empty());
            direction == Direction::Ingress || has_egress
        }
    }
}

fn network_policy_speaks(policy: &NetworkPolicy, flow: &Flow<'_>) -> Option<Speaks> {
    let rules = match flow.direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let by_rule = rules.iter().flatten().any(|rule| {
        let peers = rule.peers.as_ref().filter(|peers| !peers.is_empty());
        let ports = rule.ports.as_ref().filter(|ports| !ports.is_empty());
        peers.is_none_or(|peers| {
            peers
                .iter()
                .any(|peer| is_kubernetes_peer(policy, peer, flow))
        }) && ports.is_none_or(|ports| ports.iter().any(|port| is_kubernetes_port(port, flow)))
    });
    let from_its_node = flow.direction == Direction::Ingress && *flow.remote == Remote::Host;
    // No NetworkPolicy speaks of authentication, so how narrowly it speaks does not matter.
    (by_rule || from_its_node).then_some(Speaks {
        width: (u32::MAX, true),
        deny: false,
        mode: None,
    })
}

fn is_kubernetes_peer(policy: &NetworkPolicy, peer: &KubernetesPeer, flow: &Flow<'_>) -> bool {
    match (peer, flow.remote) {
        (KubernetesPeer::Pods(pods), Remote::Workload(workload)) => {
            in_namespace(policy.namespace, workload) && selects(pods, &workload.labels)
        }
        (KubernetesPeer::Namespaces(namespaces, pods), Remote::Workload(workload)) => {
            let Some(name) = workload.labels.get(NAMESPACE) else {
                return false;
            };
            let mut of_namespace = Labels::new();
            of_namespace.insert("kubernetes.io/metadata.name".into(), name.clone());
            if let Some(team) = workload.labels.get(TEAM_OF_NAMESPACE) {
                of_namespace.insert(TEAM.into(), team.clone());
            }
            selects(namespaces, &of_namespace)
                && pods
                    .as_ref()
                    .is_none_or(|pods| selects(pods, &workload.labels))
        }
        (KubernetesPeer::Block(cidr, except), Remote::Cidr(net)) => {
            contains(cidr, net) && !except.iter().any(|n| contains(n, net))
        }
        _ => false,
    }
}

fn is_kubernetes_port(port: &KubernetesPort, flow: &Flow<'_>) -> bool {
    let tcp = |protocol: &Option<Protocol>| Some(protocol.unwrap_or(Protocol::Tcp));
    match port {
        KubernetesPort::Every(protocol) => covers(tcp(protocol), 0, u16::MAX, flow),
        KubernetesPort::Range(first, last, protocol) => covers(tcp(protocol), *first, *last, flow),
        KubernetesPort::Named(name, protocol) => {
            named(name, tcp(protocol), flow) == Some(flow.port)
        }
    }
}
