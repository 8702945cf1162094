//! Rotation of roots, issuing CAs and JWT keys: what operators ask, and the runner that does it.

mod begin;
mod keep;
mod report;
mod revive;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::operator::{Operator, check_reason};
use super::state::State;
use crate::audit::Act;
use crate::authority::{Record, Standing, certificate, certificate_id};
use crate::bundle::pem;
use crate::failpoint;
use crate::model::Role;
use crate::proto::rotation_server::Rotation as Service_;
use crate::rotation::journal::{Rotation, Wish};
use crate::rotation::plan::{Forced, Stage, What};
use crate::{Error, NodeName, proto};

use self::begin::{Start, start, wanted};
pub(super) use self::keep::keep;
use self::keep::{install, live};
pub(super) use self::revive::revive;

const MAX_REASON: usize = 512;
/// Nodes that one --force names.
const MAX_NODES: usize = 1000;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Service_ for Service {
    async fn rotation_status(
        &self,
        request: Request<proto::RotationStatusRequest>,
    ) -> Result<Response<proto::RotationStatusReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        Ok(Response::new(report::status(&self.state).await?))
    }

    async fn start_rotation(
        &self,
        request: Request<proto::StartRotationRequest>,
    ) -> Result<Response<proto::RotationState>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let order = wanted(request.into_inner(), &operator)?;
        let what = order.what.name();
        let started = start(&self.state, order).await;
        self.answer("rotation.start", &operator, what, started)
            .await
    }

    async fn steer_rotation(
        &self,
        request: Request<proto::SteerRotationRequest>,
    ) -> Result<Response<proto::RotationState>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let steered = self.steer(&request, &operator).await;
        let act = if request.force {
            "rotation.force"
        } else {
            "rotation.resume"
        };
        let subject = titled(&steered, request.id);
        self.answer(act, &operator, subject, steered).await
    }

    async fn abort_rotation(
        &self,
        request: Request<proto::AbortRotationRequest>,
    ) -> Result<Response<proto::RotationState>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let aborted = self.abort(&request, &operator).await;
        let subject = titled(&aborted, request.id);
        self.answer("rotation.abort", &operator, subject, aborted)
            .await
    }

    async fn plan_rotation(
        &self,
        request: Request<proto::PlanRotationRequest>,
    ) -> Result<Response<proto::PlanRotationReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let request = request.into_inner();
        let what = what(&request.what)?;
        Ok(Response::new(
            report::preview(&self.state, what, request.compromised).await?,
        ))
    }

    async fn request_issuing(
        &self,
        request: Request<proto::RequestIssuingRequest>,
    ) -> Result<Response<proto::RequestIssuingReply>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let asked = self.request(request.into_inner(), &operator).await;
        let record = self
            .state
            .conclude(
                "issuing.request",
                &operator,
                "this server",
                asked,
                |act, _| act,
            )
            .await?;
        Ok(Response::new(proto::RequestIssuingReply {
            request: pem("CERTIFICATE REQUEST", &record.der),
            server: record.server,
        }))
    }

    async fn sign_issuing(
        &self,
        request: Request<proto::SignIssuingRequest>,
    ) -> Result<Response<proto::SignIssuingReply>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let signed = self
            .state
            .authority
            .sign_for(&request.server, &request.request);
        let certificate = self
            .state
            .conclude(
                "issuing.sign",
                &operator,
                &request.server,
                signed,
                |act, made| act.with("certificate", certificate_id(made)),
            )
            .await?;
        Ok(Response::new(proto::SignIssuingReply {
            certificate: pem("CERTIFICATE", &certificate),
        }))
    }

    async fn install_issuing(
        &self,
        request: Request<proto::InstallIssuingRequest>,
    ) -> Result<Response<proto::Authority>, Status> {
        let operator = self.state.operator(&request, Role::Admin)?;
        let installed = self.take_in(&request.into_inner().certificate).await;
        let record = self
            .state
            .conclude(
                "issuing.install",
                &operator,
                "this server",
                installed,
                |act, record: &Record| act.with("authority", &*record.id),
            )
            .await?;
        Ok(Response::new(report::authority(&self.state, &record)))
    }
}

impl Service {
    async fn answer(
        &self,
        act: &'static str,
        operator: &Operator,
        subject: impl std::fmt::Display,
        result: Result<Rotation, Error>,
    ) -> Result<Response<proto::RotationState>, Status> {
        let detail = |act: Act, rotation: &Rotation| {
            act.with("rotation", rotation.id)
                .with("authority", &*rotation.incoming)
        };
        let rotation = self
            .state
            .conclude(act, operator, subject, result, detail)
            .await?;
        let seen = report::rotation(&self.state, &rotation).await?;
        Ok(Response::new(seen))
    }

    async fn steer(
        &self,
        request: &proto::SteerRotationRequest,
        operator: &Operator,
    ) -> Result<Rotation, Error> {
        let reason = reason(&request.reason)?;
        if request.force {
            check_reason(&reason)?;
        }
        let goal = stage(&request.goal)?;
        let mut rotation = self.live(request.id).await?;
        let wish = Wish {
            by: operator.to_string(),
            reason,
        };
        let forced = self.forced(request)?;
        let steered = rotation.clone();
        let force = forced.clone();
        self.state
            .change(move |state| async move {
                let mut change = state.registry.store().begin().await?;
                steered
                    .steer(&mut change, goal, force.as_ref(), &wish)
                    .await?;
                change.commit().await
            })
            .await?;
        self.state.rotation.notify_one();
        rotation.plan.goal = goal;
        rotation.plan.forced = forced;
        Ok(rotation)
    }

    /// Whom the next step passes, if anybody.
    fn forced(&self, request: &proto::SteerRotationRequest) -> Result<Option<Forced>, Error> {
        if !request.force {
            return match request.nodes.as_slice() {
                [] => Ok(None),
                _ => Err(Error::invalid(
                    "--node",
                    "it names whom --force passes: give both; nothing was changed",
                )),
            };
        }
        let now = self.state.now();
        let known = |name: &String| {
            let node: NodeName = name.parse()?;
            match now.node(&node) {
                Some(_) => Ok(node),
                None => Err(Error::Missing {
                    what: "node",
                    name: node.to_string(),
                }),
            }
        };
        if request.nodes.len() > MAX_NODES {
            return Err(Error::invalid(
                "--node",
                format!(
                    "name at most {MAX_NODES}, or leave it out to pass all; nothing was changed"
                ),
            ));
        }
        Ok(Some(Forced {
            reason: request.reason.clone(),
            nodes: request.nodes.iter().map(known).collect::<Result<_, _>>()?,
        }))
    }

    async fn abort(
        &self,
        request: &proto::AbortRotationRequest,
        operator: &Operator,
    ) -> Result<Rotation, Error> {
        check_reason(&request.reason)?;
        let mut rotation = self.live(request.id).await?;
        if !rotation.plan.can_abort() {
            return Err(Error::Denied(format!(
                "the rotation of the {} is {} already, and what is new signs: it can only go on (`handfast ca rotate --what {} --resume`), or be followed by another; nothing was changed",
                rotation.title(),
                rotation.plan.stage.name(),
                rotation.plan.what.name()
            )));
        }
        let wish = Wish {
            by: operator.to_string(),
            reason: reason(&request.reason)?,
        };
        let aborting = rotation.clone();
        let brought: Vec<Record> = self.state.authority.authorities().all().to_vec();
        failpoint::here("before-abort");
        let taken = self
            .state
            .change(move |state| async move {
                let mut change = state.registry.store().begin().await?;
                let taken = aborting
                    .step(&mut change, Stage::Aborted, &wish, &[])
                    .await?;
                failpoint::here("within-abort");
                change.commit().await?;
                failpoint::here("after-abort");
                Ok(taken)
            })
            .await?;
        if !taken {
            return Err(Error::Denied(
                "the rotation has just gone on by itself; look at it again: nothing was changed"
                    .to_owned(),
            ));
        }
        let left = self.state.authority.authorities();
        for record in &brought {
            let named = left.all().iter().any(|other| other.key == record.key);
            if left.find(&record.id).is_none() && !named {
                self.state.authority.discard(record);
            }
        }
        rotation.plan.stage = Stage::Aborted;
        Ok(rotation)
    }

    async fn live(&self, id: u64) -> Result<Rotation, Error> {
        let live = live(&self.state).await?;
        live.into_iter()
            .find(|rotation| rotation.id == id)
            .ok_or_else(|| Error::Missing {
                what: "rotation under way",
                name: id.to_string(),
            })
    }

    /// The request of this server that is open, or a new rotation's.
    async fn request(
        &self,
        request: proto::RequestIssuingRequest,
        operator: &Operator,
    ) -> Result<Record, Error> {
        let server = self.state.authority.server().to_owned();
        let open = |state: &State| {
            let authorities = state.authority.authorities();
            let mut requested =
                authorities.of(crate::authority::Kind::Issuing, Standing::Requested);
            requested.find(|record| record.server == server).cloned()
        };
        if let Some(record) = open(&self.state) {
            return Ok(record);
        }
        let authority = &self.state.authority;
        if authority.has_root_key() {
            return Err(Error::invalid(
                "request",
                "the root's key is in this CA's folder, so that nothing has to be carried: `handfast ca rotate --what issuing` replaces the issuing CA. Nothing was changed",
            ));
        }
        let order = Start {
            what: What::Issuing,
            goal: Stage::Revoked,
            compromised: false,
            overtake: false,
            brought: None,
            wish: Wish {
                by: operator.to_string(),
                reason: reason(&request.reason)?,
            },
        };
        start(&self.state, order).await?;
        open(&self.state).ok_or_else(|| {
            Error::invalid(
                "request",
                "it was answered already: another server of this CA has the root's key",
            )
        })
    }

    async fn take_in(&self, text: &str) -> Result<Record, Error> {
        let authority = &self.state.authority;
        let (request, record) = authority.authorities().answered(
            &certificate(text)?,
            authority.trust_domain(),
            authority.server(),
        )?;
        if !authority.has_key(&record) {
            return Err(Error::invalid(
                "certificate",
                "the private key of its request is not in this CA's folder: nothing was changed",
            ));
        }
        install(&self.state, request, record.clone()).await?;
        self.state.rotation.notify_one();
        Ok(record)
    }
}

/// Which one it was for people, or at least by its number.
fn titled(result: &Result<Rotation, Error>, id: u64) -> String {
    result
        .as_ref()
        .map_or_else(|_| id.to_string(), Rotation::title)
}

fn what(text: &str) -> Result<What, Error> {
    text.parse()
        .map_err(|()| Error::invalid("what to rotate", "root, issuing or jwt"))
}

fn stage(text: &str) -> Result<Stage, Error> {
    let stage = text.parse::<Stage>().ok();
    stage
        .filter(|stage| !matches!(stage, Stage::Aborted | Stage::Overtaken))
        .ok_or_else(|| Error::invalid("stage", "prepared, activated, tainted or revoked"))
}

fn reason(text: &str) -> Result<String, Error> {
    if text.len() > MAX_REASON || text.chars().any(char::is_control) {
        return Err(Error::invalid(
            "reason",
            format!("one line of at most {MAX_REASON} bytes"),
        ));
    }
    Ok(text.to_owned())
}
