//! An operator's side of the CA: over its Unix socket, or from afar with an SVID.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::connect::{Caller, Trust, bounded, connect_channel};
use super::operators::{EntryFilter, Remote};
use super::{refused, unchanged};
use crate::bundle::TrustBundle;
use crate::deny::DenyList;
use crate::model::{Denial, Entry, Node, PolicyDocument, Subject};
use crate::proto::admin_client::AdminClient;
use crate::token::{JoinToken, Secret};
use crate::verify::Verifier;
use crate::{Error, NodeName, proto};

/// Where `handfast ca serve` listens if it is told nothing else.
pub const DEFAULT_SOCKET: &str = "/run/handfast/ca.sock";

const MAX_MESSAGE: usize = 64 << 20;

/// A connection to the CA's administrative socket.
#[derive(Debug, Clone)]
pub struct Admin {
    client: AdminClient<Channel>,
    /// For the other services on the same socket.
    pub(super) channel: Channel,
}

/// What a token is made for.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The node that may use it.
    pub node: NodeName,
    /// The addresses that its workloads may have; empty keeps what it has.
    pub prefixes: Vec<IpNet>,
    /// `IP` or `IP:PORT` where its sessions are reached; empty keeps what it has.
    pub underlay: Vec<String>,
    /// `HOST:PORT` where the node reaches the CA.
    pub ca_address: String,
    /// How long it may be used.
    pub ttl: Duration,
    /// The node starts as joining instead of managed.
    pub joining: bool,
}

/// An entry that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewEntry {
    /// The identity.
    pub spiffe_id: String,
    /// SPIFFE ID or name of a node; none for any.
    pub parent: Option<String>,
    /// `KIND:VALUE`, all of which must match.
    pub selectors: Vec<String>,
    /// Signed into proof SVIDs.
    pub labels: crate::model::Labels,
    /// Life of workload SVIDs.
    pub ttl: Option<Duration>,
    /// DNS names of workload SVIDs.
    pub dns_names: Vec<String>,
    /// Tells several identities of one workload apart.
    pub hint: String,
    /// Trust domains whose bundles the workload gets.
    pub federates_with: Vec<String>,
    /// Life of JWT-SVIDs.
    pub jwt_ttl: Option<Duration>,
    /// When it ends (unix milliseconds).
    pub expires_at_ms: Option<u64>,
}

impl TryFrom<&NewEntry> for proto::Entry {
    type Error = Error;

    fn try_from(entry: &NewEntry) -> Result<Self, Error> {
        let selectors = entry.selectors.iter().map(|text| {
            let selector: crate::model::Selector = text.parse()?;
            Ok(proto::Selector::from(&selector))
        });
        let seconds = |ttl: Option<Duration>| {
            ttl.map_or(0, |ttl| {
                u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX)
            })
        };
        Ok(Self {
            spiffe_id: entry.spiffe_id.clone(),
            parent_id: entry.parent.clone().unwrap_or_default(),
            selectors: selectors.collect::<Result<_, Error>>()?,
            labels: entry.labels.clone().into_iter().collect(),
            workload_ttl_seconds: seconds(entry.ttl),
            jwt_ttl_seconds: seconds(entry.jwt_ttl),
            dns_names: entry.dns_names.clone(),
            hint: entry.hint.clone(),
            federates_with: entry.federates_with.clone(),
            expires_at_ms: entry.expires_at_ms.unwrap_or(0),
            ..Self::default()
        })
    }
}

/// How the CA is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whom it signs for.
    pub trust_domain: String,
    /// Of the program that serves.
    pub version: String,
    /// Where agents reach it.
    pub listen: String,
    /// Its clock (unix milliseconds).
    pub now_ms: u64,
    /// Of the last change.
    pub sequence: u64,
    /// When the root ends (unix milliseconds).
    pub root_not_after_ms: u64,
    /// When the issuing CA ends (unix milliseconds).
    pub issuing_not_after_ms: u64,
    /// As join tokens carry it.
    pub root_fingerprint: String,
    /// Nodes get prefixes out of these.
    pub prefix_ranges: Vec<String>,
    /// Nodes of the registry.
    pub nodes: u64,
    /// Of them, those that have joined.
    pub nodes_joined: u64,
    /// Of them, those whose agent is connected now.
    pub nodes_connected: u64,
    /// Registration entries.
    pub entries: u64,
    /// Policy documents.
    pub policies: u64,
    /// Lines of the deny list.
    pub denials: u64,
    /// Join tokens that can still be used.
    pub tokens_open: u64,
    /// Why nothing is signed now; empty if all is well.
    pub recovery: String,
    /// Things that an operator should look into (a token used twice).
    pub alarms: u64,
    /// Ten of them at most, the newest first.
    pub newest_alarms: Vec<Alarm>,
}

/// Something that an operator should look into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// When it was raised (unix milliseconds).
    pub at_ms: u64,
    /// What it is.
    pub detail: String,
}

impl Admin {
    /// Connects to the socket.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let unreachable = |problem: String| Error::Unreachable {
            address: format!("the CA's socket {}", socket.display()),
            problem: format!(
                "{problem}; does `handfast ca serve` run here, and are you its owner or root?"
            ),
        };
        // Once by hand, for an error that says what is wrong.
        UnixStream::connect(socket)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://handfast-ca")
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self::over(channel))
    }

    /// Connects from afar to the CA at `HOST:PORT`, as the operator whose SVID
    /// is shown.
    pub async fn connect_remote(address: &str, remote: &Remote) -> Result<Self, Error> {
        let verifier = Verifier::new(remote.bundle.clone(), DenyList::empty());
        let trust = Trust::Bundle(Box::new(verifier));
        let identity = Some(&remote.identity);
        let channel = connect_channel(address, &trust, identity, Caller::Operator).await?;
        Ok(Self::over(channel))
    }

    fn over(channel: Channel) -> Self {
        Self {
            channel: channel.clone(),
            client: AdminClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        }
    }

    /// How the CA is.
    pub async fn status(&mut self) -> Result<Status, Error> {
        let status = self.client.status(bounded(proto::StatusRequest {})).await;
        let status = status.map_err(refused)?.into_inner();
        Ok(Status {
            trust_domain: status.trust_domain,
            version: status.version,
            listen: status.listen,
            now_ms: status.now_ms,
            sequence: status.sequence,
            root_not_after_ms: status.root_not_after_ms,
            issuing_not_after_ms: status.issuing_not_after_ms,
            root_fingerprint: status.root_fingerprint,
            prefix_ranges: status.prefix_ranges,
            nodes: status.nodes,
            nodes_joined: status.nodes_joined,
            nodes_connected: status.nodes_connected,
            entries: status.entries,
            policies: status.policies,
            denials: status.denials,
            tokens_open: status.tokens_open,
            alarms: status.alarms,
            newest_alarms: status
                .newest_alarms
                .into_iter()
                .map(|alarm| Alarm {
                    at_ms: alarm.at_ms,
                    detail: alarm.detail,
                })
                .collect(),
            recovery: status.recovery,
        })
    }

    /// Makes a join token, and the node if it is new.
    pub async fn create_token(&mut self, request: &TokenRequest) -> Result<JoinToken, Error> {
        let ttl = u32::try_from(request.ttl.as_secs())
            .map_err(|_| Error::invalid("ttl", "too long; a token lives 30 days at most"))?;
        if ttl == 0 {
            return Err(Error::invalid("ttl", "a token lives for a second at least"));
        }
        let message = proto::CreateTokenRequest {
            node: request.node.to_string(),
            prefixes: request.prefixes.iter().map(ToString::to_string).collect(),
            underlay: request.underlay.clone(),
            ca_address: request.ca_address.clone(),
            ttl_seconds: ttl,
            joining: request.joining,
        };
        let reply = self
            .client
            .create_token(bounded(message))
            .await
            .map_err(unchanged)?
            .into_inner();
        let trust_domain = spiffe::TrustDomain::new(&reply.trust_domain)
            .map_err(|error| Error::Protocol(error.to_string()))?;
        Ok(JoinToken {
            trust_domain,
            node: reply.node.parse()?,
            ca_address: reply.ca_address,
            root_fingerprint: reply.root_fingerprint.parse()?,
            secret: Secret::from_wire(reply.token),
            expires_at_ms: reply.expires_at_ms,
        })
    }

    /// All nodes, joined or not.
    pub async fn nodes(&mut self) -> Result<Vec<Node>, Error> {
        let nodes = self
            .client
            .list_nodes(bounded(proto::ListNodesRequest {}))
            .await;
        nodes
            .map_err(refused)?
            .into_inner()
            .nodes
            .into_iter()
            .map(Node::try_from)
            .collect()
    }

    /// Makes a registration entry.
    pub async fn create_entry(&mut self, entry: &NewEntry) -> Result<Entry, Error> {
        let request = proto::CreateEntryRequest {
            entry: Some(proto::Entry::try_from(entry)?),
        };
        let entry = self.client.create_entry(bounded(request)).await;
        entry.map_err(unchanged)?.into_inner().try_into()
    }

    /// All registration entries.
    pub async fn entries(&mut self) -> Result<Vec<Entry>, Error> {
        self.query_entries(&EntryFilter::default()).await
    }

    /// Deletes an entry and returns it; `reason` goes into the audit log.
    pub async fn delete_entry(&mut self, id: &str, reason: &str) -> Result<Entry, Error> {
        let request = proto::DeleteEntryRequest {
            id: id.to_owned(),
            reason: reason.to_owned(),
        };
        let entry = self.client.delete_entry(bounded(request)).await;
        entry.map_err(unchanged)?.into_inner().try_into()
    }

    /// The trust bundle.
    pub async fn bundle(&mut self) -> Result<TrustBundle, Error> {
        let bundle = self
            .client
            .get_bundle(bounded(proto::GetBundleRequest {}))
            .await;
        bundle.map_err(refused)?.into_inner().try_into()
    }

    /// Puts policy documents (name, text): all of them or, on an error, none.
    /// Returns them with their versions.
    pub async fn put_policies(
        &mut self,
        documents: &[(String, String)],
    ) -> Result<Vec<PolicyDocument>, Error> {
        self.put(proto::PutPoliciesRequest {
            policies: unversioned(documents),
            ..proto::PutPoliciesRequest::default()
        })
        .await
    }

    /// Puts another text in the place of this version of a document, and of no
    /// other. The reason is kept in the audit log.
    pub async fn replace_policy(
        &mut self,
        document: &PolicyDocument,
        text: String,
        reason: &str,
    ) -> Result<(), Error> {
        let policy = proto::Policy {
            name: document.name.clone(),
            text,
            version: document.version,
            ..proto::Policy::default()
        };
        let request = proto::PutPoliciesRequest {
            policies: vec![policy],
            reason: reason.to_owned(),
            ..proto::PutPoliciesRequest::default()
        };
        self.put(request).await.map(drop)
    }

    pub(super) async fn put(
        &mut self,
        request: proto::PutPoliciesRequest,
    ) -> Result<Vec<PolicyDocument>, Error> {
        let reply = self
            .client
            .put_policies(bounded(request))
            .await
            .map_err(unchanged)?;
        Ok(documents_of(reply.into_inner()))
    }

    /// All policy documents.
    pub async fn policies(&mut self) -> Result<Vec<PolicyDocument>, Error> {
        let reply = self
            .client
            .list_policies(bounded(proto::ListPoliciesRequest {}))
            .await;
        Ok(documents_of(reply.map_err(refused)?.into_inner()))
    }

    /// One policy document.
    pub async fn policy(&mut self, name: &str) -> Result<PolicyDocument, Error> {
        let request = proto::GetPolicyRequest {
            name: name.to_owned(),
        };
        let reply = self.client.get_policy(bounded(request)).await;
        Ok(reply.map_err(refused)?.into_inner().into())
    }

    /// Deletes policy documents: all of them or, on an error, none. Returns
    /// what was deleted.
    pub async fn delete_policies(
        &mut self,
        names: &[String],
        reason: &str,
    ) -> Result<Vec<PolicyDocument>, Error> {
        let request = proto::DeletePoliciesRequest {
            names: names.to_vec(),
            reason: reason.to_owned(),
        };
        let reply = self
            .client
            .delete_policies(bounded(request))
            .await
            .map_err(unchanged)?;
        Ok(documents_of(reply.into_inner()))
    }

    /// Puts somebody on the deny list; pushed at once. Returns the list's number.
    pub async fn revoke(&mut self, subject: &Subject, reason: &str) -> Result<u64, Error> {
        let request = revocation(subject, reason);
        Ok(self
            .client
            .revoke(bounded(request))
            .await
            .map_err(unchanged)?
            .into_inner()
            .number)
    }

    /// Takes somebody off the deny list; pushed at once. Returns the list's number.
    pub async fn unrevoke(&mut self, subject: &Subject, reason: &str) -> Result<u64, Error> {
        let request = revocation(subject, reason);
        Ok(self
            .client
            .unrevoke(bounded(request))
            .await
            .map_err(unchanged)?
            .into_inner()
            .number)
    }

    /// The deny list: its number and its lines.
    pub async fn revocations(&mut self) -> Result<(u64, Vec<Denial>), Error> {
        let reply = self
            .client
            .list_revocations(bounded(proto::ListRevocationsRequest {}))
            .await;
        let list = reply.map_err(refused)?.into_inner();
        let denials = list.denials.into_iter().map(Denial::try_from);
        Ok((list.number, denials.collect::<Result<_, _>>()?))
    }
}

fn revocation(subject: &Subject, reason: &str) -> proto::RevokeRequest {
    let denial = Denial {
        subject: subject.clone(),
        reason: reason.to_owned(),
        since_ms: 0,
    };
    proto::RevokeRequest {
        denial: Some(proto::Denial::from(&denial)),
    }
}

/// Documents (name, text), whatever version stands there now.
pub(super) fn unversioned(documents: &[(String, String)]) -> Vec<proto::Policy> {
    let policy = |(name, text): &(String, String)| proto::Policy {
        name: name.clone(),
        text: text.clone(),
        ..proto::Policy::default()
    };
    documents.iter().map(policy).collect()
}

fn documents_of(policies: proto::Policies) -> Vec<PolicyDocument> {
    policies
        .policies
        .into_iter()
        .map(PolicyDocument::from)
        .collect()
}
