//! What a pod is to the mesh: its identity, its labels, and where it runs.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec};
use spiffe::{SpiffeId, TrustDomain};

use crate::model::{Labels, Selector};
use crate::names::node_id;
use crate::registry::EntryOrder;
use crate::{Error, NodeName};

/// The label that says which namespace a workload is in.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The label that says which service account a workload has.
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// What its namespace's own labels begin with.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// What only the CA says of a workload begins with this: nobody gets there by labelling a pod.
const RESERVED: &str = "io.cilium.";
/// The name that every namespace has among its labels; older API servers do not put it there.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";
/// What the labels begin with that say which number a named port has, as policies look it up.
const NAMED_PORT: &str = "handfast.io/port.";
/// Kept by the kubelet for a pod of its own: never started by anybody else, under another UID than here.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is kept of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) account: String,
    pub(super) node: String,
    pub(super) labels: Labels,
    /// Its named ports: name → `8080` or `53-UDP`.
    pub(super) ports: BTreeMap<String, String>,
}

impl PodFacts {
    /// None for a pod that is to have no entry: on no node yet, over, or a mirror of the kubelet's own.
    pub(super) fn of(pod: Pod) -> Option<Self> {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let annotations = pod.metadata.annotations.as_ref();
        let mirror = annotations.is_some_and(|annotations| annotations.contains_key(MIRROR));
        if mirror || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let spec = pod.spec?;
        Some(Self {
            ports: named_ports(&spec),
            uid: pod.metadata.uid?,
            namespace: pod.metadata.namespace?,
            name: pod.metadata.name?,
            account: spec
                .service_account_name
                .filter(|account| !account.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name.filter(|node| !node.is_empty())?,
            labels: pod.metadata.labels.unwrap_or_default(),
        })
    }
}

/// The names that policies may call ports of these containers by; the first of a name counts, as at every enforcer.
fn named_ports(spec: &PodSpec) -> BTreeMap<String, String> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    // Init containers that stay serve beside the others.
    let beside = spec.init_containers.iter().flatten().filter(stays);
    let containers = spec.containers.iter().chain(beside);
    let mut named = BTreeMap::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let Some(name) = &port.name else { continue };
        let value = match port.protocol.as_deref() {
            None | Some("TCP") => port.container_port.to_string(),
            Some(protocol) => format!("{}-{protocol}", port.container_port),
        };
        named.entry(name.clone()).or_insert(value);
    }
    named
}

/// A namespace's labels, with its name among them.
pub(super) fn namespace_labels(namespace: Namespace) -> Option<Labels> {
    let mut labels = namespace.metadata.labels.unwrap_or_default();
    labels.insert(METADATA_NAME.to_owned(), namespace.metadata.name?);
    Some(labels)
}

/// How pods become entries.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) trust_domain: TrustDomain,
    /// Keys of pods' labels that are not signed.
    pub(super) leave_out: HashSet<String>,
}

impl Rules {
    /// The entry of a pod: for it alone, on its node alone.
    pub(super) fn entry(&self, pod: &PodFacts, namespace: &Labels) -> Result<EntryOrder, Error> {
        let domain = &self.trust_domain;
        let path = ["ns", &pod.namespace, "sa", &pod.account];
        let id = SpiffeId::from_segments(domain.clone(), &path)
            .map_err(|error| Error::invalid("SPIFFE ID of the pod", error.to_string()))?;
        let node: NodeName = pod.node.parse()?;
        Ok(EntryOrder {
            spiffe_id: id.to_string(),
            parent: node_id(domain, &node)?.to_string(),
            selectors: vec![Selector {
                kind: "k8s".to_owned(),
                value: format!("pod-uid:{}", pod.uid),
            }],
            labels: self.labels(pod, namespace),
            ..EntryOrder::default()
        })
    }

    fn labels(&self, pod: &PodFacts, namespace: &Labels) -> Labels {
        let signed = |key: &String| {
            !key.starts_with(RESERVED)
                && !key.starts_with(NAMED_PORT)
                && key != NAMESPACE
                && !self.leave_out.contains(key)
        };
        let mut labels: BTreeMap<String, String> = pod
            .labels
            .iter()
            .filter(|(key, _)| signed(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        labels.insert(NAMESPACE.to_owned(), pod.namespace.clone());
        labels.insert(SERVICE_ACCOUNT.to_owned(), pod.account.clone());
        for (name, port) in &pod.ports {
            labels.insert(format!("{NAMED_PORT}{name}"), port.clone());
        }
        for (key, value) in namespace {
            labels.insert(format!("{NAMESPACE_LABELS}{key}"), value.clone());
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    fn texts(pairs: &[(&str, &str)]) -> Labels {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn pod(labels: &[(&str, &str)]) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some("web-1".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("u-1".to_owned()),
                labels: Some(texts(labels)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some("n1".to_owned()),
                service_account_name: Some("web".to_owned()),
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    fn rules() -> Rules {
        Rules {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            leave_out: ["pod-template-hash".to_owned()].into(),
        }
    }

    #[test]
    fn a_pod_is_its_service_account_with_both_their_labels_on_its_node() {
        let facts = PodFacts::of(pod(&[("app", "web"), ("pod-template-hash", "abc")])).unwrap();
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some("shop".to_owned()),
                labels: Some(texts(&[("team", "sales")])),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let labels = namespace_labels(namespace).unwrap();
        let entry = rules().entry(&facts, &labels).unwrap();
        assert_eq!(entry.spiffe_id, "spiffe://example.org/ns/shop/sa/web");
        assert_eq!(entry.parent, "spiffe://example.org/handfast/node/n1");
        assert_eq!(entry.selectors[0].to_string(), "k8s:pod-uid:u-1");
        let expected = texts(&[
            ("app", "web"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.cilium.k8s.policy.serviceaccount", "web"),
            ("io.cilium.k8s.namespace.labels.team", "sales"),
            (
                "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
                "shop",
            ),
        ]);
        assert_eq!(entry.labels, expected);
    }

    #[test]
    fn the_names_of_its_containers_ports_are_signed() {
        let mut named = pod(&[("handfast.io/port.admin", "22")]);
        let spec = json!({
            "nodeName": "n1",
            "containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9000}]},
                {"name": "dns", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"},
                                           {"name": "http", "containerPort": 81}]},
            ],
            "initContainers": [
                {"name": "once", "ports": [{"name": "setup", "containerPort": 1}]},
                {"name": "stays", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
            ],
        });
        named.spec = Some(serde_json::from_value(spec).unwrap());
        let facts = PodFacts::of(named).unwrap();
        let labels = rules().entry(&facts, &texts(&[])).unwrap().labels;
        let ports: Vec<(&str, &str)> = labels
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(NAMED_PORT)?, value.as_str())))
            .collect();
        assert_eq!(
            ports,
            [("dns", "53-UDP"), ("http", "8080"), ("proxy", "15001")]
        );
    }

    #[test]
    fn nobody_moves_to_another_namespace_by_labelling_a_pod() {
        let facts = PodFacts::of(pod(&[
            ("io.kubernetes.pod.namespace", "kube-system"),
            ("io.cilium.k8s.namespace.labels.team", "root"),
            ("io.cilium.k8s.policy.serviceaccount", "admin"),
        ]))
        .unwrap();
        let entry = rules().entry(&facts, &texts(&[])).unwrap();
        let expected = texts(&[
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.cilium.k8s.policy.serviceaccount", "web"),
        ]);
        assert_eq!(entry.labels, expected);
    }

    #[test]
    fn pods_that_are_over_on_no_node_or_mirrors_have_no_entry() {
        let mut over = pod(&[]);
        over.status = Some(PodStatus {
            phase: Some("Succeeded".to_owned()),
            ..PodStatus::default()
        });
        assert_eq!(PodFacts::of(over), None);
        let mut waiting = pod(&[]);
        waiting.spec.as_mut().unwrap().node_name = None;
        assert_eq!(PodFacts::of(waiting), None);
        let mut mirror = pod(&[]);
        mirror.metadata.annotations = Some(texts(&[(MIRROR, "x")]));
        assert_eq!(PodFacts::of(mirror), None);
        assert!(PodFacts::of(pod(&[])).is_some());
    }
}
