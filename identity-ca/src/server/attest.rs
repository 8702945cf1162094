//! Node attestation by kinds other than join tokens.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::state::State;
use crate::proto;

pub(super) type Stream = ReceiverStream<Result<proto::AttestReply, Status>>;

/// Answers one attestation: claim, challenge, response, SVID.
pub(super) async fn attest(
    _state: &Arc<State>,
    _messages: Streaming<proto::AttestRequest>,
    _from: SocketAddr,
) -> Result<Response<Stream>, Status> {
    Err(Status::unimplemented(
        "this CA attests nodes by join token only",
    ))
}
