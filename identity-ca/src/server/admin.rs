//! What operators may ask, by their role.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::operator::check_reason;
use super::state::State;
use crate::model::{Denial, PolicyDocument, Role};
use crate::proto::admin_server::Admin;
use crate::registry::{
    EntryOrder, NodeOrder, PolicyOrder, TokenOrder, TrialOrder, session_address,
};
use crate::{Error, now_ms, proto};

const MAX_POLICIES: usize = 10_000;

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let now = self.state.now();
        let authority = &self.state.authority;
        let (alarms, tokens_open) = self.state.registry.counts().await?;
        let alarm = |(at_ms, detail)| proto::Alarm { at_ms, detail };
        let newest = self.state.registry.newest_alarms().await?.into_iter();
        let ranges = authority.prefix_ranges().iter().map(ToString::to_string);
        let joined = now.nodes.all().filter(|node| node.joined_at_ms.is_some());
        Ok(Response::new(proto::StatusReply {
            trust_domain: authority.trust_domain().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms: now_ms(),
            sequence: now.revisions.last,
            root_not_after_ms: authority.root_not_after()? * 1000,
            issuing_not_after_ms: authority.issuing_not_after() * 1000,
            root_fingerprint: authority.root_fingerprint().to_string(),
            prefix_ranges: ranges.collect(),
            nodes: now.nodes.all().len() as u64,
            nodes_joined: joined.count() as u64,
            nodes_connected: self.state.nodes_connected() as u64,
            entries: now.entries.len() as u64,
            policies: now.policies.len() as u64,
            denials: now.deny.denials().len() as u64,
            tokens_open,
            alarms,
            newest_alarms: newest.map(alarm).collect(),
            listen: self.state.address().to_string(),
            recovery: self
                .state
                .recovery()
                .map(|recovery| recovery.reason())
                .unwrap_or_default(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenReply>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let request = request.into_inner();
        let order = token_order(&request);
        let order = self
            .state
            .asked("token.create", &by, &request.node, order)
            .await?;
        let node = order.node.name.clone();
        let made = self
            .state
            .change(|state| async move { state.registry.create_token(&order).await })
            .await;
        let made = self
            .state
            .conclude("token.create", &by, &node, made, |act, made| {
                act.with("id", made.secret.id().to_string())
                    .with("expires_at_ms", made.expires_at_ms)
            })
            .await?;
        Ok(Response::new(proto::CreateTokenReply {
            token: made.secret.expose().to_owned(),
            trust_domain: self.state.authority.trust_domain().to_string(),
            node: node.to_string(),
            ca_address: request.ca_address,
            root_fingerprint: made.root.to_string(),
            expires_at_ms: made.expires_at_ms,
            prefixes: made.prefixes.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::Nodes>, Status> {
        self.state.operator(&request, Role::Auditor)?;
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
        let by = self.state.operator(&request, Role::Registrar)?;
        let entry = request.into_inner().entry;
        let entry = entry.ok_or_else(|| Status::invalid_argument("no entry"))?;
        let subject = entry.spiffe_id.clone();
        let order = EntryOrder::try_from(entry);
        let order = order.and_then(|order| {
            self.state.may_touch(&by, [subject.as_str()])?;
            Ok(order)
        });
        let order = self
            .state
            .asked("entry.create", &by, &subject, order)
            .await?;
        let entry = self
            .state
            .change(|state| async move { state.registry.create_entry(&order).await })
            .await;
        let entry = self
            .state
            .conclude("entry.create", &by, subject, entry, |act, entry| {
                act.with("id", entry.id.as_str())
            })
            .await?;
        Ok(Response::new(proto::Entry::from(&entry)))
    }

    async fn list_entries(
        &self,
        request: Request<proto::ListEntriesRequest>,
    ) -> Result<Response<proto::Entries>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let now = self.state.now();
        let entries = now.entries.list(|_| true);
        let entries = entries.iter().map(|entry| proto::Entry::from(&**entry));
        let entries = entries.collect();
        Ok(Response::new(proto::Entries { entries }))
    }

    async fn delete_entry(
        &self,
        request: Request<proto::DeleteEntryRequest>,
    ) -> Result<Response<proto::Entry>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let request = request.into_inner();
        check_reason(&request.reason)?;
        let (id, ids) = (request.id.clone(), vec![request.id]);
        let deleted = self
            .state
            .change(|state| async move { state.registry.delete_entries(&ids).await })
            .await;
        let deleted = self
            .state
            .conclude("entry.delete", &by, id, deleted, |act, deleted| {
                let whose: Vec<String> = deleted
                    .iter()
                    .map(|entry| entry.spiffe_id.to_string())
                    .collect();
                act.with("spiffe_id", whose.join(" "))
                    .with("reason", request.reason)
            })
            .await?;
        let entry = deleted
            .first()
            .ok_or_else(|| Status::internal("no entry"))?;
        Ok(Response::new(proto::Entry::from(entry)))
    }

    async fn get_bundle(
        &self,
        request: Request<proto::GetBundleRequest>,
    ) -> Result<Response<proto::Bundle>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        Ok(Response::new(proto::Bundle::from(
            &*self.state.now().bundle,
        )))
    }

    async fn put_policies(
        &self,
        request: Request<proto::PutPoliciesRequest>,
    ) -> Result<Response<proto::Policies>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let proto::PutPoliciesRequest {
            policies,
            reason,
            confirm_within_ms,
        } = request.into_inner();
        if policies.len() > MAX_POLICIES {
            return Err(Status::invalid_argument(format!(
                "at most {MAX_POLICIES} documents at once"
            )));
        }
        let names = names_of(policies.iter().map(|policy| policy.name.as_str()));
        let orders: Vec<PolicyOrder> = policies
            .into_iter()
            .map(|policy| PolicyOrder {
                name: policy.name,
                text: policy.text,
                instead_of: Some(policy.version).filter(|version| *version > 0),
            })
            .collect();
        let trial = (confirm_within_ms > 0).then(|| TrialOrder {
            within: Duration::from_millis(confirm_within_ms),
            operator: by.to_string(),
        });
        let documents = self
            .state
            .change(move |state| async move {
                state.registry.apply_policies(&orders, trial.as_ref()).await
            })
            .await;
        let documents = self
            .state
            .conclude("policy.put", &by, names, documents, |act, documents| {
                let mut act = act.with("versions", versions(documents));
                if confirm_within_ms > 0 {
                    act = act.with("confirm_within_ms", confirm_within_ms);
                }
                if reason.is_empty() {
                    act
                } else {
                    act.with("reason", reason)
                }
            })
            .await?;
        let policies = documents.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn list_policies(
        &self,
        request: Request<proto::ListPoliciesRequest>,
    ) -> Result<Response<proto::Policies>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let now = self.state.now();
        let policies = now.policies.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn get_policy(
        &self,
        request: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::Policy>, Status> {
        self.state.operator(&request, Role::Auditor)?;
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
        let by = self.state.operator(&request, Role::Registrar)?;
        let request = request.into_inner();
        check_reason(&request.reason)?;
        let names = request.names;
        let subject = names_of(names.iter().map(String::as_str));
        let documents = self
            .state
            .change(|state| async move { state.registry.withdraw_policies(&names).await })
            .await;
        let documents = self
            .state
            .conclude(
                "policy.delete",
                &by,
                subject,
                documents,
                |act, documents| {
                    act.with("versions", versions(documents))
                        .with("reason", request.reason)
                },
            )
            .await?;
        let policies = documents.iter().map(proto::Policy::from).collect();
        Ok(Response::new(proto::Policies { policies }))
    }

    async fn revoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let named = named(&request);
        let Denial {
            subject, reason, ..
        } = self
            .state
            .asked("revocation.add", &by, named, denial(request))
            .await?;
        let (whom, why) = (subject.to_string(), reason.clone());
        let number = self
            .state
            .change(|state| async move { state.registry.revoke(subject, &reason).await })
            .await;
        let number = self
            .state
            .conclude("revocation.add", &by, whom, number, |act, number| {
                act.with("reason", why).with("number", *number)
            })
            .await?;
        Ok(Response::new(proto::RevokeReply { number }))
    }

    async fn unrevoke(
        &self,
        request: Request<proto::RevokeRequest>,
    ) -> Result<Response<proto::RevokeReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let named = named(&request);
        let Denial {
            subject, reason, ..
        } = self
            .state
            .asked("revocation.lift", &by, named, denial(request))
            .await?;
        let (whom, why) = (subject.to_string(), reason.clone());
        let number = self
            .state
            .change(|state| async move { state.registry.unrevoke(subject, &reason).await })
            .await;
        let number = self
            .state
            .conclude("revocation.lift", &by, whom, number, |act, number| {
                act.with("reason", why).with("number", *number)
            })
            .await?;
        Ok(Response::new(proto::RevokeReply { number }))
    }

    async fn list_revocations(
        &self,
        request: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::RevocationList>, Status> {
        self.state.operator(&request, Role::Auditor)?;
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
        node: NodeOrder {
            name: request.node.parse()?,
            prefixes: request
                .prefixes
                .iter()
                .map(prefix)
                .collect::<Result<_, _>>()?,
            underlay: underlay.collect::<Result<_, _>>()?,
            managed: !request.joining,
        },
        ca_address: request.ca_address.clone(),
        ttl_seconds: request.ttl_seconds.into(),
    })
}

/// Whom a revocation names, as it was written.
fn named(request: &proto::RevokeRequest) -> String {
    let denial = request.denial.as_ref();
    let subject = denial.and_then(|denial| denial.subject.as_ref());
    subject
        .map(|subject| format!("{subject:?}"))
        .unwrap_or_default()
}

fn denial(request: proto::RevokeRequest) -> Result<Denial, Error> {
    request
        .denial
        .ok_or_else(|| Error::invalid("revocation", "it names nobody"))?
        .try_into()
}

/// As many names as one line of the log takes.
fn names_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.take(64).collect::<Vec<_>>().join(" ")
}

fn versions(documents: &[PolicyDocument]) -> String {
    let versions = documents
        .iter()
        .map(|document| format!("{}:{}", document.name, document.version));
    versions.take(64).collect::<Vec<_>>().join(" ")
}
