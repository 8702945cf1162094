//! Objects of the cluster that are policies: what they are called, and what counts of them.

use kube::Resource;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

use super::config::PolicyKind;
use super::cost::Cost;

/// Before a document's name in the registry: not an operator's.
pub(super) const OWNER: &str = "kubernetes/";

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: PolicyKind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl Key {
    /// Its document's name in the registry.
    pub(super) fn document(&self) -> String {
        let kind = self.kind.resource().kind;
        match &self.namespace {
            Some(namespace) => format!("{OWNER}{kind}/{namespace}/{}", self.name),
            None => format!("{OWNER}{kind}/{}", self.name),
        }
    }
}

/// What is kept of an object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) text: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    /// Its status when it was seen last.
    pub(super) conditions: Vec<Value>,
    /// What it costs every node.
    pub(super) cost: Cost,
}

impl PartialEq for Object {
    /// A status that changed is ours, and no change of the policy.
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.uid, self.generation) == (&other.text, &other.uid, other.generation)
    }
}

impl PolicyKind {
    pub(super) fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = match self {
            Self::HandfastPolicy => (
                "handfast.io",
                "v1alpha1",
                "HandfastPolicy",
                "handfastpolicies",
            ),
            Self::NetworkPolicy => (
                "networking.k8s.io",
                "v1",
                "NetworkPolicy",
                "networkpolicies",
            ),
            Self::CiliumNetworkPolicy => (
                "cilium.io",
                "v2",
                "CiliumNetworkPolicy",
                "ciliumnetworkpolicies",
            ),
            Self::CiliumClusterwideNetworkPolicy => (
                "cilium.io",
                "v2",
                "CiliumClusterwideNetworkPolicy",
                "ciliumclusterwidenetworkpolicies",
            ),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    pub(super) fn key(self, object: &DynamicObject) -> Option<Key> {
        Some(Key {
            kind: self,
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone()?,
        })
    }

    /// What counts of an object, as text that says the same whatever else the cluster writes to it.
    pub(super) fn read(self, object: &DynamicObject) -> Option<Object> {
        let resource = self.resource();
        let mut document = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": object.metadata.name},
        });
        if let Some(namespace) = &object.metadata.namespace
            && let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        if let Some(fields) = document.as_object_mut() {
            for part in ["spec", "specs"] {
                if let Some(value) = object.data.get(part) {
                    fields.insert(part.to_owned(), value.clone());
                }
            }
        }
        let conditions = object.data.pointer("/status/conditions");
        Some(Object {
            cost: Cost::of(&document),
            text: serde_json::to_string_pretty(&document).ok()?,
            uid: object.metadata.uid.clone()?,
            generation: object.meta().generation.unwrap_or_default(),
            conditions: conditions
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
        })
    }
}
