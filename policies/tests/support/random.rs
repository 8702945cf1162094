//! Random documents, workloads and remotes.

use handfast_policies::{Direction, Protocol, Remote, Workload};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use spiffe::SpiffeId;

use super::model::*;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn is() -> impl Strategy<Value = Is> {
    prop_oneof![
        3 => subsequence(VALUES.to_vec(), 1..=2).prop_map(Is::In),
        1 => subsequence(VALUES.to_vec(), 1..=2).prop_map(Is::NotIn),
        1 => Just(Is::Exists),
        1 => Just(Is::Absent),
    ]
}

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = Selector> {
    proptest::collection::btree_map(select(keys), is(), 0..=2).prop_map(|m| m.into_iter().collect())
}

const PEER_KEYS: [&str; 4] = ["app", "tier", NAMESPACE, TEAM_OF_NAMESPACE];
const NAMESPACE_KEYS: [&str; 2] = [TEAM, "kubernetes.io/metadata.name"];
const ENTITIES: [&str; 7] = [
    "all",
    "none",
    "world",
    "world-ipv4",
    "world-ipv6",
    "host",
    "cluster",
];

fn peers() -> impl Strategy<Value = Peers> {
    let block = || subsequence(NETS[2..4].to_vec(), 0..=2);
    prop_oneof![
        2 => Just(Peers::Unsaid),
        4 => vec(selector(&PEER_KEYS), 0..=2).prop_map(Peers::Endpoints),
        1 => select(vec!["world", "host"]).prop_map(Peers::Reserved),
        2 => subsequence(ENTITIES.to_vec(), 0..=2).prop_map(Peers::Entities),
        1 => subsequence(NETS.to_vec(), 1..=2).prop_map(Peers::Cidrs),
        1 => block().prop_map(|except| Peers::CidrSet(NETS[1], except)),
    ]
}

/// Ports close together, so that ranges overlap.
fn range() -> impl Strategy<Value = (u16, u16)> {
    prop_oneof![
        3 => (1_u16..12).prop_map(|p| (p, p)),
        3 => (1_u16..12, 1_u16..6).prop_map(|(p, n)| (p, p + n)),
        1 => Just((65_530, 65_535)),
    ]
}

fn protocol() -> impl Strategy<Value = Option<Protocol>> {
    select(vec![
        None,
        Some(Protocol::Tcp),
        Some(Protocol::Udp),
        Some(Protocol::Sctp),
    ])
}

fn port() -> impl Strategy<Value = Port> {
    let name = select(PORT_NAMES.to_vec());
    prop_oneof![
        1 => protocol().prop_map(|protocol| Port::Range(0, 0, protocol)),
        5 => (range(), protocol()).prop_map(|((a, b), protocol)| Port::Range(a, b, protocol)),
        2 => (name, protocol()).prop_map(|(name, protocol)| Port::Named(name, protocol)),
    ]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    // Types that open something: errors are refused in deny rules.
    let message = (
        select(vec![Protocol::Icmp, Protocol::Icmpv6]),
        select(vec![0_u8, 8, 13, 128, 129]),
    );
    prop_oneof![
        4 => Just(Traffic::Unsaid),
        5 => vec(port(), 1..=3).prop_map(Traffic::Ports),
        2 => vec(message, 1..=2).prop_map(Traffic::Icmps),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        select(DIRECTIONS.to_vec()),
        prop::bool::weighted(0.15),
        peers(),
        traffic(),
        option::of(select(MODES.to_vec())),
    )
        .prop_map(|(direction, deny, peers, traffic, mode)| {
            let names = !matches!(traffic, Traffic::Unsaid) || !matches!(peers, Peers::Unsaid);
            Rule {
                direction,
                deny,
                peers,
                traffic,
                mode: mode.filter(|_| names && !deny),
            }
        })
}

fn namespace() -> impl Strategy<Value = Option<&'static str>> {
    option::weighted(0.3, select(VALUES.to_vec()))
}

pub fn policy() -> impl Strategy<Value = Policy> {
    let said = || option::weighted(0.25, any::<bool>());
    (
        namespace(),
        selector(&KEYS[..2]),
        vec(rule(), 1..=5),
        (said(), said()),
    )
        .prop_map(|(namespace, subject, rules, mut default_deny)| {
            // A policy without any effect is refused; one rule always has one, default deny or not.
            if default_deny == (Some(false), Some(false)) {
                default_deny = (None, Some(false));
            }
            Policy {
                namespace,
                subject,
                rules,
                default_deny,
            }
        })
}

fn kubernetes_peer() -> impl Strategy<Value = KubernetesPeer> {
    let pods = || selector(&KEYS[..2]);
    prop_oneof![
        2 => pods().prop_map(KubernetesPeer::Pods),
        2 => (selector(&NAMESPACE_KEYS), option::of(pods()))
            .prop_map(|(namespaces, pods)| KubernetesPeer::Namespaces(namespaces, pods)),
        1 => subsequence(NETS[2..4].to_vec(), 0..=2)
            .prop_map(|except| KubernetesPeer::Block(NETS[1], except)),
    ]
}

fn kubernetes_port() -> impl Strategy<Value = KubernetesPort> {
    let name = select(PORT_NAMES.to_vec());
    prop_oneof![
        1 => protocol().prop_map(KubernetesPort::Every),
        3 => (range(), protocol())
            .prop_map(|((a, b), protocol)| KubernetesPort::Range(a, b, protocol)),
        1 => (name, protocol()).prop_map(|(name, protocol)| KubernetesPort::Named(name, protocol)),
    ]
}

fn kubernetes_rule() -> impl Strategy<Value = KubernetesRule> {
    (
        option::weighted(0.8, vec(kubernetes_peer(), 0..=2)),
        option::weighted(0.6, vec(kubernetes_port(), 0..=2)),
    )
        .prop_map(|(peers, ports)| KubernetesRule { peers, ports })
}

pub fn network_policy() -> impl Strategy<Value = NetworkPolicy> {
    (
        namespace(),
        option::weighted(0.8, selector(&KEYS[..2])),
        option::of(subsequence(DIRECTIONS.to_vec(), 0..=2)),
        option::weighted(0.7, vec(kubernetes_rule(), 0..=2)),
        option::weighted(0.5, vec(kubernetes_rule(), 0..=2)),
    )
        .prop_map(|(namespace, pods, types, ingress, egress)| NetworkPolicy {
            namespace,
            pods,
            types,
            ingress,
            egress,
        })
}

pub fn document() -> impl Strategy<Value = Document> {
    prop_oneof![
        3 => policy().prop_map(Document::Policy),
        2 => network_policy().prop_map(Document::NetworkPolicy),
    ]
}

pub fn workload() -> impl Strategy<Value = Workload> {
    let label = || option::weighted(0.8, select(VALUES.to_vec()));
    let named = || option::of(select(vec!["3", "7", "7-UDP", "65535"]));
    ([label(), label(), label(), label()], [named(), named()]).prop_map(|(values, ports)| {
        let labels = PEER_KEYS.iter().zip(values);
        let labels = labels.filter_map(|(k, v)| Some(((*k).to_owned(), v?.to_owned())));
        let ports = PORT_NAMES.iter().zip(ports);
        let ports = ports.filter_map(|(name, port)| {
            Some((format!("handfast.io/port.{name}"), port?.to_owned()))
        });
        Workload {
            spiffe_id: SpiffeId::new("spiffe://example.org/w").unwrap(),
            labels: labels.chain(ports).collect(),
        }
    })
}

/// What the gates tell apart: an address outside is a named prefix, so the world alone is of neither family.
pub fn remote() -> impl Strategy<Value = Remote> {
    prop_oneof![
        6 => workload().prop_map(Remote::Workload),
        2 => select(NETS.to_vec()).prop_map(|net| Remote::Cidr(net.parse().unwrap())),
        1 => select(vec![Remote::Host, Remote::World, Remote::Unknown]),
    ]
}
