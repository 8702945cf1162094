//! Policies that follow objects of the cluster: watched, checked, put into the registry, and told how they stand.
//!
//! Nodes read all policies or none, so only what can be read gets there. An object that was changed into something that
//! cannot be read leaves its last good version in force, and says so in its status and an event.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::SelectAll;
use kube::api::DynamicObject;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};

use super::config::PolicyKind;
use super::entries::watch_broke;
use super::listed::Listed;
use super::object::{Key, OWNER, Object};
use super::share::too_many;
use super::status::{Standing, Statuses};
use super::watch::watch;
use crate::Error;
use crate::registry::PolicyOrder;
use crate::server::Registrar;

/// Events that are taken in before anything is written.
const READY: usize = 1024;
/// What failed is tried again after this.
const PAUSE: Duration = Duration::from_secs(1);
/// How far nodes are is looked at so often, while some are not there yet.
const LOOK: Duration = Duration::from_millis(500);

/// Reads policies, for a CA that does not.
pub trait CheckPolicies: Send + Sync + std::fmt::Debug {
    /// Which of these documents (name, text) cannot be put in force beside the others, each with the reason.
    fn check(&self, documents: &[(String, String)]) -> Vec<(String, String)>;
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
        revision: 0,
    };
    let mut seen = SelectAll::new();
    for kind in kinds.iter().copied() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
        let events = watch(api, watcher::Config::default());
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
        // Somebody who deletes or changes a document of ours by hand changes nothing: the objects say what holds.
        let changed = follower.revision != registrar.now().revisions.policies;
        if (follower.dirty || changed) && follower.complete() {
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
    /// Of the registry's policies, as they were left.
    revision: u64,
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
        self.revision = number;
        Ok(())
    }
}
