//! Policies as plain values, one type for Cilium's words and handfast's own, one for Kubernetes'.

use std::collections::BTreeMap;

use handfast_policies::{Authentication, Direction, Protocol};

/// Label keys and values are few, so that selectors and workloads meet.
pub const KEYS: [&str; 3] = ["app", "tier", NAMESPACE];
pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// A label of namespaces, and where workloads carry it.
pub const TEAM: &str = "team";
pub const TEAM_OF_NAMESPACE: &str = "io.cilium.k8s.namespace.labels.team";
pub const VALUES: [&str; 3] = ["a", "b", "c"];
pub const PORT_NAMES: [&str; 2] = ["http", "dns"];
pub const NETS: [&str; 5] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "2001:db8::/32",
];
pub const MODES: [(&str, Authentication); 4] = [
    ("disabled", Authentication::Disabled),
    ("audit", Authentication::Audit),
    ("required", Authentication::Required),
    ("test-always-fail", Authentication::TestAlwaysFail),
];

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug)]
pub enum Is {
    In(Vec<&'static str>),
    NotIn(Vec<&'static str>),
    Exists,
    Absent,
}

pub type Selector = Vec<(&'static str, Is)>;

#[derive(Clone, Debug)]
pub enum Peers {
    Unsaid,
    Endpoints(Vec<Selector>),
    Reserved(&'static str),
    Entities(Vec<&'static str>),
    Cidrs(Vec<&'static str>),
    CidrSet(&'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub enum Port {
    /// 0 and 0 is every port.
    Range(u16, u16, Option<Protocol>),
    Named(&'static str, Option<Protocol>),
}

#[derive(Clone, Debug)]
pub enum Traffic {
    Unsaid,
    Ports(Vec<Port>),
    /// Family and type.
    Icmps(Vec<(Protocol, u8)>),
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub direction: Direction,
    pub deny: bool,
    pub peers: Peers,
    pub traffic: Traffic,
    pub mode: Option<(&'static str, Authentication)>,
}

/// A HandfastPolicy; without `audit` also a CiliumNetworkPolicy.
#[derive(Clone, Debug)]
pub struct Policy {
    pub namespace: Option<&'static str>,
    pub subject: Selector,
    pub rules: Vec<Rule>,
    pub default_deny: (Option<bool>, Option<bool>),
}

#[derive(Clone, Debug)]
pub enum KubernetesPeer {
    Pods(Selector),
    /// On the labels of namespaces: `team`, or `kubernetes.io/metadata.name`.
    Namespaces(Selector, Option<Selector>),
    Block(&'static str, Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub enum KubernetesPort {
    Every(Option<Protocol>),
    Range(u16, u16, Option<Protocol>),
    Named(&'static str, Option<Protocol>),
}

#[derive(Clone, Debug)]
pub struct KubernetesRule {
    pub peers: Option<Vec<KubernetesPeer>>,
    pub ports: Option<Vec<KubernetesPort>>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug)]
pub struct NetworkPolicy {
    pub namespace: Option<&'static str>,
    pub pods: Option<Selector>,
    pub types: Option<Vec<Direction>>,
    pub ingress: Option<Vec<KubernetesRule>>,
    pub egress: Option<Vec<KubernetesRule>>,
}

#[derive(Clone, Debug)]
pub enum Document {
    Policy(Policy),
    NetworkPolicy(NetworkPolicy),
}
