//! Pods that run without gates are given them: those that ran before the agent did, and any that somebody started past
//! the plugin.
//!
//! The CA says which pods are this node's, by their entries. Whoever of them has no endpoint is looked for among the
//! node's processes, on a thread of its own, and attached by the link that it has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::task::JoinHandle;

use super::agent::Agent;
use crate::cni::{Pod, Running, running};

/// Pods that were looked for in vain are looked for again, since they may only be starting: after this at first, and then
/// more and more seldom, since some have no namespace of their own.
const AGAIN: Duration = Duration::from_secs(3);
const SELDOM: Duration = Duration::from_secs(60);
/// What an entry's label says of the pod's namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What was looked for, and the look that goes on.
#[derive(Debug, Default)]
pub(super) struct RunningPods {
    /// UID → namespace.
    wanted: BTreeMap<String, String>,
    /// When they are looked for again.
    next: Option<Instant>,
    pause: Duration,
    look: Option<JoinHandle<io::Result<BTreeMap<String, Running>>>>,
}

impl Agent {
    /// To be called every few seconds.
    pub(super) async fn adopt_running_pods(&mut self) {
        if let Some(look) = &mut self.running_pods.look {
            let Some(done) = look.now_or_never() else {
                return;
            };
            self.running_pods.look = None;
            match done.map_err(io::Error::other).and_then(|found| found) {
                Ok(found) => self.adopt(found).await,
                Err(error) => self.alarm(format!("running pods are not looked for: {error}")),
            }
        }
        let wanted = self.ungated_pods();
        let known = &mut self.running_pods;
        if wanted != known.wanted {
            (known.next, known.pause) = (None, AGAIN);
        }
        let now = Instant::now();
        if wanted.is_empty() || known.next.is_some_and(|next| now < next) {
            known.wanted = wanted;
            return;
        }
        let uids: BTreeSet<String> = wanted.keys().cloned().collect();
        known.wanted = wanted;
        known.next = Some(now + known.pause);
        known.pause = (known.pause * 2).min(SELDOM);
        known.look = Some(tokio::task::spawn_blocking(move || running(&uids)));
    }

    /// This node's pods that have no endpoint, with their namespaces.
    fn ungated_pods(&self) -> BTreeMap<String, String> {
        let endpoints = self.endpoints.all().iter();
        let gated: BTreeSet<&str> = endpoints
            .filter_map(|endpoint| Some(endpoint.pod.as_ref()?.uid.as_str()))
            .collect();
        let entries = self.knowledge.entries.iter();
        entries
            .filter_map(|entry| {
                let uid = entry.selectors().find_map(|(kind, value)| {
                    (kind == "k8s").then(|| value.strip_prefix("pod-uid:"))?
                })?;
                let namespace = entry.labels.get(NAMESPACE)?;
                (!gated.contains(uid)).then(|| (uid.to_owned(), namespace.clone()))
            })
            .collect()
    }

    async fn adopt(&mut self, found: BTreeMap<String, Running>) {
        // It may have got an endpoint, or have gone, while it was looked for.
        let ungated = self.ungated_pods();
        for (uid, running) in found {
            let Some(namespace) = ungated.get(&uid) else {
                continue;
            };
            let netns = match running {
                Running::In(netns) => netns,
                Running::OnHost => continue,
                Running::Odd(why) => {
                    self.alarm(format!(
                        "pod {uid} of namespace {namespace} runs without gates: {why}; restart it"
                    ));
                    continue;
                }
            };
            let pod = Pod {
                namespace: namespace.clone(),
                // Nobody here knows it; the UID is as good to find it by.
                name: uid.clone(),
                uid: uid.clone(),
                attachment: None,
            };
            match self.add_pod(format!("pod-{uid}"), netns, pod).await {
                Ok(endpoint) => tracing::info!(
                    endpoint = endpoint.name,
                    netns = ?endpoint.netns,
                    "a pod that runs already has gates now"
                ),
                Err(error) => self.alarm(format!(
                    "pod {uid} of namespace {namespace} runs without gates: {error}"
                )),
            }
        }
    }
}
