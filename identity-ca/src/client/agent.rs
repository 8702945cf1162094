//! A joined node's side of the CA: certificates in batches, updates as they happen.

use spiffe::SpiffeId;
use tonic::Streaming;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use super::connect::{Caller, Trust, agents, bounded, connect_channel};
use super::{NodeIdentity, Refusal, Section, Svid, SvidRequest, refused};
use crate::audit::AuditHead;
use crate::bundle::TrustBundle;
use crate::deny::DenyList;
use crate::model::{Entry, Node, PolicyDocument};
use crate::proto::agents_client::AgentsClient;
use crate::verify::Verifier;
use crate::{Error, now_ms, proto};

/// Requests that one call may carry.
pub const MAX_BATCH: usize = 256;

/// Servers of one CA.
const MAX_SERVERS: usize = 64;
/// Trust domains that one federates with.
const MAX_FEDERATED: usize = 1024;

/// A connection to the CA. Cheap to clone; when it is lost, calls fail with
/// [`Error::Refused`] and code `Unavailable`, and the agent connects again.
#[derive(Debug, Clone)]
pub struct AgentClient {
    client: AgentsClient<Channel>,
    /// For the other services on the same connection.
    pub(super) channel: Channel,
    bundle: TrustBundle,
}

impl AgentClient {
    /// Connects as `identity` to the CA at `HOST:PORT`, which `verifier`
    /// recognises. A node whose SVID has expired for less than 30 days may
    /// connect too, but only to ask for the next one.
    pub async fn connect(
        address: &str,
        verifier: &Verifier,
        identity: &NodeIdentity,
    ) -> Result<Self, Error> {
        let trust = Trust::Bundle(Box::new(verifier.clone()));
        let channel = connect_channel(address, &trust, Some(identity), Caller::Node).await?;
        Ok(Self {
            client: agents(channel.clone()),
            channel,
            bundle: verifier.bundle().clone(),
        })
    }

    /// Asks for certificates; the answers come in the order of the requests.
    /// Batches larger than [`MAX_BATCH`] go in several calls.
    pub async fn issue(
        &self,
        requests: Vec<SvidRequest>,
    ) -> Result<Vec<Result<Svid, Refusal>>, Error> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests.into_iter().peekable();
        while rest.peek().is_some() {
            let batch: Vec<proto::SvidRequest> = rest
                .by_ref()
                .take(MAX_BATCH)
                .map(proto::SvidRequest::from)
                .collect();
            let expected = answers.len() + batch.len();
            let request = proto::IssueRequest {
                requests: batch,
                now_ms: now_ms(),
            };
            let reply = self
                .client
                .clone()
                .issue(bounded(request))
                .await
                .map_err(refused)?;
            for reply in reply.into_inner().replies {
                answers.push(answer(reply)?);
            }
            if answers.len() != expected {
                return Err(Error::Protocol("an answer without its request".to_owned()));
            }
        }
        Ok(answers)
    }

    /// Everything this node needs to know: the first update has all of it,
    /// later ones what has changed.
    pub async fn updates(&self) -> Result<Updates, Error> {
        let request = proto::WatchRequest {
            now_ms: now_ms(),
            entry_changes: true,
            node_changes: true,
        };
        let stream = self
            .client
            .clone()
            .watch(request)
            .await
            .map_err(refused)?
            .into_inner();
        Ok(Updates {
            stream,
            bundle: self.bundle.clone(),
        })
    }

    /// A JWT-SVID of an entry's identity for these audiences (at least one).
    pub async fn issue_jwt(
        &self,
        entry_id: &str,
        audiences: &[String],
    ) -> Result<Result<IssuedJwt, Refusal>, Error> {
        let request = proto::IssueJwtRequest {
            entry_id: entry_id.to_owned(),
            audiences: audiences.to_vec(),
            now_ms: now_ms(),
        };
        let reply = match self.client.clone().issue_jwt(bounded(request)).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if is_refusal(status.code()) => {
                return Ok(Err(Refusal {
                    code: status.code(),
                    message: status.message().to_owned(),
                }));
            }
            Err(status) => return Err(refused(status)),
        };
        Ok(Ok(IssuedJwt {
            spiffe_id: crate::names::operator_id(&reply.spiffe_id)?,
            token: Zeroizing::new(reply.token),
            issued_at: reply.issued_at_ms / 1000,
            not_after: reply.not_after_ms / 1000,
        }))
    }

    /// Shows a CA that was restored the newest deny list that this node has.
    /// Gives what it still waits for; nothing, if it signs again.
    pub async fn offer_deny_list(&self, list: &DenyList) -> Result<Option<String>, Error> {
        let list: proto::SignedDenyList = prost::Message::decode(list.bytes())
            .map_err(|error| Error::Protocol(format!("deny list: {error}")))?;
        let reply = self.client.clone().offer_deny_list(bounded(list)).await;
        let waits_for = reply.map_err(refused)?.into_inner().waits_for;
        Ok(Some(waits_for).filter(|reason| !reason.is_empty()))
    }

    /// [`AgentClient::acknowledge`] of a node whose SVIDs hang on nothing that
    /// is worth telling.
    pub async fn ack(&self, sequence: u64, problem: Option<&str>) -> Result<(), Error> {
        self.acknowledge(sequence, problem, Vec::new()).await
    }

    /// Tells the CA that an update is applied, or why it is not, and what the
    /// node's SVIDs hang on (SHA-256 of issuing CAs' certificates in lower-case
    /// hexadecimal, key IDs of JWT keys). An error keeps the node on the
    /// operator's list until a later update is applied.
    pub async fn acknowledge(
        &self,
        sequence: u64,
        problem: Option<&str>,
        authorities_in_use: Vec<String>,
    ) -> Result<(), Error> {
        let problem = problem.unwrap_or_default().to_owned();
        let request = proto::AcknowledgeRequest {
            sequence,
            problem,
            authorities_in_use,
        };
        self.client
            .clone()
            .acknowledge(bounded(request))
            .await
            .map_err(refused)?;
        Ok(())
    }
}

fn answer(reply: proto::SvidReply) -> Result<Result<Svid, Refusal>, Error> {
    use proto::svid_reply::Result as Wire;
    match reply.result {
        Some(Wire::Svid(svid)) => Ok(Ok(svid.try_into()?)),
        Some(Wire::Refusal(refusal)) => {
            let code = tonic::Code::from_i32(i32::try_from(refusal.code).unwrap_or_default());
            Ok(Err(Refusal {
                code,
                message: refusal.message,
            }))
        }
        None => Err(Error::Protocol("an empty answer".to_owned())),
    }
}

/// Answers that say no; all others say that there was none.
fn is_refusal(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(
        code,
        Code::PermissionDenied | Code::InvalidArgument | Code::NotFound | Code::Unimplemented
    )
}

/// A JWT-SVID as the CA gave it.
#[derive(Debug, Clone)]
pub struct IssuedJwt {
    /// Its subject.
    pub spiffe_id: SpiffeId,
    /// Compact JWS; a secret.
    pub token: Zeroizing<String>,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub not_after: u64,
}

/// What has changed. A section that is none has not; one that is there is
/// complete, or a [`Section`] that says what has changed.
#[derive(Debug, Clone)]
pub struct Update {
    /// To be acknowledged with [`AgentClient::ack`]; rises from update to update.
    pub sequence: u64,
    /// The CA's clock (unix milliseconds).
    pub ca_time_ms: u64,
    /// The trust bundle.
    pub bundle: Option<TrustBundle>,
    /// The nodes that have joined, this one among them.
    pub nodes: Option<Section<Node>>,
    /// The entries that apply to this node.
    pub entries: Option<Section<Entry>>,
    /// All policy documents.
    pub policies: Option<Vec<PolicyDocument>>,
    /// The deny list, its signature verified.
    pub deny_list: Option<DenyList>,
    /// Bundles of the trust domains that this node's entries federate with.
    pub federated: Option<Vec<TrustBundle>>,
    /// SVIDs and JWT-SVIDs that hang on these are to be replaced now; named as
    /// in [`AgentClient::acknowledge`].
    pub retired: Option<Vec<String>>,
    /// `HOST:PORT` of every server of this CA.
    pub servers: Option<Vec<String>>,
    /// Revocation lists (DER), for the Workload API.
    pub crls: Option<Vec<Vec<u8>>>,
    /// How far the servers' audit logs have come, signatures verified.
    pub audit_heads: Option<Vec<AuditHead>>,
    /// The CA was restored from a backup and waits for deny lists:
    /// [`AgentClient::offer_deny_list`].
    pub recovering: bool,
    /// What of it could not be understood, and was left out.
    pub problems: Vec<String>,
}

/// The stream of updates.
#[derive(Debug)]
pub struct Updates {
    stream: Streaming<proto::Update>,
    /// Verifies deny lists.
    bundle: TrustBundle,
}

impl Updates {
    /// The next update; none when the CA has ended the stream (it stops, or
    /// has a reason to: connecting again says which).
    pub async fn next(&mut self) -> Result<Option<Update>, Error> {
        let Some(update) = self.stream.message().await.map_err(refused)? else {
            return Ok(None);
        };
        let bundle = update.bundle.map(TrustBundle::try_from).transpose()?;
        if let Some(bundle) = &bundle {
            if bundle.trust_domain() != self.bundle.trust_domain() {
                return Err(Error::Protocol(
                    "a bundle of another trust domain".to_owned(),
                ));
            }
            self.bundle = bundle.clone();
        }
        let deny_list = update.deny_list.map(|list| {
            let bytes = prost::Message::encode_to_vec(&list);
            DenyList::from_bytes(&bytes, &self.bundle)
        });
        let mut problems = Vec::new();
        let federated = update.federated.map(|list| {
            let bundles = list.bundles.into_iter().take(MAX_FEDERATED);
            understood(bundles.map(TrustBundle::try_from), &mut problems)
        });
        let audit_heads = update.audit_heads.map(|list| {
            let heads = list.heads.into_iter().take(MAX_SERVERS).map(|head| {
                let bytes = prost::Message::encode_to_vec(&head);
                AuditHead::from_bytes(&bytes, &self.bundle)
            });
            understood(heads, &mut problems)
        });
        let node_changes = update.node_changes.map(|nodes| (nodes.nodes, Vec::new()));
        let entry_changes = update.entry_changes;
        let entry_changes = entry_changes.map(|changes| (changes.changed, changes.removed));
        Ok(Some(Update {
            sequence: update.sequence,
            recovering: update.recovering,
            ca_time_ms: update.now_ms,
            bundle,
            nodes: section(update.nodes.map(|all| all.nodes), node_changes)?,
            entries: section(update.entries.map(|all| all.entries), entry_changes)?,
            policies: update.policies.map(|list| {
                list.policies
                    .into_iter()
                    .map(PolicyDocument::from)
                    .collect()
            }),
            deny_list: deny_list.transpose()?,
            federated,
            retired: update.retired.map(|retired| retired.authorities),
            servers: update.servers.map(|servers| {
                let addresses = servers.addresses.into_iter();
                addresses
                    .filter(|address| is_address(address))
                    .take(MAX_SERVERS)
                    .collect()
            }),
            crls: update.crls.map(|crls| crls.crls),
            audit_heads,
            problems,
        }))
    }
}

/// All of a section, or what has changed in it: whichever the message has.
fn section<W, T>(
    all: Option<Vec<W>>,
    changes: Option<(Vec<W>, Vec<String>)>,
) -> Result<Option<Section<T>>, Error>
where
    T: TryFrom<W, Error = Error>,
{
    let read =
        |wire: Vec<W>| -> Result<Vec<T>, Error> { wire.into_iter().map(T::try_from).collect() };
    match (all, changes) {
        (Some(all), _) => Ok(Some(Section::All(read(all)?))),
        (None, Some((changed, removed))) => Ok(Some(Section::Changes {
            changed: read(changed)?,
            removed,
        })),
        (None, None) => Ok(None),
    }
}

/// Those that can be read; why the others cannot.
fn understood<T>(
    parts: impl Iterator<Item = Result<T, Error>>,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let read = parts.filter_map(|part| part.map_err(|error| problems.push(error.to_string())).ok());
    read.collect()
}

/// `HOST:PORT`, short, without anything that a resolver or a log would stumble over.
fn is_address(address: &str) -> bool {
    address.len() <= 261
        && address.bytes().all(|byte| byte.is_ascii_graphic())
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
