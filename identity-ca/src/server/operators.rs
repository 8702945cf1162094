//! Operators: who has which role.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::operator::check_reason;
use super::state::State;
use crate::model::{OperatorGrant, Role};
use crate::proto;
use crate::proto::operators_server::Operators;
use crate::registry::Who;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Operators for Service {
    async fn list_operators(
        &self,
        request: Request<proto::ListOperatorsRequest>,
    ) -> Result<Response<proto::ListOperatorsReply>, Status> {
        let by = self.state.operator(&request, Role::Auditor)?;
        let now = self.state.now();
        Ok(Response::new(proto::ListOperatorsReply {
            operators: now
                .operators
                .grants()
                .map(proto::OperatorGrant::from)
                .collect(),
            you: by.to_string(),
            your_role: by.role().to_string(),
        }))
    }

    async fn put_operator(
        &self,
        request: Request<proto::PutOperatorRequest>,
    ) -> Result<Response<proto::OperatorGrant>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let who: Who = request.name.parse()?;
        let role: Role = request.role.parse()?;
        let giver = by.to_string();
        let done = {
            let who = who.clone();
            self.state
                .change(move |state| async move {
                    state.registry.put_operator(&who, role, &giver).await
                })
                .await
        };
        let reason = request.reason;
        self.state
            .conclude("operator.add", &by, &who, done, |act, ()| {
                act.with("role", role.as_str()).with("reason", reason)
            })
            .await?;
        self.state.open_socket_to_operators();
        let now = self.state.now();
        let name = who.to_string();
        let grant = now.operators.grants().find(|grant| grant.name == name);
        let grant = grant.ok_or_else(|| Status::aborted("somebody has taken it away again"))?;
        Ok(Response::new(grant.into()))
    }

    async fn remove_operator(
        &self,
        request: Request<proto::RemoveOperatorRequest>,
    ) -> Result<Response<proto::RemoveOperatorReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        check_reason(&request.reason)?;
        let who: Who = request.name.parse()?;
        let done = {
            let who = who.clone();
            self.state
                .change(|state| async move { state.registry.remove_operator(&who).await })
                .await
        };
        let reason = request.reason;
        self.state
            .conclude("operator.remove", &by, &who, done, |act, ()| {
                act.with("reason", reason)
            })
            .await?;
        self.state.open_socket_to_operators();
        Ok(Response::new(proto::RemoveOperatorReply {}))
    }
}

impl From<&OperatorGrant> for proto::OperatorGrant {
    fn from(grant: &OperatorGrant) -> Self {
        Self {
            name: grant.name.clone(),
            role: grant.role.to_string(),
            created_at_ms: grant.created_at_ms,
            created_by: grant.created_by.clone(),
        }
    }
}
