//! While a restored CA waits for its agents' deny lists, it signs nothing.

use std::sync::{Arc, PoisonError};

use tonic::{Response, Status};

use super::listen::PeerNode;
use super::state::State;
use crate::audit::Act;
use crate::backup::recovery::Recovery;
use crate::deny::DenyList;
use crate::{Error, proto};

impl State {
    /// What is still waited for, if the CA was restored.
    pub(super) fn recovery(&self) -> Option<Recovery> {
        *self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what a CA that does not know all revocations must not do.
    pub(super) fn recovered(&self) -> Result<(), Error> {
        match self.recovery() {
            Some(recovery) => Err(Error::Recovering(recovery.reason())),
            None => Ok(()),
        }
    }

    /// What agents have shown is in force before anything is signed again.
    pub(super) async fn take_heard_denials(self: &Arc<Self>) -> Result<(), Error> {
        self.change(|_| async { Ok(()) }).await
    }

    /// Looks into the store how far it is.
    pub(super) async fn look_at_recovery(&self) -> Result<(), Error> {
        let now = self.registry.recovery().await?;
        *self.recovery.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }
}

/// An agent shows the newest deny list that it has: believed for the CA's own signature.
pub(super) async fn offer(
    state: &Arc<State>,
    node: &PeerNode,
    list: proto::SignedDenyList,
) -> Result<Response<proto::OfferDenyListReply>, Status> {
    if state.recovery().is_none() {
        return Ok(Response::new(proto::OfferDenyListReply::default()));
    }
    // A node that has never heard of one offers nothing.
    let list = if list.body.is_empty() {
        DenyList::empty()
    } else {
        let bytes = prost::Message::encode_to_vec(&list);
        DenyList::from_bytes(&bytes, state.now().remembering.bundle())?
    };
    let name = node.svid.name.clone();
    let number = list.number();
    state.audit.ready().await?;
    let left = state.registry.hear_deny_list(&name, &list).await?;
    let act = Act::done("recovery.hear", &node.svid.spiffe_id, "deny list").with("number", number);
    state.audit.record(vec![act]).await?;
    if left.is_none() {
        state.take_heard_denials().await?;
    }
    // Known before the list that agents wait for is pushed.
    state.look_at_recovery().await?;
    if left.is_none() {
        state.change(|_| async { Ok(()) }).await?;
        tracing::info!("enough agents have shown their deny lists: the CA signs again");
    }
    Ok(Response::new(proto::OfferDenyListReply {
        waits_for: left.map(Recovery::reason).unwrap_or_default(),
    }))
}
