//! Foreign trust domains: what operators ask. Who fetches their bundles is in [`poll`], who gives ours in [`endpoint`].

mod endpoint;
mod poll;

use std::sync::Arc;

use spiffe::TrustDomain;
use tonic::{Request, Response, Status};

use super::operator::{Operator, check_reason};
use super::state::State;
use crate::authority::trust_domain;
use crate::bundle::TrustBundle;
use crate::federation::{Endpoint, Profile, Relationship};
use crate::model::Role;
use crate::proto::federation_server::Federation;
use crate::{Error, proto};

pub(super) use self::endpoint::{Bound, bind, serve};
pub(super) use self::poll::{Fetcher, poll};

pub(super) struct Service {
    state: Arc<State>,
}

pub(super) fn service(state: Arc<State>) -> Service {
    Service { state }
}

#[tonic::async_trait]
impl Federation for Service {
    async fn list_federations(
        &self,
        request: Request<proto::ListFederationsRequest>,
    ) -> Result<Response<proto::ListFederationsReply>, Status> {
        self.state.operator(&request, Role::Auditor)?;
        let mut relationships = Vec::new();
        for relationship in self.state.registry.federations().await?.values() {
            relationships.push(self.shown(relationship).await?);
        }
        Ok(Response::new(proto::ListFederationsReply { relationships }))
    }

    async fn create_federation(
        &self,
        request: Request<proto::CreateFederationRequest>,
    ) -> Result<Response<proto::Relationship>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let name = request.trust_domain.clone();
        let created = self.create(request).await;
        let created = self
            .concluded("federation.create", &by, &name, "", created)
            .await?;
        // The first bundle is there at once, if the endpoint answers.
        self.state.fetcher.wake(&created);
        self.one(&created).await
    }

    async fn refresh_federation(
        &self,
        request: Request<proto::RefreshFederationRequest>,
    ) -> Result<Response<proto::Relationship>, Status> {
        let by = self.state.operator(&request, Role::Registrar)?;
        let name = request.into_inner().trust_domain;
        let refreshed = self.refresh(&name).await;
        let domain = self
            .concluded("federation.refresh", &by, &name, "", refreshed)
            .await?;
        self.one(&domain).await
    }

    async fn delete_federation(
        &self,
        request: Request<proto::DeleteFederationRequest>,
    ) -> Result<Response<proto::DeleteFederationReply>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let name = request.trust_domain.clone();
        let reason = request.reason.clone();
        let dry_run = request.dry_run;
        let deleted = self.delete(request).await;
        if dry_run {
            return Ok(Response::new(deleted?));
        }
        let deleted = self
            .concluded("federation.delete", &by, &name, &reason, deleted)
            .await?;
        Ok(Response::new(deleted))
    }

    async fn set_bundle(
        &self,
        request: Request<proto::SetBundleRequest>,
    ) -> Result<Response<proto::Relationship>, Status> {
        let by = self.state.operator(&request, Role::Admin)?;
        let request = request.into_inner();
        let bundle = request.bundle.unwrap_or_default();
        let name = bundle.trust_domain.clone();
        let reason = request.reason;
        let set = self.set(bundle, &reason).await;
        let domain = self
            .concluded("bundle.set", &by, &name, &reason, set)
            .await?;
        self.one(&domain).await
    }
}

impl Service {
    async fn create(&self, request: proto::CreateFederationRequest) -> Result<TrustDomain, Error> {
        let domain = trust_domain(&request.trust_domain)?;
        let endpoint = Endpoint::new(&request.url, &request.profile, &request.endpoint_id)?;
        let bundle = request.bundle.map(TrustBundle::try_from).transpose()?;
        if bundle
            .as_ref()
            .is_some_and(|bundle| *bundle.trust_domain() != domain)
        {
            return Err(Error::invalid("bundle", "it is of another trust domain"));
        }
        let now = self.state.now();
        if let Profile::Spiffe(id) = endpoint.profile() {
            // F-2: by what it is recognised at first.
            let theirs = id.trust_domain();
            let known = *theirs == domain && bundle.is_some()
                || theirs == now.bundle.trust_domain()
                || now
                    .federations
                    .get(theirs)
                    .is_some_and(|known| known.bundle.is_some());
            if !known {
                return Err(Error::invalid(
                    "bundle",
                    format!(
                        "https_spiffe needs a bundle of {theirs} to recognise the endpoint by: give one with --bundle, or set it with `handfast bundle set`"
                    ),
                ));
            }
        }
        let created = domain.clone();
        self.state
            .change(|state| async move {
                let registry = &state.registry;
                registry
                    .create_federation(&created, &endpoint, bundle.as_ref())
                    .await
            })
            .await?;
        Ok(domain)
    }

    async fn refresh(&self, name: &str) -> Result<TrustDomain, Error> {
        let domain = trust_domain(name)?;
        let relationship = self.known(&domain)?;
        poll::refresh(&self.state, &relationship).await?;
        Ok(domain)
    }

    async fn delete(
        &self,
        request: proto::DeleteFederationRequest,
    ) -> Result<proto::DeleteFederationReply, Error> {
        let domain = trust_domain(&request.trust_domain)?;
        self.known(&domain)?;
        let entries = self.state.registry.federating(&domain).await?;
        let reply = proto::DeleteFederationReply { entries };
        if request.dry_run {
            return Ok(reply);
        }
        check_reason(&request.reason)?;
        if entries > 0 && !request.force {
            return Err(Error::Conflict {
                what: "federation with",
                name: domain.to_string(),
                problem: format!(
                    "{entries} entries federate with it, and their workloads would take its workloads for strangers; nothing was changed: take it out of them first, or give --force"
                ),
            });
        }
        self.state
            .change(|state| async move { state.registry.delete_federation(&domain).await })
            .await?;
        Ok(reply)
    }

    async fn set(&self, bundle: proto::Bundle, reason: &str) -> Result<TrustDomain, Error> {
        let bundle = TrustBundle::try_from(bundle)?;
        let domain = bundle.trust_domain().clone();
        let now = self.state.now();
        let stands = now.federations.get(&domain);
        let stands = stands.and_then(|known| known.bundle.as_deref());
        let replaces = stands.is_some_and(|known| *known != bundle);
        if replaces || !reason.is_empty() {
            check_reason(reason)?;
        }
        self.state
            .change(|state| async move { state.registry.set_bundle(&bundle).await })
            .await?;
        Ok(domain)
    }

    fn known(&self, domain: &TrustDomain) -> Result<Relationship, Error> {
        let known = self.state.now().federations.get(domain).cloned();
        known.ok_or_else(|| Error::Missing {
            what: "federation with",
            name: domain.to_string(),
        })
    }

    async fn one(&self, domain: &TrustDomain) -> Result<Response<proto::Relationship>, Status> {
        let all = self.state.registry.federations().await?;
        let relationship = all
            .get(domain)
            .ok_or_else(|| Status::not_found("it is gone"))?;
        Ok(Response::new(self.shown(relationship).await?))
    }

    async fn shown(&self, relationship: &Relationship) -> Result<proto::Relationship, Error> {
        let entries = self
            .state
            .registry
            .federating(&relationship.trust_domain)
            .await?;
        let endpoint = relationship.endpoint.as_ref();
        let profile = endpoint.map(Endpoint::profile);
        let id = profile.and_then(|profile| profile.endpoint_id());
        let state = &relationship.state;
        Ok(proto::Relationship {
            trust_domain: relationship.trust_domain.to_string(),
            url: endpoint
                .map(|endpoint| endpoint.url().to_string())
                .unwrap_or_default(),
            profile: profile.map(ToString::to_string).unwrap_or_default(),
            endpoint_id: id.map(ToString::to_string).unwrap_or_default(),
            bundle: relationship.bundle.as_deref().map(proto::Bundle::from),
            created_ms: state.created_ms,
            fetched_ms: state.fetched_ms,
            tried_ms: state.tried_ms,
            problem: state.problem.clone(),
            entries,
        })
    }

    async fn concluded<T>(
        &self,
        act: &'static str,
        by: &Operator,
        name: &str,
        reason: &str,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        let reason = reason.to_owned();
        let detail = |act: crate::audit::Act, _: &T| match reason.as_str() {
            "" => act,
            reason => act.with("reason", reason),
        };
        self.state.conclude(act, by, name, result, detail).await
    }
}
