//! JWT-SVIDs for workloads of a node.

use std::sync::Arc;

use tonic::{Response, Status};

use super::agents::{entitled, within};
use super::allowance::What;
use super::listen::PeerNode;
use super::state::State;
use crate::audit::Act;
use crate::client::check_clocks;
use crate::jwt::Issued;
use crate::model::Entry;
use crate::{Error, jwt, metrics, now_ms, proto};

const ACT: &str = "jwt.issue";

/// Signs a JWT-SVID for an entry that applies to the node. What is signed
/// stands in the audit log before it leaves.
pub(super) async fn issue(
    state: &Arc<State>,
    caller: &PeerNode,
    request: proto::IssueJwtRequest,
) -> Result<Response<proto::IssueJwtReply>, Status> {
    check_clocks(request.now_ms, now_ms())?;
    let node = &caller.svid.spiffe_id;
    match sign(state, caller, &request) {
        Ok((entry, issued)) => {
            let act = Act::done(ACT, node, &entry.spiffe_id)
                .with("jti", issued.id.clone())
                .with("audiences", request.audiences)
                .with("not_after", issued.not_after);
            state.audit.record(vec![act]).await?;
            metrics::issued("jwt");
            Ok(Response::new(proto::IssueJwtReply {
                spiffe_id: entry.spiffe_id.to_string(),
                token: issued.token,
                issued_at_ms: issued.issued_at * 1000,
                not_after_ms: issued.not_after * 1000,
            }))
        }
        Err(error) => {
            metrics::refused(ACT, &error);
            let asked: String = request.entry_id.chars().take(64).collect();
            let act = Act::refused(ACT, node, asked, &error);
            if let Some(act) = state.refused_node(&caller.svid.name, act) {
                state.audit.record(vec![act]).await?;
            }
            Err(error.into())
        }
    }
}

fn sign(
    state: &State,
    caller: &PeerNode,
    request: &proto::IssueJwtRequest,
) -> Result<(Arc<Entry>, Issued), Error> {
    // Looked up for each: a revocation counts from the moment it is there.
    let now = state.now();
    let node = now.admitted(caller)?;
    let life = state.authority.lifetimes();
    state.allowances.take(&now, node, life, What::Jwt)?;
    let entry = entitled(&now, node, &request.entry_id)?;
    let key = state.authority.jwt_key()?;
    let life = within(&entry, entry.jwt_ttl_seconds.map_or(life.jwt, u64::from))?;
    let issued = jwt::issue(
        &key,
        &entry.spiffe_id,
        &request.audiences,
        life,
        now_ms() / 1000,
    )?;
    Ok((entry, issued))
}
