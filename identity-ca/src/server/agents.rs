//! What nodes may ask: to join, for certificates, for updates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::admitting;
use super::allowance::What;
use super::listen::{Peer, PeerNode};
use super::push::{self, Understands, UpdateStream};
use super::quota::source;
use super::state::State;
use crate::audit::Act;
use crate::authority::Issued;
use crate::certificate::{CsrKey, NodeBinding, ProofBinding};
use crate::client::{MAX_BATCH, check_clocks};
use crate::model::{Entry, Node};
use crate::proto::agents_server::Agents;
use crate::registry::{Heard, News, Snapshot};
use crate::token::Secret;
use crate::{Error, metrics, now_ms, proto};

const MAX_PROBLEM: usize = 512;
const MAX_AUTHORITIES: usize = 64;

pub(super) struct Service {
    state: Arc<State>,
    stopping: watch::Receiver<bool>,
}

pub(super) fn service(state: Arc<State>, stopping: watch::Receiver<bool>) -> Service {
    Service { state, stopping }
}

#[tonic::async_trait]
impl Agents for Service {
    type WatchStream = UpdateStream;
    type AttestStream = super::attest::Stream;

    async fn attest(
        &self,
        request: Request<tonic::Streaming<proto::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let from = peer(&request)?.from;
        self.state.recovered()?;
        super::attest::attest(&self.state, request.into_inner(), from).await
    }

    async fn issue_jwt(
        &self,
        request: Request<proto::IssueJwtRequest>,
    ) -> Result<Response<proto::IssueJwtReply>, Status> {
        let node = authenticated(&peer(&request)?)?;
        unexpired(&node)?;
        self.state.recovered()?;
        super::jwt::issue(&self.state, &node, request.into_inner()).await
    }

    async fn clock(
        &self,
        _: Request<proto::ClockRequest>,
    ) -> Result<Response<proto::ClockReply>, Status> {
        Ok(Response::new(proto::ClockReply { now_ms: now_ms() }))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinReply>, Status> {
        let from = peer(&request)?.from;
        let knock = admitting::knock(&self.state, from)?;
        let place = admitting::place(&self.state.admitting).await?;
        // From here on it goes to its end, also if the caller hangs up: a
        // token that is spent stands in the log.
        let state = Arc::clone(&self.state);
        let joining = tokio::spawn(async move {
            let joined = join(&state, request.into_inner(), from).await;
            drop((place, knock));
            joined
        });
        let joined = joining.await;
        joined.map_err(|_| Status::internal("a join ended early"))?
    }

    async fn issue(
        &self,
        request: Request<proto::IssueRequest>,
    ) -> Result<Response<proto::IssueReply>, Status> {
        let peer = peer(&request)?;
        let node = authenticated(&peer)?;
        let request = request.into_inner();
        check_clocks(request.now_ms, now_ms())?;
        if request.requests.len() > MAX_BATCH {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_BATCH} requests in a batch"
            )));
        }
        let own_only = request
            .requests
            .iter()
            .all(|request| request.kind() == proto::SvidKind::Node);
        if node.svid.not_after < now_ms() / 1000 {
            self.check_expired(&node, own_only).await?;
        }
        let since = Instant::now();
        self.state.recovered()?;
        self.state.audit.ready().await?;
        let judged_by = self.state.now().deny.number();
        let mut replies = Vec::with_capacity(request.requests.len());
        let mut acts = Vec::with_capacity(request.requests.len());
        for request in request.requests {
            let kind = kind(&request);
            let asked = asked_for(&request);
            let answer = self.issue_one(&node, request).await;
            match &answer {
                Ok(issued) => {
                    metrics::issued(kind);
                    if kind == "workload" {
                        self.state.crls.signed(issued, &node.svid.name);
                    }
                }
                Err(error) => metrics::refused("svid.issue", error),
            }
            let act = act(&asked, &answer, &node).with("from", peer.from.to_string());
            match &answer {
                Ok(_) => acts.push(act),
                Err(_) => acts.extend(self.state.refused_node(&node.svid.name, act)),
            }
            replies.push(proto::SvidReply {
                result: Some(result(answer)),
            });
        }
        if self.state.now().deny.number() != judged_by {
            self.state.crls.remake();
        }
        // What is not written down does not leave.
        self.state.audit.record(acts).await?;
        metrics::batch(since);
        Ok(Response::new(proto::IssueReply {
            replies,
            now_ms: now_ms(),
        }))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<UpdateStream>, Status> {
        let node = authenticated(&peer(&request)?)?;
        unexpired(&node)?;
        self.state.authority.in_touch()?;
        admit(&self.state.now(), &node)?;
        let request = request.into_inner();
        check_clocks(request.now_ms, now_ms())?;
        let connected = self.state.connected(&node.svid.name).ok_or_else(|| {
            Status::resource_exhausted("this node has as many streams of updates as it may")
        })?;
        Ok(Response::new(push::start(
            &self.state,
            node,
            connected,
            Understands {
                entry_changes: request.entry_changes,
                node_changes: request.node_changes,
            },
            self.stopping.clone(),
        )))
    }

    async fn offer_deny_list(
        &self,
        request: Request<proto::SignedDenyList>,
    ) -> Result<Response<proto::OfferDenyListReply>, Status> {
        let node = authenticated(&peer(&request)?)?;
        unexpired(&node)?;
        admit(&self.state.now(), &node)?;
        super::recovery::offer(&self.state, &node, request.into_inner()).await
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeReply>, Status> {
        let node = authenticated(&peer(&request)?)?;
        unexpired(&node)?;
        let now = self.state.now();
        admit(&now, &node)?;
        let request = request.into_inner();
        if request.sequence > now.revisions.last {
            return Err(Status::invalid_argument(
                "an acknowledgement of what was not sent",
            ));
        }
        let problem: String = request
            .problem
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_PROBLEM)
            .collect();
        let in_use = authorities_in_use(request.authorities_in_use)?;
        let what = News::Acknowledged {
            sequence: request.sequence,
            problem,
            authorities: in_use,
        };
        self.state
            .hearing
            .durable(Heard {
                node: node.svid.name.clone(),
                what,
            })
            .await?;
        self.state.rotation.notify_one();
        metrics::acknowledged(node.svid.name.as_str(), request.sequence);
        Ok(Response::new(proto::AcknowledgeReply { now_ms: now_ms() }))
    }
}

impl Service {
    async fn issue_one(
        &self,
        caller: &PeerNode,
        request: proto::SvidRequest,
    ) -> Result<Issued, Error> {
        // Looked up for each: a revocation counts from the moment it is there.
        let now = self.state.now();
        let node = now.admitted(caller)?;
        let authority = &self.state.authority;
        let allowances = &self.state.allowances;
        allowances.take(&now, node, authority.lifetimes(), What::Svid)?;
        let key = CsrKey::read(&request.csr)?;
        let issued = match request.kind() {
            proto::SvidKind::Node => {
                let binding = NodeBinding {
                    name: node.name.clone(),
                    prefixes: node.prefixes.clone(),
                    assignment: node.assignment,
                };
                let mut issued = self.state.authority.node_svid(&key, &binding)?;
                if caller.former {
                    // It knows an older root only: this leads it to the new one.
                    issued.chain.extend(self.state.authority.bridge());
                }
                let heard = Heard {
                    node: node.name.clone(),
                    what: News::NextKey(crate::bundle::sha256(key.point())),
                };
                self.state.hearing.durable(heard).await?;
                issued
            }
            proto::SvidKind::Proof => {
                let entry = entitled(&now, node, &request.entry_id)?;
                let binding = ProofBinding {
                    node: node.name.clone(),
                    labels: entry.labels.clone(),
                };
                let life = within(&entry, authority.lifetimes().proof)?;
                let id = entry.spiffe_id.clone();
                authority.proof_svid(&key, id, &binding, Some(life))?
            }
            proto::SvidKind::Workload => {
                let entry = entitled(&now, node, &request.entry_id)?;
                let life = entry.workload_ttl_seconds.map(u64::from);
                let life = within(&entry, life.unwrap_or(authority.lifetimes().workload))?;
                let id = entry.spiffe_id.clone();
                authority.workload_svid(&key, id, &entry.dns_names, Some(life))?
            }
            proto::SvidKind::Unspecified => {
                return Err(Error::invalid("kind", "node, proof or workload"));
            }
        };
        Ok(issued)
    }

    /// A node that was off may ask for its own next certificate, with its last key.
    async fn check_expired(&self, node: &PeerNode, own_only: bool) -> Result<(), Status> {
        let last = self.state.registry.last_key(&node.svid.name).await?;
        let same = last.as_deref() == Some(node.key_hash.as_slice());
        if own_only && same {
            Ok(())
        } else {
            Err(expired())
        }
    }
}

/// Judges a token, and writes down what came of it.
async fn join(
    state: &Arc<State>,
    request: proto::JoinRequest,
    from: SocketAddr,
) -> Result<Response<proto::JoinReply>, Status> {
    // Which one it was: what it was made for stands in the log by the same name.
    let token = Secret::from_wire(request.token.clone()).id();
    let joined = join_node(state, request).await;
    let act = match &joined {
        Ok((_, issued)) => signed("node.join", &issued.spiffe_id, issued),
        Err(error) => {
            metrics::refused("node.join", error);
            Act::refused("node.join", from, "", error)
        }
    };
    let act = act
        .with("from", from.to_string())
        .with("token", token.to_string());
    match &joined {
        Ok(_) => state.audit.record(vec![act]).await?,
        Err(_) => state.refused(&source(from.ip()).to_string(), act).await?,
    }
    let (bundle, issued) = joined?;
    Ok(Response::new(proto::JoinReply {
        svid: Some(svid(issued)),
        bundle: Some(bundle),
        now_ms: now_ms(),
    }))
}

async fn join_node(
    state: &Arc<State>,
    request: proto::JoinRequest,
) -> Result<(proto::Bundle, Issued), Error> {
    state.recovered()?;
    check_clocks(request.now_ms, now_ms())?;
    let key = CsrKey::read(&request.csr)?;
    let secret = Secret::from_wire(request.token);
    let change = |state: Arc<State>| async move {
        let hash = crate::bundle::sha256(key.point());
        let sign = |binding: &NodeBinding| state.authority.node_svid(&key, binding);
        let (_, issued) = state.registry.join(&secret, &hash, sign).await?;
        Ok((proto::Bundle::from(&*state.now().bundle), issued))
    };
    state.change(change).await
}

impl Snapshot {
    pub(super) fn admitted(&self, caller: &PeerNode) -> Result<&Node, Error> {
        let name = &caller.svid.name;
        let denied = self.deny.denies_node(name)
            || self.deny.denies_id(&caller.svid.spiffe_id)
            || self.deny.denies_serial(&caller.svid.serial);
        if denied {
            return Err(Error::Denied(format!("node {name} is revoked")));
        }
        let node = self
            .node(name)
            .ok_or_else(|| Error::Denied(format!("node {name} is not registered; join again")))?;
        if node.banned {
            return Err(Error::Denied(format!("node {name} is banned")));
        }
        if node.evicted {
            return Err(Error::Denied(format!(
                "node {name} was evicted: it must attest again (join with a new token, or by its own certificate)"
            )));
        }
        if caller.svid.assignment < node.assignment {
            return Err(Error::Denied(format!(
                "this certificate of node {name} is from before it attested again"
            )));
        }
        Ok(node)
    }
}

/// The node of a connection, unless it was revoked or removed since.
pub(super) fn admit<'a>(snapshot: &'a Snapshot, caller: &PeerNode) -> Result<&'a Node, Status> {
    Ok(snapshot.admitted(caller)?)
}

/// The entry, if it applies to the node and its identity may be issued.
pub(super) fn entitled(now: &Snapshot, node: &Node, id: &str) -> Result<Arc<Entry>, Error> {
    let entry = now.entry_of(node, id).ok_or_else(|| {
        Error::Denied(format!(
            "no entry {:?} applies to node {}",
            shorten(id),
            node.name
        ))
    })?;
    if now.deny.denies_id(&entry.spiffe_id) {
        return Err(Error::Denied(format!(
            "{} is revoked; `handfast revoke --undo --spiffe-id {0}` on the CA lifts it",
            entry.spiffe_id
        )));
    }
    Ok(entry)
}

/// How long what is signed for an entry lives (seconds): it does not outlive its entry, which nobody would have to
/// revoke once its time is over.
pub(super) fn within(entry: &Entry, life: u64) -> Result<u64, Error> {
    let Some(end) = entry.expires_at_ms else {
        return Ok(life);
    };
    match (end / 1000).saturating_sub(now_ms() / 1000) {
        0 => Err(Error::Denied(format!(
            "the time of the entry of {} is over",
            entry.spiffe_id
        ))),
        left => Ok(life.min(left)),
    }
}

pub(super) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::internal("a connection of no known kind"))
}

pub(super) fn authenticated(peer: &Peer) -> Result<Arc<PeerNode>, Status> {
    peer.node.clone().ok_or_else(|| {
        Status::unauthenticated(
            "this call needs a node's certificate; join first (`handfast agent join`)",
        )
    })
}

pub(super) fn unexpired(node: &PeerNode) -> Result<(), Status> {
    if node.svid.not_after < now_ms() / 1000 {
        Err(expired())
    } else {
        Ok(())
    }
}

/// What an agent says that its SVIDs hang on: hashes and key IDs, few of them.
fn authorities_in_use(names: Vec<String>) -> Result<Vec<String>, Status> {
    let plain = |name: &String| {
        (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if names.len() > MAX_AUTHORITIES || !names.iter().all(plain) {
        return Err(Status::invalid_argument(
            "authorities in use: at most 64 names of 128 characters",
        ));
    }
    Ok(names)
}

fn expired() -> Status {
    Status::unauthenticated(
        "this node's certificate has expired: it may only ask for the next one, with its last key; if it has lost that, join again",
    )
}

fn kind(request: &proto::SvidRequest) -> &'static str {
    match request.kind() {
        proto::SvidKind::Node => "node",
        proto::SvidKind::Proof => "proof",
        proto::SvidKind::Workload => "workload",
        proto::SvidKind::Unspecified => "unknown",
    }
}

/// What a request asks for, as the audit log names it.
fn asked_for(request: &proto::SvidRequest) -> String {
    match request.kind() {
        proto::SvidKind::Node | proto::SvidKind::Unspecified => kind(request).to_owned(),
        proto::SvidKind::Proof | proto::SvidKind::Workload => {
            format!("{} of entry {}", kind(request), shorten(&request.entry_id))
        }
    }
}

fn act(asked: &str, answer: &Result<Issued, Error>, node: &PeerNode) -> Act {
    let by = &node.svid.spiffe_id;
    match answer {
        Ok(issued) => signed("svid.issue", by, issued).with("kind", asked),
        Err(error) => Act::refused("svid.issue", by, asked, error),
    }
}

pub(super) fn signed(act: &'static str, by: &spiffe::SpiffeId, issued: &Issued) -> Act {
    Act::done(act, by, &issued.spiffe_id)
        .with("serial", issued.serial.to_string())
        .with("not_after", issued.not_after)
}

fn result(answer: Result<Issued, Error>) -> proto::svid_reply::Result {
    use proto::svid_reply::Result as Wire;
    match answer {
        Ok(issued) => Wire::Svid(svid(issued)),
        Err(error) => Wire::Refusal(proto::Refusal {
            code: u32::try_from(i32::from(error.code())).unwrap_or_default(),
            message: error.to_string(),
        }),
    }
}

pub(super) fn svid(issued: Issued) -> proto::Svid {
    proto::Svid {
        spiffe_id: issued.spiffe_id.to_string(),
        chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
        not_after_ms: issued.not_after * 1000,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}
