//! The stream of an attestation: a claim, challenges with their answers, and an SVID.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::admitting;
use super::agents::{signed, svid};
use super::quota::source;
use super::state::State;
use crate::attest::{Caller, MAX_PAYLOAD, Proven};
use crate::audit::Act;
use crate::authority::Issued;
use crate::certificate::{CsrKey, NodeBinding};
use crate::client::check_clocks;
use crate::proto::attest_reply::Step;
use crate::{Error, metrics, now_ms, proto};

pub(super) type Stream = ReceiverStream<Result<proto::AttestReply, Status>>;

const ACT: &str = "node.attest";
/// For each message of the caller.
const PATIENCE: Duration = Duration::from_secs(10);
/// Challenges of one attestation.
const MAX_CHALLENGES: usize = 4;

/// Answers one attestation.
pub(super) async fn attest(
    state: &Arc<State>,
    messages: Streaming<proto::AttestRequest>,
    from: SocketAddr,
) -> Result<Response<Stream>, Status> {
    let (replies, stream) = mpsc::channel(1);
    let knock = admitting::knock(state, from)?;
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let mut caller = Conversation {
            messages,
            replies,
            challenges: 0,
            places: Arc::clone(&state.judging),
            place: None,
        };
        let ended = answer(&state, &mut caller, from).await;
        drop((knock, caller.place.take()));
        // Who has hung up hears nothing more.
        drop(caller.replies.send(ended).await);
    });
    Ok(Response::new(ReceiverStream::new(stream)))
}

async fn answer(
    state: &Arc<State>,
    caller: &mut Conversation,
    from: SocketAddr,
) -> Result<proto::AttestReply, Status> {
    let first = caller.next().await?;
    let kind: String = first.kind.chars().take(32).collect();
    let admitted = admit(state, caller, first).await;
    let act = match &admitted {
        Ok((_, issued)) => signed(ACT, &issued.spiffe_id, issued),
        Err(error) => {
            metrics::refused(ACT, error);
            Act::refused(ACT, from, "", error)
        }
    };
    let act = act.with("kind", kind).with("from", from.to_string());
    match &admitted {
        Ok(_) => state.audit.record(vec![act]).await?,
        Err(_) => state.refused(&source(from.ip()).to_string(), act).await?,
    }
    let (bundle, issued) = admitted?;
    let joined = proto::JoinReply {
        svid: Some(svid(issued)),
        bundle: Some(bundle),
        now_ms: now_ms(),
    };
    Ok(proto::AttestReply {
        step: Some(Step::Joined(joined)),
    })
}

async fn admit(
    state: &Arc<State>,
    caller: &mut Conversation,
    first: proto::AttestRequest,
) -> Result<(proto::Bundle, Issued), Error> {
    check_clocks(first.now_ms, now_ms())?;
    caller.sit_down().await?;
    let key = CsrKey::read(&first.csr)?;
    let hash = crate::bundle::sha256(key.point());
    let attestor = state.attestors.kind(&first.kind)?;
    let kind = attestor.kind();
    let proven = attestor.attest(&first.payload, &hash, caller).await?;
    caller.place = None;
    let change = move |state: Arc<State>| async move {
        let sign = |binding: &NodeBinding| state.authority.node_svid(&key, binding);
        let registry = &state.registry;
        let issued = match proven {
            Proven::Node(order) => registry.attest(&order, kind, &hash, sign).await?,
            Proven::Token(secret) => registry.join(&secret, &hash, sign).await?.1,
        };
        Ok((proto::Bundle::from(&*state.now().bundle), issued))
    };
    let _place = admitting::place(&state.admitting).await?;
    state.change(change).await
}

struct Conversation {
    messages: Streaming<proto::AttestRequest>,
    replies: mpsc::Sender<Result<proto::AttestReply, Status>>,
    challenges: usize,
    /// Judging takes a place; the caller's own time does not.
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
}

impl Conversation {
    async fn sit_down(&mut self) -> Result<(), Error> {
        self.place = Some(admitting::place(&self.places).await?);
        Ok(())
    }

    async fn next(&mut self) -> Result<proto::AttestRequest, Error> {
        let broken = |problem: &str| Error::invalid("attestation", problem);
        let message = timeout(PATIENCE, self.messages.message())
            .await
            .map_err(|_| broken("nothing was said for 10 s"))?
            .map_err(|status| broken(status.message()))?
            .ok_or_else(|| broken("the caller hung up in the middle of it"))?;
        if message.payload.len() > MAX_PAYLOAD {
            return Err(broken("a message is too long"));
        }
        Ok(message)
    }
}

#[tonic::async_trait]
impl Caller for Conversation {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.challenges += 1;
        if self.challenges > MAX_CHALLENGES {
            return Err(Error::Protocol("too many challenges".to_owned()));
        }
        let reply = proto::AttestReply {
            step: Some(Step::Challenge(challenge)),
        };
        self.replies
            .send(Ok(reply))
            .await
            .map_err(|_| Error::invalid("attestation", "the caller hung up in the middle of it"))?;
        self.place = None;
        let answer = self.next().await?.payload;
        self.sit_down().await?;
        Ok(answer)
    }
}
