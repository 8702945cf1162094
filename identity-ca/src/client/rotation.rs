//! An operator rotates what the CA signs with.

use serde::Serialize;
use tonic::transport::Channel;

use super::admin::Admin;
use super::connect::bounded;
use super::{refused, unchanged};
use crate::proto::rotation_client::RotationClient;
use crate::rotation::{Stage, What};
use crate::{Error, NodeName, proto};

/// A root, an issuing CA or a JWT key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Authority {
    /// SHA-256 of the certificate in hexadecimal, or a key ID.
    pub id: String,
    /// `root`, `issuing` or `jwt`.
    pub kind: String,
    /// Who signs with it; empty for roots.
    pub server: String,
    /// `requested`, `prepared`, `active`, `superseded`, `tainted` or `retired`.
    pub state: String,
    /// The root that signed it.
    pub parent: String,
    /// Unix milliseconds.
    pub not_before_ms: u64,
    /// Unix milliseconds.
    pub not_after_ms: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Nothing that it signed is followed.
    pub compromised: bool,
    /// Its private key is in the folder of the server that was asked.
    pub key_here: bool,
}

/// A rotation, under way or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// Its number.
    pub id: u64,
    /// `root`, `issuing` or `jwt`.
    pub what: String,
    /// Whose; empty for roots.
    pub server: String,
    /// The last step that was taken.
    pub stage: String,
    /// How far it goes by itself.
    pub goal: String,
    /// The new authority.
    pub incoming: String,
    /// Nothing that the old root signed is followed.
    pub compromised: bool,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Unix milliseconds.
    pub changed_ms: u64,
    /// The steps that were taken, first to last.
    pub steps: Vec<Step>,
    /// Whom it waits for.
    pub stragglers: Vec<Straggler>,
    /// All nodes that count.
    pub nodes: Vec<NodeState>,
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `prepared`, `activated`, …, `resume` or `force`.
    pub step: String,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// An operator, `schedule`, or `ca` for what followed by itself.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Whom it passed by force, in words.
    pub passed: Vec<String>,
}

/// Whom or what a rotation waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Straggler {
    /// A node, a server, `federation` or `tokens`.
    pub subject: String,
    /// In words.
    pub reason: String,
    /// May `--force` pass it?
    pub can_be_forced: bool,
}

/// A node that a rotation counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Its agent is connected to the server that was asked.
    pub connected: bool,
    /// Unix milliseconds; 0 if never.
    pub seen_at_ms: u64,
    /// The update that it has applied.
    pub acknowledged: u64,
    /// The present stage does not wait for it.
    pub confirmed: bool,
    /// What it could not apply.
    pub problem: String,
}

/// What signs, and what was and is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RotationStatus {
    /// Oldest first.
    pub authorities: Vec<Authority>,
    /// Under way.
    pub live: Vec<Rotation>,
    /// Newest first.
    pub ended: Vec<Rotation>,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RotationPlan {
    /// In words, in order.
    pub steps: Vec<String>,
    /// Who would hold it up, or be left behind.
    pub breaks: Vec<Straggler>,
    /// All nodes that count.
    pub nodes: Vec<NodeState>,
}

/// A rotation that is asked for.
#[derive(Debug, Clone)]
pub struct NewRotation {
    /// What is replaced.
    pub what: What,
    /// How far it goes by itself.
    pub goal: Stage,
    /// Kept in the journal.
    pub reason: String,
    /// Nothing that the present root signs is to be followed.
    pub compromised: bool,
    /// A root that was made elsewhere (PEM), and its key signed by the present
    /// root (PEM, may be empty).
    pub root: Option<(String, String)>,
}

/// Whom a rotation's next step passes, though they have not confirmed the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Force {
    /// Nobody: it waits for all.
    Nobody,
    /// Whoever stands in the way.
    Everybody,
    /// These nodes alone; it waits for all others.
    Nodes(Vec<NodeName>),
}

impl Admin {
    /// What signs, and what was and is rotated.
    pub async fn rotations(&mut self) -> Result<RotationStatus, Error> {
        let request = bounded(proto::RotationStatusRequest {});
        let reply = self.rotation_client().rotation_status(request).await;
        let reply = reply.map_err(refused)?.into_inner();
        Ok(RotationStatus {
            authorities: reply.authorities.into_iter().map(Into::into).collect(),
            live: reply.live.into_iter().map(Into::into).collect(),
            ended: reply.ended.into_iter().map(Into::into).collect(),
        })
    }

    /// Begins a rotation.
    pub async fn rotate(&mut self, order: NewRotation) -> Result<Rotation, Error> {
        let (root_certificate, cross_signed) = order.root.unwrap_or_default();
        let request = proto::StartRotationRequest {
            what: order.what.name().to_owned(),
            goal: order.goal.name().to_owned(),
            reason: order.reason,
            compromised: order.compromised,
            root_certificate,
            cross_signed,
        };
        let reply = self
            .rotation_client()
            .start_rotation(bounded(request))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    /// Lets a rotation go on up to a stage; passing stragglers holds for one
    /// step and needs a reason.
    pub async fn steer_rotation(
        &mut self,
        id: u64,
        goal: Stage,
        force: &Force,
        reason: &str,
    ) -> Result<Rotation, Error> {
        let nodes = match force {
            Force::Nodes(nodes) => nodes.iter().map(ToString::to_string).collect(),
            Force::Nobody | Force::Everybody => Vec::new(),
        };
        let request = proto::SteerRotationRequest {
            id,
            goal: goal.name().to_owned(),
            force: *force != Force::Nobody,
            reason: reason.to_owned(),
            nodes,
        };
        let reply = self
            .rotation_client()
            .steer_rotation(bounded(request))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    /// Takes a rotation back that was not activated.
    pub async fn abort_rotation(&mut self, id: u64, reason: &str) -> Result<Rotation, Error> {
        let request = proto::AbortRotationRequest {
            id,
            reason: reason.to_owned(),
        };
        let reply = self
            .rotation_client()
            .abort_rotation(bounded(request))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    /// What a rotation would do. Changes nothing.
    pub async fn plan_rotation(
        &mut self,
        what: What,
        compromised: bool,
    ) -> Result<RotationPlan, Error> {
        let request = proto::PlanRotationRequest {
            what: what.name().to_owned(),
            compromised,
        };
        let reply = self.rotation_client().plan_rotation(bounded(request)).await;
        let reply = reply.map_err(refused)?.into_inner();
        Ok(RotationPlan {
            steps: reply.steps,
            breaks: reply.breaks.into_iter().map(Into::into).collect(),
            nodes: reply.nodes.into_iter().map(Into::into).collect(),
        })
    }

    /// The request (PEM) for the server's next issuing CA, and the server's name.
    pub async fn request_issuing(&mut self, reason: &str) -> Result<(String, String), Error> {
        let request = proto::RequestIssuingRequest {
            reason: reason.to_owned(),
        };
        let reply = self
            .rotation_client()
            .request_issuing(bounded(request))
            .await;
        let reply = reply.map_err(unchanged)?.into_inner();
        Ok((reply.request, reply.server))
    }

    /// Signs another server's request (PEM) with the root, if its key is there.
    pub async fn sign_issuing(&mut self, server: &str, request: String) -> Result<String, Error> {
        let request = proto::SignIssuingRequest {
            request,
            server: server.to_owned(),
        };
        let reply = self.rotation_client().sign_issuing(bounded(request)).await;
        Ok(reply.map_err(unchanged)?.into_inner().certificate)
    }

    /// Takes the certificate (PEM) in that answers a request.
    pub async fn install_issuing(&mut self, certificate: String) -> Result<Authority, Error> {
        let request = proto::InstallIssuingRequest { certificate };
        let reply = self
            .rotation_client()
            .install_issuing(bounded(request))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().into())
    }

    fn rotation_client(&self) -> RotationClient<Channel> {
        RotationClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }
}

impl From<proto::Authority> for Authority {
    fn from(wire: proto::Authority) -> Self {
        Self {
            id: wire.id,
            kind: wire.kind,
            server: wire.server,
            state: wire.state,
            parent: wire.parent,
            not_before_ms: wire.not_before_ms,
            not_after_ms: wire.not_after_ms,
            created_ms: wire.created_ms,
            compromised: wire.compromised,
            key_here: wire.key_here,
        }
    }
}

impl From<proto::RotationState> for Rotation {
    fn from(wire: proto::RotationState) -> Self {
        Self {
            id: wire.id,
            what: wire.what,
            server: wire.server,
            stage: wire.stage,
            goal: wire.goal,
            incoming: wire.incoming,
            compromised: wire.compromised,
            started_ms: wire.started_ms,
            changed_ms: wire.changed_ms,
            steps: wire.steps.into_iter().map(Into::into).collect(),
            stragglers: wire.stragglers.into_iter().map(Into::into).collect(),
            nodes: wire.nodes.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<proto::RotationStep> for Step {
    fn from(wire: proto::RotationStep) -> Self {
        Self {
            step: wire.step,
            at_ms: wire.at_ms,
            by: wire.by,
            reason: wire.reason,
            passed: wire.passed,
        }
    }
}

impl From<proto::Straggler> for Straggler {
    fn from(wire: proto::Straggler) -> Self {
        Self {
            subject: wire.subject,
            reason: wire.reason,
            can_be_forced: wire.can_be_forced,
        }
    }
}

impl From<proto::RotationNode> for NodeState {
    fn from(wire: proto::RotationNode) -> Self {
        Self {
            name: wire.name,
            connected: wire.connected,
            seen_at_ms: wire.seen_at_ms,
            acknowledged: wire.acknowledged,
            confirmed: wire.confirmed,
            problem: wire.problem,
        }
    }
}
