//! What agents report of flows under rules in audit mode, and who may read it.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::agents::{admit, authenticated, peer, unexpired};
use super::state::State;
use crate::model::{ObservedPair, Role};
use crate::proto;
use crate::proto::observations_server::Observations;
use crate::proto::observer_server::Observer;

/// Pairs in one report.
const MAX_PAIRS: usize = 1024;
const MAX_NAME: usize = 512;
/// A SPIFFE ID's longest form (SPIFFE-ID 2.3), which the other words do not reach.
const MAX_ID: usize = 2048;
/// Flows of one pair between two reports: more than an agent could ever count.
const MAX_FLOWS: u64 = 1 << 40;

pub(super) struct Service {
    state: Arc<State>,
    /// Of the report that is being written.
    turn: Semaphore,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service {
        state,
        turn: Semaphore::new(1),
    }
}

#[tonic::async_trait]
impl Observer for Service {
    async fn observe(
        &self,
        request: Request<proto::ObserveRequest>,
    ) -> Result<Response<proto::ObserveReply>, Status> {
        let node = authenticated(&peer(&request)?)?;
        unexpired(&node)?;
        admit(&self.state.now(), &node)?;
        let request = request.into_inner();
        if request.pairs.len() > MAX_PAIRS {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_PAIRS} pairs in a report"
            )));
        }
        let pairs: Vec<ObservedPair> = request
            .pairs
            .into_iter()
            .map(checked)
            .collect::<Result<_, _>>()?;
        // Reports can wait, revocations and joins cannot: one report is written at a time, in the writer's turn,
        // and whoever comes meanwhile is told to come again.
        let Ok(_turn) = self.turn.try_acquire() else {
            return Err(Status::resource_exhausted(
                "another node's report is being written; try again",
            ));
        };
        let _writing = self.state.lock().await;
        self.state
            .registry
            .observed(&node.svid.name, &pairs, request.lost.min(MAX_FLOWS))
            .await?;
        Ok(Response::new(proto::ObserveReply {}))
    }
}

#[tonic::async_trait]
impl Observations for Service {
    async fn list_observations(
        &self,
        request: Request<proto::ListObservationsRequest>,
    ) -> Result<Response<proto::ObservationList>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let policy = request.into_inner().policy;
        let nodes = self.state.registry.observations(&policy).await?;
        Ok(Response::new(proto::ObservationList {
            nodes: nodes.into_iter().map(Into::into).collect(),
        }))
    }
}

/// Nothing of a report is believed before it is small and plain.
fn checked(pair: proto::ObservedPair) -> Result<ObservedPair, Status> {
    let plain = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && !text.chars().any(char::is_control)
    };
    let fits = plain(&pair.policy, MAX_NAME)
        && plain(&pair.field, MAX_NAME)
        && plain(&pair.source, MAX_ID)
        && plain(&pair.destination, MAX_ID)
        && pair.flows <= MAX_FLOWS
        && pair.unproven <= MAX_FLOWS;
    if !fits {
        return Err(Status::invalid_argument(
            "an observed pair: names of 1 to 512 and identities of 1 to 2,048 printable characters, counts below 2^40",
        ));
    }
    Ok(pair.into())
}
