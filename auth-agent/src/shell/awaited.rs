//! Pods that wait for their identity before they start: whoever asks for one is told the moment that it is in force, and
//! has to ask once only.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::agent::Agent;
use super::requests::to_answer;
use crate::admin::Answer;
use crate::cni::{Attachment, PodInfo};

/// One who waits.
#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    until: Instant,
    answer: oneshot::Sender<Answer>,
}

/// All of them; no more than there are conversations.
#[derive(Debug, Default)]
pub(super) struct Awaited(Vec<Waiting>);

impl Agent {
    /// Answers as soon as a pod has an identity; or how it stands when it is gone, or the time is over.
    pub(super) fn await_identity(
        &mut self,
        attachment: Attachment,
        patience: Duration,
        answer: oneshot::Sender<Answer>,
    ) {
        let until = Instant::now() + patience;
        self.awaited.0.push(Waiting {
            attachment,
            until,
            answer,
        });
        self.tell_awaited();
    }

    /// To be called when entries or endpoints have changed, and now and then for those whose time is over.
    pub(super) fn tell_awaited(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.awaited.0) {
            let pod = self.attached(&waiting.attachment);
            let pod = pod.map(|endpoint| self.pod_info(endpoint));
            let waits = pod.as_ref().is_some_and(|pod| pod.spiffe_id.is_none());
            if !waits || waiting.until <= now {
                // The asker has left: nothing to tell.
                let _ = waiting.answer.send(to_answer(pod));
            } else if !waiting.answer.is_closed() {
                self.awaited.0.push(waiting);
            }
        }
    }

    /// How a pod stands, for the plugin.
    pub(super) fn pod_info(&self, endpoint: &crate::endpoint::Endpoint) -> PodInfo {
        PodInfo {
            addresses: endpoint.addresses.clone(),
            spiffe_id: self.identity_of(endpoint).map(|known| known.spiffe_id),
        }
    }
}
