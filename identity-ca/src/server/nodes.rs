//! What operators do to nodes, and the tokens that were made for them.

use std::sync::Arc;

use tonic::{Response, Status};

use super::operator::{Operator, check_reason};
use super::state::State;
use crate::audit::Act;
use crate::model::{Entry, NodeAct, TokenId, TokenRecord};
use crate::registry::Deleted;
use crate::{Error, NodeName, proto};

/// Nodes of one call.
const MAX_NAMES: usize = 10_000;
/// Lines that are written to the log together.
const PIECE: usize = 1000;

/// Evicts, bans, unbans and so on.
pub(super) async fn change(
    state: &Arc<State>,
    by: &Operator,
    request: proto::ChangeNodesRequest,
) -> Result<Response<proto::ChangeNodesReply>, Status> {
    let (act, name) = match request.act() {
        proto::NodeAct::Evict => (NodeAct::Evict, "node.evict"),
        proto::NodeAct::Ban => (NodeAct::Ban, "node.ban"),
        proto::NodeAct::Unban => (NodeAct::Unban, "node.unban"),
        proto::NodeAct::Enforce => (NodeAct::Enforce, "node.enforce"),
        proto::NodeAct::Relax => (NodeAct::Relax, "node.relax"),
        proto::NodeAct::Unspecified => {
            return Err(Status::invalid_argument(
                "evict, ban, unban, enforce or relax",
            ));
        }
    };
    check_reason(&request.reason)?;
    let nodes = names(&request.names)?;
    let (subject, reason) = (request.names.join(" "), request.reason);
    let why = reason.clone();
    let number = state
        .change(move |state| async move { state.registry.change_nodes(&nodes, act, &reason).await })
        .await;
    let number = state
        .conclude(name, by, subject, number, |act, number| {
            act.with("reason", why).with("number", number.unwrap_or(0))
        })
        .await?;
    Ok(Response::new(proto::ChangeNodesReply {
        sequence: number.unwrap_or(0),
    }))
}

/// Strikes nodes off.
pub(super) async fn delete(
    state: &Arc<State>,
    by: &Operator,
    request: proto::DeleteNodesRequest,
) -> Result<Response<proto::DeleteNodesReply>, Status> {
    let proto::DeleteNodesRequest {
        names: subject,
        with_entries,
        reason,
        dry_run,
    } = request;
    check_reason(&reason)?;
    let nodes = names(&subject)?;
    // When nodes were heard last is as old as the backup.
    state.recovered()?;
    let life_ms = state.authority.lifetimes().node.saturating_mul(1000);
    let deleted = state
        .change(move |state| async move {
            let registry = &state.registry;
            registry
                .delete_nodes(&nodes, with_entries, life_ms, dry_run)
                .await
        })
        .await;
    if dry_run {
        return Ok(reply(deleted?));
    }
    let entries = deleted.as_ref().map_or(&[][..], |deleted| &deleted.entries);
    state.record_deleted(entries, by, &reason).await?;
    let deleted = state
        .conclude(
            "node.delete",
            by,
            subject.join(" "),
            deleted,
            |act, deleted| {
                act.with("reason", reason.as_str())
                    .with("number", deleted.number)
                    .with("entries", deleted.entries.len())
            },
        )
        .await?;
    Ok(reply(deleted))
}

fn reply(deleted: Deleted) -> Response<proto::DeleteNodesReply> {
    Response::new(proto::DeleteNodesReply {
        sequence: deleted.number,
        entries: deleted.entries.into_iter().map(|entry| entry.id).collect(),
    })
}

/// Tokens that were made.
pub(super) async fn tokens(state: &State) -> Result<Response<proto::ListTokensReply>, Status> {
    let tokens = state.registry.tokens().await?;
    Ok(Response::new(proto::ListTokensReply {
        tokens: tokens.into_iter().map(Into::into).collect(),
    }))
}

/// Makes tokens void that were lost.
pub(super) async fn delete_tokens(
    state: &Arc<State>,
    by: &Operator,
    request: proto::DeleteTokensRequest,
) -> Result<Response<proto::DeleteTokensReply>, Status> {
    let proto::DeleteTokensRequest {
        ids: subject,
        reason,
    } = request;
    check_reason(&reason)?;
    if subject.is_empty() || subject.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!(
            "name 1 to {MAX_NAMES} tokens"
        )));
    }
    let ids: Result<Vec<TokenId>, Error> = subject.iter().map(|id| id.parse()).collect();
    let (ids, why) = (ids?, reason.clone());
    let deleted = state
        .change(move |state| async move { state.registry.delete_tokens(&ids, &why).await })
        .await;
    let one = |token: &TokenRecord| {
        let act = Act::done("token.delete", by, &token.node);
        Some(
            act.with("id", token.id.to_string())
                .with("reason", reason.as_str()),
        )
    };
    match &deleted {
        Ok(deleted) => state.record_all(deleted, one).await?,
        Err(error) => {
            let act = Act::refused("token.delete", by, subject.join(" "), error);
            state.audit.record(vec![act]).await?;
        }
    }
    Ok(Response::new(proto::DeleteTokensReply {
        tokens: deleted?.into_iter().map(Into::into).collect(),
    }))
}

fn names(names: &[String]) -> Result<Vec<NodeName>, Status> {
    if names.is_empty() || names.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!(
            "name 1 to {MAX_NAMES} nodes"
        )));
    }
    let names: Result<_, Error> = names.iter().map(|name| name.parse()).collect();
    Ok(names?)
}

impl State {
    /// A line for each, in batches: what was done to one of many is found like what was done to it alone.
    pub(super) async fn record_all<T: Sync>(
        &self,
        all: &[T],
        act: impl Fn(&T) -> Option<Act> + Send + Sync,
    ) -> Result<(), Error> {
        for piece in all.chunks(PIECE) {
            let acts = piece.iter().filter_map(&act).collect();
            self.audit.record(acts).await?;
        }
        Ok(())
    }

    /// The same for entries that were deleted.
    pub(super) async fn record_deleted(
        &self,
        entries: &[Entry],
        by: &Operator,
        reason: &str,
    ) -> Result<(), Error> {
        let one = |entry: &Entry| {
            let act = Act::done("entry.delete", by, &entry.spiffe_id)
                .with("id", entry.id.as_str())
                .with("reason", reason);
            Some(act)
        };
        self.record_all(entries, one).await
    }
}
