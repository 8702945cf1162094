//! The audit log, read and verified for operators.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::state::State;
use crate::audit::{self, AuditHead, Filter, Position, Record};
use crate::model::Role;
use crate::proto::audit_server::Audit;
use crate::{Error, proto};

const MAX_HEADS: usize = 4096;

pub(super) struct Service {
    state: Arc<State>,
    dir: PathBuf,
}

/// `dir` is the folder of the log.
pub(super) fn service(state: Arc<State>, dir: PathBuf) -> Service {
    Service { state, dir }
}

#[tonic::async_trait]
impl Audit for Service {
    type ReadAuditStream = ReceiverStream<Result<proto::AuditRecord, Status>>;

    async fn read_audit(
        &self,
        request: Request<proto::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadAuditStream>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let filter = Filter::from(request.into_inner());
        let (sender, records) = mpsc::channel(64);
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || {
            let read = audit::read(&dir, &filter, |record| {
                sender.blocking_send(wire(&record)).is_ok()
            });
            if let Err(error) = read {
                // An operator who has gone does not need to know.
                let _ = sender.blocking_send(Err(error.into()));
            }
        });
        Ok(Response::new(ReceiverStream::new(records)))
    }

    async fn verify_audit(
        &self,
        request: Request<proto::VerifyAuditRequest>,
    ) -> Result<Response<proto::VerifyAuditReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let heads = request.into_inner().heads;
        if heads.len() > MAX_HEADS {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_HEADS} heads at once"
            )));
        }
        // Heads of an agent that slept are the best witnesses, and signed under a root that may have gone since.
        let authority = &self.state.authority;
        let bundle = authority
            .authorities()
            .remembered(authority.trust_domain())?;
        let mut positions: Vec<Position> = Vec::new();
        for bytes in heads {
            let head = AuditHead::from_bytes(&bytes, &bundle)?;
            if head.server() == authority.server() {
                positions.push(head.position());
            }
        }
        let dir = self.dir.clone();
        let verified = tokio::task::spawn_blocking(move || audit::verify(&dir, &positions))
            .await
            .map_err(|error| Error::Protocol(error.to_string()))?;
        let reply = match verified {
            Ok(verified) => proto::VerifyAuditReply {
                entries: verified.entries,
                hash: verified.head.0.to_vec(),
                torn_bytes: verified.torn_bytes,
                problem: String::new(),
            },
            Err(broken @ Error::AuditBroken { .. }) => proto::VerifyAuditReply {
                problem: broken.to_string(),
                ..Default::default()
            },
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(reply))
    }
}

fn wire(record: &Record) -> Result<proto::AuditRecord, Status> {
    let json = serde_json::to_string(record)
        .map_err(|error| Status::internal(format!("audit record: {error}")))?;
    Ok(proto::AuditRecord { json })
}

impl From<proto::ReadAuditRequest> for Filter {
    fn from(request: proto::ReadAuditRequest) -> Self {
        let number = |value: u64| Some(value).filter(|value| *value > 0);
        let text = |value: String| Some(value).filter(|value| !value.is_empty());
        Self {
            since_ms: number(request.since_ms),
            until_ms: number(request.until_ms),
            act: text(request.act),
            by: text(request.by),
            subject: text(request.subject),
            refused: request.refused,
        }
    }
}
