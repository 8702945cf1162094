//! Entries that follow the cluster's pods: watched, planned, and put into the registry in batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod};
use kube::runtime::events;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};

use super::config::WorkloadsConfig;
use super::news::{News, note};
use super::watch::watch;
use super::workload::{PodFacts, Rules};
use super::world::{Plan, Registered, World};
use crate::model::Entry;
use crate::registry::Snapshot;
use crate::server::Registrar;
use crate::{Error, NodeName};

/// Pods of one transaction.
const BATCH: usize = 1000;
/// Events that are taken in before anything is planned.
const READY: usize = 1024;
/// What failed is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);
/// Everything is compared with the registry so often: somebody may have deleted an entry by hand.
const COMPARE: Duration = Duration::from_secs(60);
/// Only pods that run or will run, on a node.
const FIELDS: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
/// Before the UID, in the registry's list of owners.
const OWNER: &str = "kubernetes/pod/";

enum Seen {
    Pod(Box<watcher::Result<Event<Pod>>>),
    Namespace(Box<watcher::Result<Event<Namespace>>>),
}

/// Keeps entries as the pods are, until it is dropped.
pub(super) async fn follow(
    client: &Client,
    config: &WorkloadsConfig,
    registrar: &Registrar,
    news: &News,
) {
    let mut follower = Follower {
        world: World::new(Rules {
            trust_domain: registrar.trust_domain(),
            leave_out: config.leave_out.iter().cloned().collect(),
        }),
        known: known(registrar).await,
        registrar,
        news,
        compare: true,
    };
    let pods = watch(
        Api::all(client.clone()),
        watcher::Config::default().fields(FIELDS),
    );
    let pods = pods.map(|event| Seen::Pod(Box::new(event)));
    let namespaces = watch(Api::all(client.clone()), watcher::Config::default());
    let namespaces = namespaces.map(|event| Seen::Namespace(Box::new(event)));
    let seen = futures::stream::select(Box::pin(namespaces), Box::pin(pods));
    let mut seen = seen.ready_chunks(READY);
    let mut snapshots = registrar.snapshots();
    let mut nodes = snapshots.borrow_and_update().revisions.nodes;
    let mut compare = tokio::time::interval(COMPARE);
    loop {
        let busy = follower.world.is_dirty();
        tokio::select! {
            events = seen.next() => match events {
                Some(events) => events.into_iter().for_each(|event| follower.take(event)),
                None => return,
            },
            changed = snapshots.changed() => match changed {
                Ok(()) => {
                    let now = snapshots.borrow_and_update().revisions.nodes;
                    if std::mem::replace(&mut nodes, now) != now {
                        follower.world.nodes_changed();
                    }
                }
                Err(_) => return,
            },
            _ = compare.tick() => follower.compare = true,
            () = tokio::time::sleep(PAUSE), if busy => {}
        }
        follower.settle().await;
    }
}

/// What earlier runs have left, by pod UID.
async fn known(registrar: &Registrar) -> HashMap<String, String> {
    loop {
        match registrar.owned_entries().await {
            Ok(owned) => {
                let ours = owned.into_iter().filter_map(|(owner, entry)| {
                    Some((owner.strip_prefix(OWNER)?.to_owned(), entry))
                });
                return ours.collect();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read which entries follow pods; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct Follower<'a> {
    world: World,
    /// Pod UID → entry.
    known: HashMap<String, String>,
    registrar: &'a Registrar,
    news: &'a News,
    /// All entries are to be looked at.
    compare: bool,
}

impl Follower<'_> {
    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Pod(event) => match *event {
                Ok(event) => self.world.take_pod(event),
                Err(error) => watch_broke("pods", &error),
            },
            Seen::Namespace(event) => match *event {
                Ok(event) => self.world.take_namespace(event),
                Err(error) => watch_broke("namespaces", &error),
            },
        }
    }

    /// Brings the registry up to date; what fails is left for the next time.
    async fn settle(&mut self) {
        if self.compare && self.world.complete() {
            self.compare = false;
            // Those of pods that went while nobody looked, and those that somebody else has changed.
            let known: Vec<String> = self.known.keys().cloned().collect();
            self.world.again(known);
        }
        while self.world.is_dirty() {
            let plan = {
                let registered = Now {
                    snapshot: self.registrar.now(),
                    known: &self.known,
                };
                self.world.plan(&registered, BATCH)
            };
            if plan.is_empty() {
                continue;
            }
            if !self.carry_out(plan).await {
                return;
            }
        }
    }

    /// False if it is to be tried again later.
    async fn carry_out(&mut self, plan: Plan) -> bool {
        for (pod, error) in &plan.refused {
            self.refuse(pod, error);
        }
        if plan.put.is_empty() && plan.delete.is_empty() {
            return true;
        }
        let uids: Vec<String> = plan.put.iter().map(|(uid, _)| uid.clone()).collect();
        let uids: Vec<String> = uids
            .into_iter()
            .chain(plan.delete.iter().cloned())
            .collect();
        let put = plan
            .put
            .into_iter()
            .map(|(uid, order)| (owner(&uid), order));
        let gone = plan.delete.iter().map(|uid| owner(uid)).collect();
        match self.registrar.change_entries(put.collect(), gone).await {
            Ok(outcome) => {
                for (owner, entry) in outcome.written.into_iter().chain(outcome.kept) {
                    self.known.insert(uid(&owner), entry);
                }
                for owner in outcome.deleted {
                    self.known.remove(&uid(&owner));
                }
                for (owner, error) in outcome.refused {
                    if let Some(pod) = self.world.pod(&uid(&owner)) {
                        self.refuse(&pod, &error);
                    }
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, pods = uids.len(), "entries do not follow their pods yet; trying again");
                self.world.again(uids);
                false
            }
        }
    }

    /// A pod without an identity has somebody who wonders why.
    fn refuse(&self, pod: &PodFacts, error: &Error) {
        tracing::warn!(%error, pod = pod.name, namespace = pod.namespace, "no entry for a pod");
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let event = events::Event {
            type_: events::EventType::Warning,
            reason: "NoIdentity".to_owned(),
            note: Some(note(&format!("the pod gets no identity: {error}"))),
            action: "Register".to_owned(),
            secondary: None,
        };
        self.news.publish(event, reference);
    }
}

pub(super) fn watch_broke(what: &str, error: &watcher::Error) {
    tracing::warn!(
        error = super::chain(error),
        "the watch of {what} broke; what is known stays, trying again"
    );
}

fn owner(uid: &str) -> String {
    format!("{OWNER}{uid}")
}

fn uid(owner: &str) -> String {
    owner.strip_prefix(OWNER).unwrap_or(owner).to_owned()
}

struct Now<'a> {
    snapshot: Arc<Snapshot>,
    known: &'a HashMap<String, String>,
}

impl Registered for Now<'_> {
    fn entry(&self, uid: &str) -> Option<Arc<Entry>> {
        self.snapshot.entries.get(self.known.get(uid)?)
    }

    fn node(&self, name: &NodeName) -> bool {
        self.snapshot.node(name).is_some()
    }
}
