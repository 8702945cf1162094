//! How a rotation begins: what is new is made, its keys first, and the plan's first row follows.

use std::sync::Arc;

use super::keep::rotation_server;
use super::{Operator, State, reason, stage, what};
use crate::audit::Act;
use crate::authority::{Brought, Record};
use crate::failpoint;
use crate::rotation::journal::{Order, Rotation, Wish};
use crate::rotation::plan::{Stage, What};
use crate::{Error, proto};

/// A rotation that is to begin.
pub(super) struct Start {
    pub(super) what: What,
    pub(super) goal: Stage,
    pub(super) compromised: bool,
    /// Takes over from one of its kind that was activated and has not ended.
    pub(super) overtake: bool,
    pub(super) brought: Option<Brought>,
    pub(super) wish: Wish,
}

/// Makes what is new, keys first, and begins.
pub(super) async fn start(state: &Arc<State>, start: Start) -> Result<Rotation, Error> {
    let server = rotation_server(start.what, state.authority.server()).to_owned();
    let records = make(state, &start).await?;
    failpoint::here(&format!("{}-keys-written", start.what.name()));
    let order = Order {
        what: start.what,
        server,
        goal: start.goal,
        compromised: start.compromised,
        overtake: start.overtake,
        records: records.clone(),
    };
    let wish = start.wish;
    let act =
        Act::done("rotation.prepare", &wish.by, start.what.name()).with("reason", &*wish.reason);
    let begun = state
        .change(move |state| async move {
            let mut change = state.registry.store().begin().await?;
            let rotation = Rotation::begin(&mut change, &order, &wish).await?;
            failpoint::here(&format!("within-{}-prepared", order.what.name()));
            change.commit().await?;
            failpoint::here(&format!("after-{}-prepared", order.what.name()));
            Ok(rotation)
        })
        .await;
    match begun {
        Ok(rotation) => {
            let act = act.with("rotation", rotation.id);
            state.audit.record(vec![act]).await?;
            state.rotation.notify_one();
            Ok(rotation)
        }
        Err(error) => {
            // Refused before anything was written. Any other error may hide a
            // commit whose answer was lost, and its keys are needed: those
            // without a row are tidied away after a day.
            if matches!(
                error,
                Error::Denied(_)
                    | Error::Invalid { .. }
                    | Error::Exists { .. }
                    | Error::Conflict { .. }
            ) {
                records
                    .iter()
                    .for_each(|record| state.authority.discard(record));
            }
            Err(error)
        }
    }
}

/// Sealing a key takes a moment: not on the threads that serve.
async fn make(state: &Arc<State>, start: &Start) -> Result<Vec<Record>, Error> {
    let (what, compromised) = (start.what, start.compromised);
    let brought = start.brought.clone();
    let state = Arc::clone(state);
    let made = tokio::task::spawn_blocking(move || {
        let authority = &state.authority;
        match what {
            What::Root => {
                let root = match &brought {
                    Some(brought) => authority.take_root(brought, compromised)?,
                    None => authority.make_root(compromised)?,
                };
                let issuing = authority.make_issuing(&root)?;
                Ok(vec![root, issuing])
            }
            What::Issuing => {
                let authorities = authority.authorities();
                let root = authorities.active_root().ok_or(Error::Missing {
                    what: "active root in",
                    name: "the store".to_owned(),
                })?;
                Ok(vec![authority.make_issuing(root)?])
            }
            What::Jwt => Ok(vec![authority.make_jwt_key()?]),
        }
    });
    made.await
        .map_err(|error| Error::Protocol(error.to_string()))?
}

/// What an operator has asked for.
pub(super) fn wanted(
    request: proto::StartRotationRequest,
    operator: &Operator,
) -> Result<Start, Error> {
    let what = what(&request.what)?;
    let brought = Brought {
        certificate: request.root_certificate,
        cross_signed: request.cross_signed,
    };
    let brings = !brought.certificate.is_empty();
    if what != What::Root && (brings || request.compromised) {
        return Err(Error::invalid(
            "rotation",
            "only a root can be brought, or be compromised in a way that needs to be said: nothing was changed",
        ));
    }
    Ok(Start {
        what,
        goal: stage(&request.goal)?,
        // Who knows that a root is compromised does not wait for a plan that trusts it.
        overtake: request.compromised,
        compromised: request.compromised,
        brought: brings.then_some(brought),
        wish: Wish {
            by: operator.to_string(),
            reason: reason(&request.reason)?,
        },
    })
}
