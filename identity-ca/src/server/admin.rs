//! What operators may ask, on the Unix socket: root and the CA's owner.

use std::sync::Arc;

use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::state::State;
use crate::model::{Denial, Selector};
use crate::proto::admin_server::Admin;
use crate::registry::{EntryOrder, PolicyOrder, TokenOrder, session_address};
use crate::{Error, now_ms, proto};

const MAX_POLICIES: usize = 10_000;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

/// Lets root and the owner of this process in.
pub(super) fn only_owner(request: Request<()>) -> Result<Request<()>, Status> {
    let us = nix::unistd::geteuid().as_raw();
    match caller(&request) {
        Some(uid) if uid == 0 || uid == us => Ok(request),
        uid => {
            tracing::warn!(target: "handfast::audit", ?uid, "operator refused");
            Err(Status::permission_denied(format!(
                "only root and the CA's owner (uid {us}) administer it"
            )))
        }
    }
}

fn caller<T>(request: &Request<T>) -> Option<u32> {
    let info = request.extensions().get::<UdsConnectInfo>()?;
    info.peer_cred.map(|credentials| credentials.uid())
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        let now = self.state.now();
        let authority = &self.state.authority;
        let (alarms, tokens_open) = self.state.registry.counts().await?;
        let ranges = authority.prefix_ranges().iter().map(ToString::to_string);
        let joined = now.nodes.iter().filter(|node| node.joined_at_ms.is_some());
        Ok(Response::new(proto::StatusReply {
            trust_domain: authority.trust_domain().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms: now_ms(),
            sequence: now.revisions.last,
            root_not_after_ms: authority.root_not_after()? * 1000,
            issuing_not_after_ms: authority.issuing_not_after() * 1000,
            root_fingerprint: authority.root_fingerprint().to_string(),
            prefix_ranges: ranges.collect(),
            nodes: now.nodes.len() as u64,
            nodes_joined: joined.count() as u64,
            nodes_connected: self.state.nodes_connected() as u64,
            entries: now.entries.len() as u64,
            policies: now.policies.len() as u64,
            denials: now.deny.denials().len() as u64,
            tokens_open,
            alarms,
            listen: self.state.address().to_string(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenReply>, Status> {
        let uid = caller(&request);
        let request = request.into_inner();
        let order = token_order(&request)?;
        let node = order.node.clone();
        let made = self
            .state
            .change(|state| async move { state.registry.create_token(&order).await })
            .await?;
        tracing::info!(target: "handfast::audit", ?uid, %node, expires_at_ms = made.expires_at_ms, "token created");
        Ok(Response::new(proto::CreateTokenReply {
            token: made.secret.expose().to_owned(),
            trust_domain: self.state.authority.trust_domain().to_string(),
            node: node.to_string(),
            ca_address: request.ca_address,
            root_fingerprint: self.state.authority.root_fingerprint().to_string(),
            expires_at_ms: made.expires_at_ms,
            prefixes: made.prefixes.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::Nodes>, Status> {
        let nodes = self
            .state
            .registry
            .nodes_for_operators(&self.state.now().deny)
            .await?;
        Ok(Response::new(proto::Nodes {
            nodes: nodes.iter().map(proto::Node::from).collect(),
        }))
    }

    async fn create_entry(
        &self,
        request: Request<proto::CreateEntryRequest>,
    ) -> Result<Response<proto::Entry>, Status> {
        let uid = caller(&request);
        let entry = request.into_inner().entry;
        let order = entry_order(entry.ok_or_else(|| Status::invalid_argument("no entry"))?)?;
        let entry = self
            .state
            .change(|state| async move { state.registry.create_entry(&order).await })
            .await?;
        tracing::info!(target: "handfast::audit", ?uid, id = entry.id, spiffe_id = %entry.spiffe_id, "entry created");
        Ok(Response::new(proto::Entry::from(&entry)))
    }

    async fn list_entries(
        &self,
        _: Request<proto::ListEntriesRequest>,
    ) -> Result<Response<proto::Entries>, Status> {
        let now = self.state.now();
        let entries = now.entries.iter().map(proto::Entry::from).collect();
        Ok(Response::new(proto::Entries { entries }))
    }

    async fn delete_entry(
        &self,
        request: Request<proto::DeleteEntryRequest>,
    ) -> Result<Response<proto::Entry>, Status> {
        let uid = caller(&request);
        let id = request.into_inner().id;
        let entry = self
            .state
            .change(|state| async move { state.registry.delete_entry(&id).await })
            .await?;
        tracing::info!(target: "handfast::audit", ?uid, id = entry.id, spiffe_id = %entry.spiffe_id, "entry deleted");
        Ok(Response::new(proto::Entry::from(&entry)))
    }

    async fn get_bundle(
        &self,
        _: Request<proto::GetBundleRequest>,
    ) -> Result<Response<proto::Bundle>, Status> {
        Ok(Response::new(proto::Bundle::from(
            &*self.state.now().bundle,
        )))
    }

    async fn put_policies(
        &self,
        request: Request<proto::PutPoliciesRequest>,
    ) -> Result<Response<proto::Policies>, Status> {
        let uid = caller(&request);
        let policies = request.into_inner().policies;
        if policies.len() > MAX_POLICIES {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_POLICIES} documents at once"
            )));
        }
        let orders: Vec<PolicyOrder> = policies
            .into_iter()
            .map(|policy| PolicyOrder {
                name: policy.name,
                text: policy.text,
            })
            .collect();
        let documents = self
            .state
            .change(|state| async move { state.registry.put_policies(&orders).await })
            .await?;
        for document in &documents {
            tracing::info!(target: "handfast::audit", ?uid, name = document.name, version = document.version, "policy put");
        }
        let policies = documents.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn list_policies(
        &self,
        _: Request<proto::ListPoliciesRequest>,
    ) -> Result<Response<proto::Policies>, Status> {
        let now = self.state.now();
        let policies = now.policies.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn get_policy(
        &self,
        request: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::Policy>, Status> {
        let name = request.into_inner().name;
        let now = self.state.now();
        let policy = now.policies.iter().find(|policy| policy.name == name);
        let policy = policy.ok_or(Error::Missing {
            what: "policy",
            name,
        })?;
        Ok(Response::new(proto::Policy::from(policy)))
    }

    async fn delete_policies(
        &self,
        request: Request<proto::DeletePoliciesRequest>,
    ) -> Result<Response<proto::Policies>, Status> {
        let uid = caller(&request);
        let names = request.into_inner().names;
        let documents = self
            .state
            .change(|state| async move { state.registry.delete_policies(&names).await })
            .await?;
        for document in &documents {
            tracing::info!(target: "handfast::audit", ?uid, name = document.name, version = document.version, "policy deleted");
        }
        let policies = documents.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeReply>, Status> {
        let uid = caller(&request);
        let Denial {
            subject, reason, ..
        } = denial(request.into_inner())?;
        tracing::warn!(target: "handfast::audit", ?uid, %subject, reason, "revoke");
        let number = self
            .state
            .change(|state| async move { state.registry.revoke(subject, &reason).await })
            .await?;
        Ok(Response::new(proto::RevokeReply { number }))
    }

    async fn unrevoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeReply>, Status> {
        let uid = caller(&request);
        let Denial {
            subject, reason, ..
        } = denial(request.into_inner())?;
        tracing::warn!(target: "handfast::audit", ?uid, %subject, reason, "revocation undone");
        let number = self
            .state
            .change(|state| async move { state.registry.unrevoke(subject, &reason).await })
            .await?;
        Ok(Response::new(proto::RevokeReply { number }))
    }

    async fn list_revocations(
        &self,
        _: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::RevocationList>, Status> {
        let now = self.state.now();
        let denials = now.deny.denials().iter().map(proto::Denial::from).collect();
        Ok(Response::new(proto::RevocationList {
            number: now.deny.number(),
            denials,
        }))
    }
}

fn token_order(request: &proto::CreateTokenRequest) -> Result<TokenOrder, Error> {
    let prefix = |text: &String| {
        text.parse().map_err(|_| {
            Error::invalid(
                format!("prefix {text:?}"),
                "write ADDRESS/LENGTH, such as 10.1.0.0/24",
            )
        })
    };
    let underlay = request.underlay.iter().map(|text| session_address(text));
    Ok(TokenOrder {
        node: request.node.parse()?,
        prefixes: request
            .prefixes
            .iter()
            .map(prefix)
            .collect::<Result<_, _>>()?,
        underlay: underlay.collect::<Result<_, _>>()?,
        ca_address: request.ca_address.clone(),
        ttl_seconds: request.ttl_seconds.into(),
        managed: !request.joining,
    })
}

fn entry_order(entry: proto::Entry) -> Result<EntryOrder, Error> {
    let selectors = entry.selectors.into_iter().map(Selector::try_from);
    Ok(EntryOrder {
        spiffe_id: entry.spiffe_id,
        parent: entry.parent_id,
        selectors: selectors.collect::<Result<_, _>>()?,
        labels: entry.labels.into_iter().collect(),
        ttl: entry.workload_ttl_seconds,
        dns_names: entry.dns_names,
    })
}

fn denial(request: proto::RevokeRequest) -> Result<Denial, Error> {
    request
        .denial
        .ok_or_else(|| Error::invalid("revocation", "it names nobody"))?
        .try_into()
}
