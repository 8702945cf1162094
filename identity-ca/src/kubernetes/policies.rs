//! Policies that follow objects of the cluster: watched, checked, put into the registry, and told how they stand.
//!
//! Nodes read all policies or none, so only what can be read gets there. An object that was changed into something that
//! cannot be read leaves its last good version in force, and says so in its status and an event.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::SelectAll;
use ipnet::IpNet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use super::config::PolicyKind;
use super::cost::Cost;
use super::entries::watch_broke;
use super::listed::Listed;
use super::retry::Retry;
use super::status::{Standing, Statuses};
use crate::Error;
use crate::registry::PolicyOrder;
use crate::server::Registrar;

/// Before a document's name in the registry: not an operator's.
const OWNER: &str = "kubernetes/";
/// Events that are taken in before anything is written.
const READY: usize = 1024;
/// What failed is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);
/// Policies, and bytes of them, of one namespace; and of the cluster, within what the registry holds.
const SHARE: (usize, usize) = (1000, 4 << 20);
const ALL: (usize, usize) = (9000, 24 << 20);
/// Distinct prefixes of one namespace, and of the cluster: each is told apart on every node.
const PREFIXES: (usize, usize) = (1000, 16_000);
/// Ports and ranges of one policy.
const PORTS: usize = 2048;
/// How far nodes are is looked at so often, while some are not there yet.
const LOOK: Duration = Duration::from_millis(500);

/// Reads policies, for a CA that does not.
pub trait CheckPolicies: Send + Sync + std::fmt::Debug {
    /// Which of these documents (name, text) cannot be put in force beside the others, each with the reason.
    fn check(&self, documents: &[(String, String)]) -> Vec<(String, String)>;
}

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

    fn key(self, object: &DynamicObject) -> Option<Key> {
        Some(Key {
            kind: self,
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone()?,
        })
    }

    /// What counts of an object, as text that says the same whatever else the cluster writes to it.
    fn read(self, object: &DynamicObject) -> Option<Object> {
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

type Seen = (PolicyKind, watcher::Result<Event<DynamicObject>>);

/// Keeps policies as the objects of these kinds are, until it is dropped.
pub(super) async fn follow(
    client: &Client,
    kinds: &[PolicyKind],
    checker: &Arc<dyn CheckPolicies>,
    registrar: &Registrar,
    statuses: Statuses,
) {
    let mut follower = Follower {
        objects: kinds
            .iter()
            .map(|kind| (*kind, Listed::default()))
            .collect(),
        checker: Arc::clone(checker),
        registrar,
        statuses,
        dirty: true,
    };
    let mut seen = SelectAll::new();
    for kind in kinds.iter().copied() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
        let events = watcher(api, watcher::Config::default()).backoff(Retry::default());
        seen.push(events.map(move |event| -> Seen { (kind, event) }).boxed());
    }
    let mut seen = seen.ready_chunks(READY);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            events = seen.next() => match events {
                Some(events) => events.into_iter().for_each(|(kind, event)| follower.take(kind, event)),
                None => return,
            },
            _ = look.tick() => {}
        }
        if follower.dirty && follower.complete() {
            match follower.settle().await {
                Ok(()) => follower.dirty = false,
                Err(error) => {
                    tracing::warn!(%error, "policies do not follow the cluster yet; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        follower.statuses.look(follower.registrar).await;
    }
}

struct Follower<'a> {
    objects: BTreeMap<PolicyKind, Listed<Key, Object>>,
    checker: Arc<dyn CheckPolicies>,
    registrar: &'a Registrar,
    statuses: Statuses,
    dirty: bool,
}

impl Follower<'_> {
    fn take(&mut self, kind: PolicyKind, event: watcher::Result<Event<DynamicObject>>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return watch_broke(&kind.resource().plural, &error),
        };
        let Some(listed) = self.objects.get_mut(&kind) else {
            return;
        };
        let was = listed.complete();
        let changed = listed.take(
            event,
            |object| kind.key(object),
            |object| kind.read(&object),
        );
        self.dirty |= !changed.is_empty() || listed.complete() != was;
    }

    fn complete(&self) -> bool {
        self.objects.values().all(Listed::complete)
    }

    /// Brings the registry up to date, and says how each object stands.
    async fn settle(&mut self) -> Result<(), Error> {
        let now = self.registrar.now();
        let (ours, operators): (Vec<_>, Vec<_>) = now
            .policies
            .iter()
            .map(|policy| (policy.name.clone(), policy.text.clone()))
            .partition(|(name, _)| name.starts_with(OWNER));
        let in_force: HashMap<String, String> = ours.into_iter().collect();
        let objects: BTreeMap<String, (&Key, &Object)> = self
            .objects
            .values()
            .flat_map(Listed::iter)
            .map(|(key, object)| (key.document(), (key, object)))
            .collect();
        let mut documents = operators;
        let texts = objects.iter();
        documents.extend(texts.map(|(name, (_, object))| (name.clone(), object.text.clone())));
        let checker = Arc::clone(&self.checker);
        let checked = tokio::task::spawn_blocking(move || checker.check(&documents)).await;
        let mut refused: HashMap<String, String> = checked
            .map_err(|error| Error::Protocol(format!("policies were not checked: {error}")))?
            .into_iter()
            .collect();
        refused.extend(too_many(&objects, &in_force));

        let put: Vec<PolicyOrder> = objects
            .iter()
            .filter(|(name, (_, object))| {
                !refused.contains_key(*name) && in_force.get(*name) != Some(&object.text)
            })
            .map(|(name, (_, object))| PolicyOrder {
                name: name.clone(),
                text: object.text.clone(),
                instead_of: None,
            })
            .collect();
        let gone: Vec<String> = in_force
            .keys()
            .filter(|name| !objects.contains_key(*name))
            .cloned()
            .collect();
        if !put.is_empty() {
            self.registrar.put_policies(put).await?;
        }
        // After: a policy under another name leaves no gap.
        if !gone.is_empty() {
            self.registrar.delete_policies(gone).await?;
        }
        let number = self.registrar.now().revisions.policies;
        let standing: Vec<(Key, Object, Standing)> = objects
            .into_iter()
            .map(|(name, (key, object))| {
                let standing = match refused.get(&name) {
                    None => Standing::Accepted { number },
                    Some(why) => Standing::Refused {
                        why: why.clone(),
                        earlier: in_force.contains_key(&name),
                    },
                };
                (key.clone(), object.clone(), standing)
            })
            .collect();
        self.statuses.set(standing);
        Ok(())
    }
}

/// What goes beyond a namespace's share, or beyond all that the registry holds: nobody takes the room of the others.
/// What is in force already stays before what is new.
fn too_many(
    objects: &BTreeMap<String, (&Key, &Object)>,
    in_force: &HashMap<String, String>,
) -> Vec<(String, String)> {
    let mut order: Vec<_> = objects.iter().collect();
    order.sort_by_key(|(name, _)| !in_force.contains_key(*name));
    let mut all = Share::default();
    let mut shares: HashMap<Option<&String>, Share> = HashMap::new();
    let mut refused = Vec::new();
    for (name, (key, object)) in order {
        let share = shares.entry(key.namespace.as_ref()).or_default();
        let over = (object.cost.ports > PORTS)
            .then(|| {
                format!(
                    "it names {} ports and ranges; at most {PORTS}",
                    object.cost.ports
                )
            })
            .or_else(|| share.over(object, SHARE, PREFIXES.0, "a namespace has"))
            .or_else(|| all.over(object, ALL, PREFIXES.1, "the cluster has"));
        match over {
            Some(why) => refused.push((name.clone(), why)),
            None => {
                share.take(object);
                all.take(object);
            }
        }
    }
    refused
}

/// What is taken already.
#[derive(Default)]
struct Share<'a> {
    policies: usize,
    bytes: usize,
    prefixes: HashSet<&'a IpNet>,
}

impl<'a> Share<'a> {
    /// Why an object has no room in it, if it has none.
    fn over(
        &self,
        object: &Object,
        (policies, bytes): (usize, usize),
        prefixes: usize,
        whose: &str,
    ) -> Option<String> {
        if self.policies >= policies || self.bytes + object.text.len() > bytes {
            return Some(format!(
                "{whose} at most {policies} policies of {} MiB in all",
                bytes >> 20
            ));
        }
        let more = object.cost.prefixes.iter();
        let more = more
            .filter(|prefix| !self.prefixes.contains(prefix))
            .count();
        (self.prefixes.len() + more > prefixes)
            .then(|| format!("{whose} at most {prefixes} distinct prefixes in its policies"))
    }

    fn take(&mut self, object: &'a Object) {
        self.policies += 1;
        self.bytes += object.text.len();
        self.prefixes.extend(&object.cost.prefixes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(namespace: &str, name: &str, spec: Value) -> (Key, Object) {
        let kind = PolicyKind::HandfastPolicy;
        let object = json!({
            "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy", "spec": spec,
            "metadata": {"name": name, "namespace": namespace, "uid": name},
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        (kind.key(&object).unwrap(), kind.read(&object).unwrap())
    }

    fn refused(all: &[(Key, Object)], in_force: &[&str]) -> Vec<(String, String)> {
        let objects = all
            .iter()
            .map(|(key, object)| (key.document(), (key, object)));
        let in_force = in_force
            .iter()
            .map(|name| ((*name).to_owned(), String::new()));
        too_many(&objects.collect(), &in_force.collect())
    }

    fn prefixes(numbers: std::ops::Range<usize>) -> Value {
        let texts = numbers.map(|number| format!("10.{}.{}.1/32", number >> 8, number & 255));
        json!({"egress": [{"toCIDR": texts.collect::<Vec<_>>()}]})
    }

    #[test]
    fn no_namespace_makes_every_node_tell_more_prefixes_apart_than_its_share() {
        let many = [
            policy("a", "first", prefixes(0..900)),
            policy("a", "same", prefixes(0..900)),
            policy("a", "more", prefixes(900..1100)),
            policy("b", "other", prefixes(900..1100)),
        ];
        let found = refused(&many, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.ends_with("/a/more") && found[0].1.contains("1000 distinct prefixes"));
        // What is in force goes before what is new, whatever its name.
        let standing = many[2].0.document();
        let found = refused(&many, &[&standing]);
        assert!(found.iter().all(|(name, _)| *name != standing), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_policy_of_too_many_ports_is_refused_and_the_others_are_not() {
        let ports = |count: usize| {
            let ports: Vec<_> = (0..count)
                .map(|port| json!({"port": port.to_string()}))
                .collect();
            json!({"ingress": [{"toPorts": [{"ports": ports}]}]})
        };
        let all = [
            policy("a", "few", ports(2048)),
            policy("a", "many", ports(2049)),
        ];
        let found = refused(&all, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.ends_with("/a/many") && found[0].1.contains("2049 ports"));
    }
}
