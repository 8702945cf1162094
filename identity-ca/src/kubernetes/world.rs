//! Pods and namespaces as they were seen, and what the registry must be told of them. No I/O: events in, plan out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::runtime::watcher::Event;

use super::listed::Listed;
use super::workload::{PodFacts, Rules, namespace_labels};
use crate::model::{Entry, Labels};
use crate::registry::EntryOrder;
use crate::{Error, NodeName};

/// What is to be changed, by pod UID.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) put: Vec<(String, EntryOrder)>,
    pub(super) delete: Vec<String>,
    /// Pods that cannot have the entry that they would get.
    pub(super) refused: Vec<(Arc<PodFacts>, Error)>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty() && self.refused.is_empty()
    }
}

/// What of the registry a plan depends on.
pub(super) trait Registered {
    /// The entry that stands for a pod.
    fn entry(&self, uid: &str) -> Option<Arc<Entry>>;
    /// Is a node of that name there?
    fn node(&self, name: &NodeName) -> bool;
}

/// See the module.
pub(super) struct World {
    rules: Rules,
    pods: Listed<String, Arc<PodFacts>>,
    namespaces: Listed<String, Labels>,
    by_namespace: HashMap<String, HashSet<String>>,
    /// UIDs that are to be looked at.
    dirty: BTreeSet<String>,
    /// UIDs whose node is not in the registry yet.
    waiting: HashSet<String>,
}

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            pods: Listed::default(),
            namespaces: Listed::default(),
            by_namespace: HashMap::new(),
            dirty: BTreeSet::new(),
            waiting: HashSet::new(),
        }
    }

    pub(super) fn take_pod(&mut self, event: Event<Pod>) {
        let uid = |pod: &Pod| pod.metadata.uid.clone();
        let changed = self
            .pods
            .take(event, uid, |pod| PodFacts::of(pod).map(Arc::new));
        for (uid, before) in changed {
            if let Some(before) = before
                && let Some(pods) = self.by_namespace.get_mut(&before.namespace)
            {
                pods.remove(&uid);
                if pods.is_empty() {
                    self.by_namespace.remove(&before.namespace);
                }
            }
            if let Some(now) = self.pods.get(&uid) {
                let pods = self.by_namespace.entry(now.namespace.clone()).or_default();
                pods.insert(uid.clone());
            }
            self.dirty.insert(uid);
        }
    }

    pub(super) fn take_namespace(&mut self, event: Event<Namespace>) {
        let name = |namespace: &Namespace| namespace.metadata.name.clone();
        for (name, _) in self.namespaces.take(event, name, namespace_labels) {
            let pods = self.by_namespace.get(&name).into_iter().flatten();
            self.dirty.extend(pods.cloned());
        }
    }

    /// Nodes have come or gone: who waits for one may have waited long enough.
    pub(super) fn nodes_changed(&mut self) {
        self.dirty.extend(self.waiting.drain());
    }

    /// These must be looked at again: what was planned for them did not come about, or somebody else changed it.
    pub(super) fn again(&mut self, uids: impl IntoIterator<Item = String>) {
        self.dirty.extend(uids);
    }

    /// Has everything been seen? Before, a plan would take away what was only not shown yet.
    pub(super) fn complete(&self) -> bool {
        self.pods.complete() && self.namespaces.complete()
    }

    /// What is to be done for at most `limit` pods; what is planned counts as done.
    pub(super) fn plan(&mut self, registered: &impl Registered, limit: usize) -> Plan {
        let mut plan = Plan::default();
        if !self.complete() {
            return plan;
        }
        for _ in 0..limit {
            let Some(uid) = self.dirty.pop_first() else {
                break;
            };
            let known = registered.entry(&uid);
            let Some(pod) = self.pods.get(&uid) else {
                self.waiting.remove(&uid);
                if known.is_some() {
                    plan.delete.push(uid);
                }
                continue;
            };
            // Its namespace is seen a moment later; until then it stays what it was.
            let Some(namespace) = self.namespaces.get(&pod.namespace) else {
                continue;
            };
            let here = pod.node.parse().is_ok_and(|node| registered.node(&node));
            if !here {
                self.waiting.insert(uid);
                continue;
            }
            match self.rules.entry(pod, namespace) {
                Ok(order)
                    if known
                        .as_deref()
                        .is_some_and(|known| says_the_same(known, &order)) => {}
                Ok(order) => plan.put.push((uid, order)),
                Err(error) => {
                    plan.refused.push((Arc::clone(pod), error));
                    // What it was allowed to say before is not what it says now.
                    if known.is_some() {
                        plan.delete.push(uid);
                    }
                }
            }
        }
        plan
    }

    /// Is there more to be looked at?
    pub(super) fn is_dirty(&self) -> bool {
        self.complete() && !self.dirty.is_empty()
    }

    pub(super) fn pod(&self, uid: &str) -> Option<Arc<PodFacts>> {
        self.pods.get(&uid.to_owned()).cloned()
    }
}

fn says_the_same(entry: &Entry, order: &EntryOrder) -> bool {
    let parent = entry.parent_id.as_ref().map(ToString::to_string);
    entry.spiffe_id.to_string() == order.spiffe_id
        && parent.as_deref() == Some(order.parent.as_str())
        && entry.selectors == order.selectors
        && entry.labels == order.labels
        && entry.workload_ttl_seconds.is_none()
        && entry.dns_names.is_empty()
        && entry.expires_at_ms.is_none()
}
