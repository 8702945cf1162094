//! How policies stand, said where those look who wrote them: conditions of HandfastPolicies and of Cilium's kinds, and
//! events. A NetworkPolicy has no status, so of it there are events only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::config::PolicyKind;
use super::news::{News, note};
use super::object::{Key, Object};
use crate::model::Node;
use crate::server::Registrar;

/// One request; others wait behind it.
const PATIENCE: Duration = Duration::from_secs(5);
/// What could not be said is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// Nodes that are named in a message.
const NAMED: usize = 5;

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nodes that have acknowledged this number enforce it.
    Accepted { number: u64 },
    /// It cannot be read; an earlier version may be in force.
    Refused { why: String, earlier: bool },
}

/// What is said of one object.
#[derive(Debug, Clone)]
struct Said {
    object: Object,
    standing: Standing,
    /// The conditions that the cluster has.
    conditions: Vec<Value>,
    /// Nothing will change by itself.
    settled: bool,
    tried: Option<Instant>,
}

/// All of them.
pub(super) struct Statuses {
    client: Client,
    news: News,
    said: BTreeMap<Key, Said>,
}

impl Statuses {
    pub(super) fn new(client: Client, news: News) -> Self {
        Self {
            client,
            news,
            said: BTreeMap::new(),
        }
    }

    /// These objects there are, and so they stand.
    pub(super) fn set(&mut self, all: Vec<(Key, Object, Standing)>) {
        let mut said = BTreeMap::new();
        for (key, object, standing) in all {
            let before = self.said.remove(&key);
            let same = before.as_ref().is_some_and(|before| {
                before.object == object && before.standing.is_like(&standing)
            });
            if let (Some(before), true) = (&before, same) {
                said.insert(key, before.clone());
                continue;
            }
            self.tell(&key, &object, &standing, before.as_ref());
            // What this server wrote last is newer than what it saw.
            let conditions =
                before.map_or_else(|| object.conditions.clone(), |said| said.conditions);
            let said_now = Said {
                object,
                standing,
                conditions,
                settled: false,
                tried: None,
            };
            said.insert(key, said_now);
        }
        self.said = said;
    }

    /// Looks how far nodes are, and writes the conditions that have changed.
    pub(super) async fn look(&mut self, registrar: &Registrar) {
        if self.said.values().all(|said| said.settled) {
            return;
        }
        let nodes = match registrar.nodes().await {
            Ok(nodes) => nodes,
            Err(error) => return tracing::info!(%error, "how far nodes are is not known"),
        };
        let nodes: Vec<&Node> = nodes.iter().filter(|node| counts(node)).collect();
        let began = Instant::now();
        for (key, said) in &mut self.said {
            // Policies themselves wait behind this: the rest is said at the next look.
            if began.elapsed() >= PATIENCE {
                return;
            }
            if said.settled || said.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
                continue;
            }
            let Some(first) = key.kind.condition() else {
                said.settled = true;
                continue;
            };
            let (ours, done) = conditions(said, &nodes, first);
            let wanted = beside_others(&ours, &said.conditions);
            if wanted == said.conditions {
                said.settled = done;
                continue;
            }
            let mut status = json!({"status": {"conditions": wanted}});
            if key.kind == PolicyKind::HandfastPolicy
                && let Some(fields) = status.get_mut("status").and_then(Value::as_object_mut)
            {
                fields.insert(
                    "observedGeneration".to_owned(),
                    json!(said.object.generation),
                );
            }
            match write(&self.client, key, &status).await {
                Ok(()) => {
                    said.conditions = wanted;
                    said.settled = done;
                    said.tried = None;
                }
                Err(problem) => {
                    tracing::info!(
                        problem,
                        policy = key.document(),
                        "its status was not written"
                    );
                    said.tried = Some(Instant::now());
                }
            }
        }
    }

    /// An event, if there is news for whoever wrote it.
    fn tell(&self, key: &Key, object: &Object, standing: &Standing, before: Option<&Said>) {
        let (type_, reason, text) = match standing {
            Standing::Refused { why, earlier } => {
                let rest = if *earlier {
                    "the last good version stays in force"
                } else {
                    "it is not in force"
                };
                (EventType::Warning, "Refused", format!("{why}; {rest}"))
            }
            // Only after a mistake: that it works needs no saying each time.
            Standing::Accepted { .. } => match before.map(|before| &before.standing) {
                Some(Standing::Refused { .. }) => (
                    EventType::Normal,
                    "Accepted",
                    "it can be read now".to_owned(),
                ),
                _ => return,
            },
        };
        let resource = key.kind.resource();
        let about = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            name: Some(key.name.clone()),
            namespace: key.namespace.clone(),
            uid: Some(object.uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note(&text)),
            action: "Check".to_owned(),
            secondary: None,
        };
        self.news.publish(event, about);
    }
}

impl Standing {
    /// A later number of the same text is no news: what is enforced stays enforced.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Accepted { .. }, Self::Accepted { .. }) => true,
            (one, other) => one == other,
        }
    }
}

impl PolicyKind {
    /// The condition by which its status says whether it could be read; none for a kind that has no status. Cilium's kinds
    /// have the one that `kubectl get` shows of them.
    fn condition(self) -> Option<&'static str> {
        match self {
            Self::HandfastPolicy => Some("Accepted"),
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => Some("Valid"),
            Self::NetworkPolicy => None,
        }
    }
}

/// Our conditions, behind those that somebody else has written.
fn beside_others(ours: &[Value], there: &[Value]) -> Vec<Value> {
    let is_ours = |other: &&Value| ours.iter().any(|one| one.get("type") == other.get("type"));
    let others = there.iter().filter(|other| !is_ours(other)).cloned();
    others.chain(ours.iter().cloned()).collect()
}

/// Does a node enforce anything?
fn counts(node: &Node) -> bool {
    node.joined_at_ms.is_some() && !node.evicted && !node.banned && !node.revoked
}

/// The conditions of an object, the first by this name, and whether they are final until something changes.
fn conditions(said: &Said, nodes: &[&Node], first: &str) -> (Vec<Value>, bool) {
    let accepted;
    let enforced;
    let done;
    match &said.standing {
        Standing::Accepted { number } => {
            let late: Vec<&&Node> = nodes
                .iter()
                .filter(|node| node.acknowledged < *number)
                .collect();
            let there = nodes.len() - late.len();
            let mut message = format!("{there} of {} nodes enforce it", nodes.len());
            if !late.is_empty() {
                let named = late
                    .iter()
                    .take(NAMED)
                    .map(|node| match node.problem.as_str() {
                        "" => node.name.to_string(),
                        problem => format!("{} ({problem})", node.name),
                    });
                message = format!(
                    "{message}; not yet: {}",
                    named.collect::<Vec<_>>().join(", ")
                );
            }
            done = late.is_empty() && !nodes.is_empty();
            accepted = ("True", "Read", "it can be read".to_owned());
            enforced = match done {
                true => ("True", "EveryNode", message),
                false => ("False", "Waiting", message),
            };
        }
        Standing::Refused { why, earlier } => {
            accepted = ("False", "Refused", why.clone());
            enforced = if *earlier {
                (
                    "False",
                    "EarlierVersion",
                    "the last good version stays in force".to_owned(),
                )
            } else {
                ("False", "Refused", "nothing of it is in force".to_owned())
            };
            done = true;
        }
    }
    let make = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let mut condition = json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": note(&message),
            "lastTransitionTime": since(&said.conditions, kind, status),
        });
        // Of Cilium's kinds the API server would only take it out again.
        if first == "Accepted"
            && let Some(fields) = condition.as_object_mut()
        {
            fields.insert(
                "observedGeneration".to_owned(),
                json!(said.object.generation),
            );
        }
        condition
    };
    (
        vec![make(first, accepted), make("Enforced", enforced)],
        done,
    )
}

/// Since when a condition has had this status.
fn since(conditions: &[Value], kind: &str, status: &str) -> Value {
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind && condition["status"] == status);
    let kept = found.and_then(|condition| condition.get("lastTransitionTime"));
    kept.cloned().unwrap_or_else(|| {
        let now = Timestamp::now();
        json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    })
}

async fn write(client: &Client, key: &Key, status: &Value) -> Result<(), String> {
    let resource = key.kind.resource();
    let api: Api<DynamicObject> = match &key.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(status));
    let patched = api.patch_status(&key.name, &parameters, &patch);
    match tokio::time::timeout(PATIENCE, patched).await {
        Ok(Ok(_)) => Ok(()),
        // It went meanwhile: the watch will say so.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(super::chain(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
