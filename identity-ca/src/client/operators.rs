//! An operator's work on roles, many entries, nodes and servers.

use std::path::Path;

use tonic::transport::Channel;

use super::admin::Admin;
use super::connect::bounded;
use super::{refused, unchanged};
use crate::certificate::Signer as _;
use crate::model::{CaServer, Entry, NodeAct, OperatorGrant, Role, Selector, TokenId, TokenRecord};
use crate::proto::operators_client::OperatorsClient;
use crate::proto::registry_client::RegistryClient;
use crate::{Error, NodeName, proto};

/// Entries of one message of an import.
const PIECE: usize = 500;
const MAX_MESSAGE: usize = 64 << 20;

/// Which entries are asked for; what is empty fits all.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// The identity.
    pub spiffe_id: Option<String>,
    /// SPIFFE ID of a node or of entries, name of a node, or `any`.
    pub parent: Option<String>,
    /// All of these are among the entry's.
    pub selectors: Vec<Selector>,
    /// The name of a trust domain.
    pub federates_with: Option<String>,
    /// The hint, whole.
    pub hint: Option<String>,
    /// Only those that end before this time (unix milliseconds).
    pub expires_before_ms: Option<u64>,
    /// Only those that apply to this node.
    pub node: Option<String>,
}

/// An entry that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FoundEntry {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// What it follows outside of the registry, such as `kubernetes/pod/UID`: whoever keeps it so writes it anew if it is
    /// changed by hand. None for an operator's own.
    pub owner: Option<String>,
}

/// What became of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct ImportOutcome {
    /// New ones.
    pub created: u64,
    /// Those that said something else before.
    pub updated: u64,
    /// Those that were there.
    pub unchanged: u64,
}

impl Admin {
    /// Everybody with a role, beside root and the CA's owner; and who asks.
    pub async fn operators(&mut self) -> Result<(Vec<OperatorGrant>, String, Role), Error> {
        let reply = self
            .operators_client()
            .list_operators(bounded(proto::ListOperatorsRequest {}))
            .await
            .map_err(refused)?
            .into_inner();
        let grants = reply.operators.into_iter().map(OperatorGrant::try_from);
        Ok((
            grants.collect::<Result<_, _>>()?,
            reply.you,
            reply.your_role.parse()?,
        ))
    }

    /// Gives a role to `uid:NUMBER` or a SPIFFE ID.
    pub async fn put_operator(
        &mut self,
        name: &str,
        role: Role,
        reason: &str,
    ) -> Result<OperatorGrant, Error> {
        let request = proto::PutOperatorRequest {
            name: name.to_owned(),
            role: role.to_string(),
            reason: reason.to_owned(),
        };
        let grant = self.operators_client().put_operator(bounded(request)).await;
        grant.map_err(unchanged)?.into_inner().try_into()
    }

    /// Takes a role away.
    pub async fn remove_operator(&mut self, name: &str, reason: &str) -> Result<(), Error> {
        let request = proto::RemoveOperatorRequest {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let reply = self
            .operators_client()
            .remove_operator(bounded(request))
            .await;
        reply.map(drop).map_err(unchanged)
    }

    /// The entries that fit, ordered by SPIFFE ID.
    pub async fn query_entries(&mut self, filter: &EntryFilter) -> Result<Vec<Entry>, Error> {
        let found = self.find_entries(filter).await?;
        Ok(found.into_iter().map(|found| found.entry).collect())
    }

    /// The same, with what they follow.
    pub async fn find_entries(&mut self, filter: &EntryFilter) -> Result<Vec<FoundEntry>, Error> {
        let request = proto::QueryEntriesRequest {
            spiffe_id: filter.spiffe_id.clone().unwrap_or_default(),
            parent_id: filter.parent.clone().unwrap_or_default(),
            selectors: filter.selectors.iter().map(proto::Selector::from).collect(),
            federates_with: filter.federates_with.clone().unwrap_or_default(),
            hint: filter.hint.clone().unwrap_or_default(),
            expires_before_ms: filter.expires_before_ms.unwrap_or(0),
            node: filter.node.clone().unwrap_or_default(),
        };
        let reply = self.registry_client().query_entries(request).await;
        let mut pieces = reply.map_err(refused)?.into_inner();
        let mut entries = Vec::new();
        while let Some(mut piece) = pieces.message().await.map_err(refused)? {
            for entry in piece.entries {
                let entry = Entry::try_from(entry)?;
                let owner = piece.owners.remove(&entry.id);
                entries.push(FoundEntry { entry, owner });
            }
        }
        Ok(entries)
    }

    /// One entry.
    pub async fn entry(&mut self, id: &str) -> Result<Entry, Error> {
        let request = proto::GetEntryRequest { id: id.to_owned() };
        let entry = self.registry_client().get_entry(bounded(request)).await;
        entry.map_err(refused)?.into_inner().try_into()
    }

    /// Writes an entry anew, unless somebody has since the revision that it names.
    pub async fn update_entry(&mut self, entry: &Entry) -> Result<Entry, Error> {
        let request = proto::UpdateEntryRequest {
            entry: Some(proto::Entry::from(entry)),
        };
        let entry = self.registry_client().update_entry(bounded(request)).await;
        entry.map_err(unchanged)?.into_inner().try_into()
    }

    /// Deletes entries, all or none, and returns them.
    pub async fn delete_entries(
        &mut self,
        ids: &[String],
        reason: &str,
    ) -> Result<Vec<Entry>, Error> {
        let request = proto::DeleteEntriesRequest {
            ids: ids.to_vec(),
            reason: reason.to_owned(),
        };
        let deleted = self
            .registry_client()
            .delete_entries(bounded(request))
            .await;
        let deleted = deleted.map_err(unchanged)?.into_inner().entries;
        deleted.into_iter().map(Entry::try_from).collect()
    }

    /// Takes entries in, all or none. One that is there (same SPIFFE ID,
    /// parent and selectors) and says something else is an error, or changed
    /// if `update` says so. A dry run changes nothing.
    pub async fn import_entries(
        &mut self,
        entries: &[super::admin::NewEntry],
        update: bool,
        dry_run: bool,
    ) -> Result<ImportOutcome, Error> {
        let mut messages = vec![proto::ImportEntriesRequest {
            update,
            dry_run,
            entries: Vec::new(),
        }];
        for piece in entries.chunks(PIECE) {
            messages.push(proto::ImportEntriesRequest {
                update,
                dry_run,
                entries: piece
                    .iter()
                    .map(proto::Entry::try_from)
                    .collect::<Result<_, Error>>()?,
            });
        }
        let reply = self
            .registry_client()
            .import_entries(tokio_stream::iter(messages))
            .await
            .map_err(unchanged)?
            .into_inner();
        Ok(ImportOutcome {
            created: reply.created,
            updated: reply.updated,
            unchanged: reply.unchanged,
        })
    }

    /// Evicts, bans, unbans, enforces or relaxes nodes: all or none. False if all was so already.
    pub async fn change_nodes(
        &mut self,
        act: NodeAct,
        names: &[NodeName],
        reason: &str,
    ) -> Result<bool, Error> {
        let act = match act {
            NodeAct::Evict => proto::NodeAct::Evict,
            NodeAct::Ban => proto::NodeAct::Ban,
            NodeAct::Unban => proto::NodeAct::Unban,
            NodeAct::Enforce => proto::NodeAct::Enforce,
            NodeAct::Relax => proto::NodeAct::Relax,
        };
        let request = proto::ChangeNodesRequest {
            act: act.into(),
            names: names.iter().map(ToString::to_string).collect(),
            reason: reason.to_owned(),
        };
        let reply = self.registry_client().change_nodes(bounded(request)).await;
        Ok(reply.map_err(unchanged)?.into_inner().sequence != 0)
    }

    /// Strikes nodes off that are gone for good: all of them, or none. Entries that have one of them as their parent go
    /// too if `with_entries`, and are in the way otherwise. Gives the IDs of those that went.
    pub async fn delete_nodes(
        &mut self,
        names: &[NodeName],
        with_entries: bool,
        reason: &str,
    ) -> Result<Vec<String>, Error> {
        self.strike_nodes(names, with_entries, reason, false).await
    }

    /// What [`Admin::delete_nodes`] would do: the IDs of the entries that would go, or why it would not be done.
    pub async fn would_delete_nodes(
        &mut self,
        names: &[NodeName],
        with_entries: bool,
        reason: &str,
    ) -> Result<Vec<String>, Error> {
        self.strike_nodes(names, with_entries, reason, true).await
    }

    async fn strike_nodes(
        &mut self,
        names: &[NodeName],
        with_entries: bool,
        reason: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Error> {
        let request = proto::DeleteNodesRequest {
            names: names.iter().map(ToString::to_string).collect(),
            with_entries,
            reason: reason.to_owned(),
            dry_run,
        };
        let reply = self.registry_client().delete_nodes(bounded(request)).await;
        Ok(reply.map_err(unchanged)?.into_inner().entries)
    }

    /// Join tokens that were made, the newest first; their secrets are not known.
    pub async fn tokens(&mut self) -> Result<Vec<TokenRecord>, Error> {
        let reply = self
            .registry_client()
            .list_tokens(bounded(proto::ListTokensRequest {}))
            .await;
        let tokens = reply.map_err(refused)?.into_inner().tokens;
        tokens.into_iter().map(TokenRecord::try_from).collect()
    }

    /// Makes tokens void that were lost, all of them or none; gives those that could have been used until now.
    pub async fn delete_tokens(
        &mut self,
        ids: &[TokenId],
        reason: &str,
    ) -> Result<Vec<TokenRecord>, Error> {
        let request = proto::DeleteTokensRequest {
            ids: ids.iter().map(ToString::to_string).collect(),
            reason: reason.to_owned(),
        };
        let reply = self.registry_client().delete_tokens(bounded(request)).await;
        let tokens = reply.map_err(unchanged)?.into_inner().tokens;
        tokens.into_iter().map(TokenRecord::try_from).collect()
    }

    /// Servers of this CA.
    pub async fn servers(&mut self) -> Result<Vec<CaServer>, Error> {
        let reply = self
            .registry_client()
            .list_servers(bounded(proto::ListServersRequest {}))
            .await;
        let servers = reply.map_err(refused)?.into_inner().servers;
        Ok(servers.into_iter().map(CaServer::from).collect())
    }

    /// Strikes a server that is gone off the list.
    pub async fn remove_server(&mut self, name: &str, reason: &str) -> Result<(), Error> {
        let request = proto::RemoveServerRequest {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let reply = self.registry_client().remove_server(bounded(request)).await;
        reply.map(drop).map_err(unchanged)
    }

    fn operators_client(&self) -> OperatorsClient<Channel> {
        OperatorsClient::new(self.channel.clone())
    }

    fn registry_client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

impl TryFrom<proto::OperatorGrant> for OperatorGrant {
    type Error = Error;

    fn try_from(grant: proto::OperatorGrant) -> Result<Self, Error> {
        Ok(Self {
            name: grant.name,
            role: grant.role.parse()?,
            created_at_ms: grant.created_at_ms,
            created_by: grant.created_by,
        })
    }
}

impl From<proto::CaServer> for CaServer {
    fn from(server: proto::CaServer) -> Self {
        Self {
            name: server.name,
            address: server.address,
            version: server.version,
            started_at_ms: server.started_at_ms,
            seen_at_ms: server.seen_at_ms,
            this: server.this,
            alive: server.alive,
        }
    }
}

/// An operator who calls from afar: the SVID that they show, with its key, and
/// the bundle by which they know the CA.
#[derive(Debug)]
pub struct Remote {
    pub(super) identity: super::NodeIdentity,
    pub(super) bundle: crate::bundle::TrustBundle,
}

impl Remote {
    /// Reads PEM files: the chain (leaf first), its PKCS#8 key, the roots.
    pub fn read(svid: &Path, key: &Path, bundle: &Path) -> Result<Self, Error> {
        use rustls_pki_types::CertificateDer;
        use rustls_pki_types::pem::PemObject;
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
            let text = std::fs::read(path).map_err(Error::io("cannot read", path))?;
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            match all {
                Ok(all) if !all.is_empty() => Ok(all),
                _ => Err(Error::invalid(
                    path.display().to_string(),
                    "holds no PEM certificate",
                )),
            }
        };
        let chain = certificates(svid)?;
        let roots = certificates(bundle)?;
        let leaf = chain
            .first()
            .ok_or_else(|| Error::invalid("SVID", "empty"))?;
        let (trust_domain, certified) = read_leaf(leaf)?;
        let text =
            zeroize::Zeroizing::new(std::fs::read(key).map_err(Error::io("cannot read", key))?);
        let bad = |problem: &str| Error::invalid(key.display().to_string(), problem);
        let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&text)
            .map_err(|_| bad("holds no PKCS#8 key in PEM"))?;
        let key = crate::certificate::PrivateKey::from_pkcs8(pkcs8.secret_pkcs8_der())?;
        if key.public_key() != certified {
            return Err(bad(&format!(
                "is not the key of the SVID in {}; give the two that were fetched together",
                svid.display()
            )));
        }
        let roots: Vec<Vec<u8>> = roots.iter().map(|root| root.to_vec()).collect();
        Ok(Self {
            identity: super::NodeIdentity { chain, key },
            bundle: crate::bundle::TrustBundle::new(trust_domain, 0, roots)?,
        })
    }
}

/// The trust domain of a certificate's SPIFFE ID, and its public key (a point): whoever it names, the CA judges.
fn read_leaf(leaf: &[u8]) -> Result<(spiffe::TrustDomain, Vec<u8>), Error> {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let none = || Error::invalid("SVID", "its first certificate has no SPIFFE ID");
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| none())?;
    let key = certificate.public_key().subject_public_key.data.to_vec();
    let names = certificate.subject_alternative_name().map_err(|_| none())?;
    let names = names.ok_or_else(none)?.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => spiffe::SpiffeId::new(*uri).ok(),
            _ => None,
        })
        .next()
        .map(|id| (id.trust_domain().clone(), key))
        .ok_or_else(none)
}
