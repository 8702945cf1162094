//! An operator looks after foreign trust domains.

use serde::Serialize;
use tonic::transport::Channel;

use super::admin::Admin;
use super::connect::bounded;
use super::{refused, unchanged};
use crate::bundle::TrustBundle;
use crate::proto::federation_client::FederationClient;
use crate::{Error, proto};

const MAX_MESSAGE: usize = 64 << 20;

/// A foreign trust domain.
#[derive(Debug, Clone, Serialize)]
pub struct Federation {
    /// Its name.
    pub trust_domain: String,
    /// Where its bundle is fetched; empty if it is set by hand.
    pub url: String,
    /// `https_web` or `https_spiffe`; empty without a URL.
    pub profile: String,
    /// Who answers there, with `https_spiffe`.
    pub endpoint_spiffe_id: String,
    /// The number of its latest bundle, if there is one.
    pub sequence: Option<u64>,
    /// How often it is fetched, in seconds.
    pub refresh_hint: u64,
    /// SHA-256 of its roots.
    pub roots: Vec<String>,
    /// Names of its JWT keys.
    pub jwt_keys: Vec<String>,
    /// When the relationship was made (unix milliseconds).
    pub created_ms: u64,
    /// When its bundle was fetched or set last; zero for never.
    pub fetched_ms: u64,
    /// When that was tried last.
    pub tried_ms: u64,
    /// Why the last try brought nothing; empty if it did.
    pub problem: String,
    /// Entries that federate with it.
    pub entries: u64,
    /// The bundle itself.
    #[serde(skip)]
    pub bundle: Option<TrustBundle>,
}

/// A relationship that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewFederation {
    /// Its name.
    pub trust_domain: String,
    /// Where its bundle is.
    pub url: String,
    /// `https_web` or `https_spiffe`.
    pub profile: String,
    /// Who answers there, with `https_spiffe`.
    pub endpoint_spiffe_id: String,
    /// What the endpoint is recognised by at first.
    pub bundle: Option<TrustBundle>,
}

impl TryFrom<proto::Relationship> for Federation {
    type Error = Error;

    fn try_from(one: proto::Relationship) -> Result<Self, Error> {
        let bundle = one.bundle.map(TrustBundle::try_from).transpose()?;
        let hint = bundle.as_ref().and_then(TrustBundle::refresh_hint);
        let roots = bundle.iter().flat_map(TrustBundle::fingerprints);
        let keys = bundle.iter().flat_map(TrustBundle::jwt_keys);
        Ok(Self {
            trust_domain: one.trust_domain,
            url: one.url,
            profile: one.profile,
            endpoint_spiffe_id: one.endpoint_id,
            sequence: bundle.as_ref().map(TrustBundle::sequence),
            refresh_hint: hint.unwrap_or(crate::bundle::DEFAULT_REFRESH_HINT),
            roots: roots.map(|print| print.to_string()).collect(),
            jwt_keys: keys.map(|key| key.key_id().to_owned()).collect(),
            created_ms: one.created_ms,
            fetched_ms: one.fetched_ms,
            tried_ms: one.tried_ms,
            problem: one.problem,
            entries: one.entries,
            bundle,
        })
    }
}

impl Admin {
    fn federation_client(&self) -> FederationClient<Channel> {
        FederationClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// All foreign trust domains, by name.
    pub async fn federations(&mut self) -> Result<Vec<Federation>, Error> {
        let request = bounded(proto::ListFederationsRequest {});
        let reply = self.federation_client().list_federations(request).await;
        let all = reply.map_err(refused)?.into_inner().relationships;
        all.into_iter().map(Federation::try_from).collect()
    }

    /// One of them.
    pub async fn federation(&mut self, trust_domain: &str) -> Result<Federation, Error> {
        let all = self.federations().await?;
        let found = all.into_iter().find(|one| one.trust_domain == trust_domain);
        found.ok_or_else(|| Error::Missing {
            what: "federation with",
            name: trust_domain.to_owned(),
        })
    }

    /// Makes a relationship; its bundle is fetched from now on.
    pub async fn create_federation(&mut self, new: NewFederation) -> Result<Federation, Error> {
        let request = proto::CreateFederationRequest {
            trust_domain: new.trust_domain,
            url: new.url,
            profile: new.profile,
            endpoint_id: new.endpoint_spiffe_id,
            bundle: new.bundle.as_ref().map(proto::Bundle::from),
        };
        let reply = self
            .federation_client()
            .create_federation(bounded(request))
            .await;
        reply.map_err(unchanged)?.into_inner().try_into()
    }

    /// Fetches a bundle now.
    pub async fn refresh_federation(&mut self, trust_domain: &str) -> Result<Federation, Error> {
        let trust_domain = trust_domain.to_owned();
        let request = proto::RefreshFederationRequest { trust_domain };
        let reply = self
            .federation_client()
            .refresh_federation(bounded(request))
            .await;
        reply.map_err(unchanged)?.into_inner().try_into()
    }

    /// Ends a relationship; the number of entries that federate with it.
    /// `dry_run` only counts them.
    pub async fn delete_federation(
        &mut self,
        trust_domain: &str,
        reason: &str,
        force: bool,
        dry_run: bool,
    ) -> Result<u64, Error> {
        let request = proto::DeleteFederationRequest {
            trust_domain: trust_domain.to_owned(),
            reason: reason.to_owned(),
            force,
            dry_run,
        };
        let reply = self
            .federation_client()
            .delete_federation(bounded(request))
            .await;
        Ok(reply.map_err(unchanged)?.into_inner().entries)
    }

    /// Puts the bundle of a foreign trust domain in place, whatever stood there.
    pub async fn set_bundle(
        &mut self,
        bundle: &TrustBundle,
        reason: &str,
    ) -> Result<Federation, Error> {
        let request = proto::SetBundleRequest {
            bundle: Some(proto::Bundle::from(bundle)),
            reason: reason.to_owned(),
        };
        let reply = self.federation_client().set_bundle(bounded(request)).await;
        reply.map_err(unchanged)?.into_inner().try_into()
    }
}
