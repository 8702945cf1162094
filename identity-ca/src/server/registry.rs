//! Entries, nodes and servers, for operators who look for some, or change many.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::nodes;
use super::operator::check_reason;
use super::state::State;
use crate::audit::Act;
use crate::convert::trust_domains;
use crate::model::{Entry, Role, Selector};
use crate::names::operator_id;
use crate::proto::registry_server::Registry;
use crate::registry::{EntryOrder, Imported, parent_of};
use crate::{Error, NodeName, proto};

/// Entries of one message of a listing.
const PIECE: usize = 1000;
/// What one import may hold.
const MAX_IMPORT: usize = 200_000;
const MAX_IMPORT_BYTES: usize = 256 << 20;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Registry for Service {
    type QueryEntriesStream = ReceiverStream<Result<proto::FoundEntries, Status>>;

    async fn query_entries(
        &self,
        request: Request<proto::QueryEntriesRequest>,
    ) -> Result<Response<Self::QueryEntriesStream>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let found = self.find(request.into_inner())?;
        let owners = self.owners().await;
        let (sender, pieces) = mpsc::channel(2);
        tokio::spawn(async move {
            for piece in found.chunks(PIECE) {
                let entries = piece.iter().map(|entry| proto::Entry::from(&**entry));
                let owned = piece
                    .iter()
                    .filter_map(|entry| owners.get_key_value(&entry.id));
                let found = proto::FoundEntries {
                    entries: entries.collect(),
                    owners: owned
                        .map(|(id, owner)| (id.clone(), owner.clone()))
                        .collect(),
                };
                if sender.send(Ok(found)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(pieces)))
    }

    async fn get_entry(
        &self,
        request: Request<proto::GetEntryRequest>,
    ) -> Result<Response<proto::Entry>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let id = request.into_inner().id;
        let entry = self.state.now().entries.get(&id);
        let entry = entry.ok_or(Error::Missing {
            what: "entry",
            name: id.chars().take(64).collect(),
        })?;
        Ok(Response::new(proto::Entry::from(&*entry)))
    }

    async fn update_entry(
        &self,
        request: Request<proto::UpdateEntryRequest>,
    ) -> Result<Response<proto::Entry>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let entry = request.into_inner().entry;
        let entry = entry.ok_or_else(|| Status::invalid_argument("no entry"))?;
        let (id, revision) = (entry.id.clone(), entry.revision);
        let before = self.state.now().entries.get(&id);
        let before = before.map(|entry| entry.spiffe_id.to_string());
        let order = EntryOrder::try_from(entry).and_then(|order| {
            let ids = before.iter().chain([&order.spiffe_id]);
            self.state.may_touch(&by, ids.map(String::as_str))?;
            Ok(order)
        });
        let order = self.state.asked("entry.update", &by, &id, order).await?;
        let updated = {
            let id = id.clone();
            self.state
                .change(move |state| async move {
                    state.registry.update_entry(&id, revision, &order).await
                })
                .await
        };
        let updated = self
            .state
            .conclude("entry.update", &by, id, updated, |act, entry| {
                act.with("spiffe_id", entry.spiffe_id.to_string())
                    .with("revision", entry.revision)
            })
            .await?;
        Ok(Response::new(proto::Entry::from(&updated)))
    }

    async fn delete_entries(
        &self,
        request: Request<proto::DeleteEntriesRequest>,
    ) -> Result<Response<proto::Entries>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let proto::DeleteEntriesRequest { ids, reason } = request.into_inner();
        check_reason(&reason)?;
        if ids.len() > MAX_IMPORT {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_IMPORT} entries at once"
            )));
        }
        let subject = format!("{} entries", ids.len());
        let deleted = self
            .state
            .change(|state| async move { state.registry.delete_entries(&ids).await })
            .await;
        let all = deleted.as_deref().unwrap_or_default();
        self.state.record_deleted(all, &by, &reason).await?;
        let deleted = self
            .state
            .conclude("entry.delete", &by, subject, deleted, |act, _| {
                act.with("reason", reason.as_str())
            })
            .await?;
        let entries = deleted.iter().map(proto::Entry::from).collect();
        Ok(Response::new(proto::Entries { entries }))
    }

    async fn import_entries(
        &self,
        request: Request<Streaming<proto::ImportEntriesRequest>>,
    ) -> Result<Response<proto::ImportEntriesReply>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let import = Import::read(request.into_inner()).await?;
        let ids = import.orders.iter().map(|order| order.spiffe_id.as_str());
        let (count, dry_run) = (import.orders.len(), import.dry_run);
        let subject = format!("{count} entries");
        let touched = self.state.may_touch(&by, ids);
        self.state
            .asked("entry.import", &by, &subject, touched)
            .await?;
        let imported = self
            .state
            .change(move |state| async move {
                state
                    .registry
                    .import_entries(&import.orders, import.update, import.dry_run)
                    .await
            })
            .await;
        if dry_run {
            return Ok(Response::new(imported.map(|outcome| tally(&outcome))?));
        }
        let all = imported.as_deref().unwrap_or_default();
        let one = |one: &Imported| {
            let (act, id, spiffe_id) = match one {
                Imported::Created(id, spiffe_id) => ("entry.create", id, spiffe_id),
                Imported::Updated(id, spiffe_id) => ("entry.update", id, spiffe_id),
                Imported::Unchanged => return None,
            };
            let act = Act::done(act, &by, spiffe_id).with("id", id.as_str());
            Some(act.with("import", true))
        };
        self.state.record_all(all, one).await?;
        let reply = imported.map(|outcome| tally(&outcome));
        let reply = self
            .state
            .conclude("entry.import", &by, subject, reply, |act, reply| {
                act.with("created", reply.created)
                    .with("updated", reply.updated)
                    .with("unchanged", reply.unchanged)
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn change_nodes(
        &self,
        request: Request<proto::ChangeNodesRequest>,
    ) -> Result<Response<proto::ChangeNodesReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        nodes::change(&self.state, &by, request.into_inner()).await
    }

    async fn delete_nodes(
        &self,
        request: Request<proto::DeleteNodesRequest>,
    ) -> Result<Response<proto::DeleteNodesReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        nodes::delete(&self.state, &by, request.into_inner()).await
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        nodes::tokens(&self.state).await
    }

    async fn delete_tokens(
        &self,
        request: Request<proto::DeleteTokensRequest>,
    ) -> Result<Response<proto::DeleteTokensReply>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        nodes::delete_tokens(&self.state, &by, request.into_inner()).await
    }

    async fn list_servers(
        &self,
        request: Request<proto::ListServersRequest>,
    ) -> Result<Response<proto::ListServersReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let servers = self.state.registry.servers().await?;
        let own = self.state.authority.server();
        let servers = servers.iter().map(|server| proto::CaServer {
            name: server.name.clone(),
            address: server.address.clone(),
            version: server.version.clone(),
            started_at_ms: server.started_at_ms,
            seen_at_ms: server.seen_at_ms,
            this: server.name == own,
            alive: server.alive,
        });
        Ok(Response::new(proto::ListServersReply {
            servers: servers.collect(),
        }))
    }

    async fn remove_server(
        &self,
        request: Request<proto::RemoveServerRequest>,
    ) -> Result<Response<proto::RemoveServerReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let proto::RemoveServerRequest { name, reason } = request.into_inner();
        check_reason(&reason)?;
        if name == self.state.authority.server() {
            return Err(Status::failed_precondition(
                "this server does not remove itself: ask another one; nothing was changed",
            ));
        }
        let removed = {
            let name = name.clone();
            self.state
                .change(|state| async move { state.registry.remove_server(&name).await })
                .await
        };
        self.state
            .conclude("server.remove", &by, name, removed, |act, ()| {
                act.with("reason", reason)
            })
            .await?;
        Ok(Response::new(proto::RemoveServerReply {}))
    }
}

impl Service {
    /// What entries follow, by their IDs. A store that does not answer keeps nobody from seeing the entries themselves.
    async fn owners(&self) -> HashMap<String, String> {
        match self.state.registry.owned_entries().await {
            Ok(owned) => owned
                .into_iter()
                .map(|(owner, entry)| (entry, owner))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "what entries follow cannot be read");
                HashMap::new()
            }
        }
    }

    fn find(&self, asked: proto::QueryEntriesRequest) -> Result<Vec<Arc<Entry>>, Error> {
        let now = self.state.now();
        if !asked.spiffe_id.is_empty() {
            operator_id(&asked.spiffe_id)?;
        }
        let domain = self.state.authority.trust_domain();
        let parent = match asked.parent_id.as_str() {
            "" => None,
            text => Some(parent_of(text, domain)?),
        };
        let selectors: Vec<Selector> = asked
            .selectors
            .into_iter()
            .map(Selector::try_from)
            .collect::<Result<_, _>>()?;
        let federates = match asked.federates_with.as_str() {
            "" => None,
            name => trust_domains(&[name.to_owned()])?.pop(),
        };
        let fits = |entry: &Entry| {
            (asked.spiffe_id.is_empty() || entry.spiffe_id.to_string() == asked.spiffe_id)
                && parent.as_ref().is_none_or(|id| entry.parent_id == *id)
                && selectors.iter().all(|one| entry.selectors.contains(one))
                && federates
                    .as_ref()
                    .is_none_or(|domain| entry.federates_with.contains(domain))
                && (asked.hint.is_empty() || entry.hint == asked.hint)
                && (asked.expires_before_ms == 0 || entry.is_expired(asked.expires_before_ms))
        };
        if asked.node.is_empty() {
            return Ok(now.entries.list(fits));
        }
        let name: NodeName = asked.node.parse()?;
        let node = now.node(&name).ok_or(Error::Missing {
            what: "node",
            name: asked.node,
        })?;
        let mut entries = now.entries_of(node);
        entries.retain(|entry| fits(entry));
        Ok(entries)
    }
}

/// An import that was received whole.
struct Import {
    orders: Vec<EntryOrder>,
    update: bool,
    dry_run: bool,
}

impl Import {
    async fn read(mut messages: Streaming<proto::ImportEntriesRequest>) -> Result<Self, Status> {
        let mut import = Self {
            orders: Vec::new(),
            update: false,
            dry_run: false,
        };
        let (mut first, mut bytes) = (true, 0);
        while let Some(message) = messages.message().await? {
            if first {
                (import.update, import.dry_run) = (message.update, message.dry_run);
                first = false;
            }
            bytes += prost::Message::encoded_len(&message);
            if import.orders.len() + message.entries.len() > MAX_IMPORT || bytes > MAX_IMPORT_BYTES
            {
                return Err(Status::invalid_argument(format!(
                    "an import holds at most {MAX_IMPORT} entries and 256 MiB; nothing was imported"
                )));
            }
            for entry in message.entries {
                let position = import.orders.len() + 1;
                let order = EntryOrder::try_from(entry).map_err(|error| {
                    Status::invalid_argument(format!(
                        "entry number {position}: {error}; nothing was imported"
                    ))
                })?;
                import.orders.push(order);
            }
        }
        Ok(import)
    }
}

fn tally(outcome: &[Imported]) -> proto::ImportEntriesReply {
    let count = |of: fn(&Imported) -> bool| outcome.iter().filter(|one| of(one)).count() as u64;
    proto::ImportEntriesReply {
        created: count(|one| matches!(one, Imported::Created(..))),
        updated: count(|one| matches!(one, Imported::Updated(..))),
        unchanged: count(|one| matches!(one, Imported::Unchanged)),
    }
}
