//! What administrators ask, answered.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::RunError;
use super::agent::Agent;
use super::hosts::HostWanted;
use crate::admin::{Answer, Asked, Request};
use crate::cni::CniRequest;
use crate::core::Event;

/// What the loop does after a request.
#[derive(Debug)]
pub(super) enum Next {
    GoOn,
    /// Everything is taken away: end.
    Detached,
    /// Not everything could be taken away, and the core has stopped: end with this.
    HalfDetached(String),
}

impl Agent {
    /// Answers one request.
    pub(super) async fn answer(&mut self, asked: Asked) -> Next {
        let mut next = Next::GoOn;
        let answer = match asked.request {
            Request::Observe(filter) => Answer::Stream(self.history.watch(filter)),
            Request::PairList => match self.pair_pieces() {
                Ok(pieces) => Answer::Stream(pieces),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::TunnelRotate => {
                self.rotate_keys(asked.answer);
                return next;
            }
            Request::TunnelVerify { peer } => {
                self.verify_wire(peer, asked.answer);
                return next;
            }
            Request::Cni(CniRequest::Identify {
                attachment,
                seconds,
            }) => {
                let patience = Duration::from_secs(seconds.into());
                self.await_identity(attachment, patience, asked.answer);
                return next;
            }
            Request::Detach => match self.begin_detach().await {
                Err(error) => Answer::Error(error.to_string()),
                Ok(removed) => {
                    let outcome = self.detach_all(removed).await;
                    next = match &outcome {
                        Ok(_) => Next::Detached,
                        Err(error) => Next::HalfDetached(error.to_string()),
                    };
                    to_answer_of(outcome)
                }
            },
            request => to_answer_of(self.reply(request).await),
        };
        // The asker has left: nothing to tell.
        let _ = asked.answer.send(answer);
        next
    }

    async fn reply(&mut self, request: Request) -> Result<Value, RunError> {
        match request {
            Request::Status => to_value(self.status()?),
            Request::EndpointAdd {
                name,
                netns,
                group,
                exempt,
                labels,
                addresses,
            } => {
                let endpoint = match (netns, group) {
                    (Some(netns), None) => {
                        self.add_endpoint(name, netns, labels, addresses).await?
                    }
                    (None, Some(group)) => {
                        let wanted = HostWanted {
                            group,
                            exempt,
                            labels,
                            addresses,
                        };
                        self.add_host(name, wanted).await?
                    }
                    _ => return Err(RunError::Refused("a workload is a network namespace or a control group: name one of them; nothing was changed".into())),
                };
                to_value(self.endpoint_info(&endpoint))
            }
            Request::EndpointRemove { name } => {
                let endpoint = self.remove_endpoint(&name).await?;
                to_value(self.endpoint_info(&endpoint))
            }
            Request::EndpointList => {
                let all: Vec<_> = self
                    .endpoints
                    .all()
                    .iter()
                    .map(|endpoint| self.endpoint_info(endpoint))
                    .collect();
                to_value(all)
            }
            Request::PairFlush => {
                let count = self.pairs()?.len();
                self.feed(Event::FlushPairs).await;
                to_value(count)
            }
            Request::SvidList => to_value(self.svid_list()),
            Request::TunnelStatus => to_value(self.peers().await?),
            Request::Policies => to_value(self.policies()),
            Request::Cni(request) => self.cni(request).await,
            Request::Verify {
                from,
                to,
                port,
                protocol,
            } => to_value(self.verify(&from, &to, port, &protocol).await?),
            // Answered above; here they would have no answer of their own.
            Request::Observe(_)
            | Request::PairList
            | Request::TunnelRotate
            | Request::TunnelVerify { .. }
            | Request::Detach => Ok(Value::Null),
        }
    }
}

pub(super) fn to_value<T: Serialize>(value: T) -> Result<Value, RunError> {
    serde_json::to_value(value).map_err(|error| RunError::Refused(error.to_string()))
}

pub(super) fn to_answer<T: Serialize>(value: T) -> Answer {
    to_answer_of(Ok(value))
}

fn to_answer_of<T: Serialize>(outcome: Result<T, RunError>) -> Answer {
    match outcome.and_then(to_value) {
        Ok(value) => Answer::Value(value),
        Err(error) => Answer::Error(error.to_string()),
    }
}
