//! JWT-SVIDs for workloads of a node.

use std::sync::Arc;

use tonic::{Response, Status};

use super::listen::PeerNode;
use super::state::State;
use crate::proto;

/// Signs a JWT-SVID for an entry that applies to the node.
pub(super) async fn issue(
    _state: &Arc<State>,
    _node: &PeerNode,
    _request: proto::IssueJwtRequest,
) -> Result<Response<proto::IssueJwtReply>, Status> {
    Err(Status::unimplemented("this CA signs no JWT-SVIDs"))
}
