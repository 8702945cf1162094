//! Who this node's workloads are: entries matched to endpoints, proof SVIDs asked for and taken in.

use std::collections::BTreeMap;
use std::sync::Arc;

use handfast_ca::client::NodeIdentity;
use handfast_ca::verify::NodeSvid;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::RunError;
use super::agent::{Agent, workload};
use crate::core::{self, Event, Identity};
use crate::endpoint::{Endpoint, EndpointId};
use crate::identity::{self, KnownEntry, Renewed};

impl Agent {
    /// Which endpoint is whom, after entries have changed.
    pub(super) async fn apply_entries(&mut self) -> Result<(), RunError> {
        for endpoint in self.endpoints.all().to_vec() {
            self.apply_identity(&endpoint).await?;
        }
        self.drop_unwanted().await
    }

    /// An endpoint is gone, and what it alone was.
    pub(super) async fn forget_identity(&mut self, endpoint: EndpointId) -> Result<(), RunError> {
        self.bearers.remove(&endpoint);
        // Nobody has the properties of one that is gone.
        self.workloads.set_endpoints(self.endpoints.all().to_vec());
        self.drop_unwanted().await
    }

    /// Proof SVIDs that no endpoint has any more.
    async fn drop_unwanted(&mut self) -> Result<(), RunError> {
        let wanted = self.wanted_entries();
        for gone in self.svids.retain(&wanted) {
            // Another entry may give the same identity: then it lives on with that one's SVID.
            let mut proofs = self.svids.proofs().values();
            let other = proofs.find(|svid| svid.identity == gone.identity);
            let event = match other {
                Some(other) => Event::IdentityReady(other.local_identity()),
                None => Event::IdentityGone(gone.identity),
            };
            self.feed(event).await;
        }
        self.ca.node_uses(self.svids.authorities());
        self.renew()?;
        self.tell_awaited();
        Ok(())
    }

    /// Tells policy and core who an endpoint is.
    pub(super) async fn apply_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), RunError> {
        // Its processes may ask who they are from now on.
        self.workloads.add_endpoint(endpoint.clone());
        self.bearers.remove(&endpoint.id);
        self.apply_identity(endpoint).await
    }

    /// Tells them what they do not know: one entry more concerns one endpoint, and each costs a look at every identity.
    async fn apply_identity(&mut self, endpoint: &Endpoint) -> Result<(), RunError> {
        let entry = self.matching(endpoint).cloned();
        let identity = entry.as_deref().map(identity);
        let told = self.bearers.get(&endpoint.id);
        if told.is_some_and(|told| told.as_deref().map(self::identity) == identity) {
            self.bearers.insert(endpoint.id, entry);
            return Ok(());
        }
        let workload = identity.as_ref().map(workload).transpose()?;
        let changes = self.policy.set_endpoint(endpoint.id, workload);
        self.write_policy_anew(&changes)?;
        self.feed(Event::EndpointAdded {
            endpoint: core::EndpointId(endpoint.id),
            addresses: endpoint.addresses.iter().copied().collect(),
            identity,
        })
        .await;
        self.bearers.insert(endpoint.id, entry);
        Ok(())
    }

    /// Who an endpoint is, as policy and core know it.
    pub(super) fn identity_of(&self, endpoint: &Endpoint) -> Option<Identity> {
        self.bearers.get(&endpoint.id)?.as_deref().map(identity)
    }

    /// The first entry that matches; a flow has one identity at each end.
    fn matching(&self, endpoint: &Endpoint) -> Option<&Arc<KnownEntry>> {
        let mut entries = self.knowledge.entries.iter();
        entries.find(|entry| identity::matches(entry.selectors(), endpoint))
    }

    fn wanted_entries(&self) -> Vec<KnownEntry> {
        let bearing = self.bearers.values().flatten();
        let wanted: BTreeMap<&str, &KnownEntry> =
            bearing.map(|entry| (entry.id.as_str(), &**entry)).collect();
        wanted.into_values().cloned().collect()
    }

    /// Asks for every certificate that is due.
    pub(super) fn renew(&mut self) -> Result<(), RunError> {
        let wanted = self.wanted_entries();
        let due = self.svids.due(self.clock.now().wall, &wanted)?;
        if !due.is_empty() {
            self.ca.renew(due);
        }
        Ok(())
    }

    /// The node is known by this SVID from now on.
    pub(super) fn take_identity(
        &mut self,
        identity: NodeIdentity,
        node: NodeSvid,
    ) -> Result<(), RunError> {
        self.identity = Arc::new(identity);
        self.node = node;
        // In use at once: a disk that refuses must not throw away what the CA has given.
        self.unsettled.identity = true;
        self.tls
            .set_credentials(self.identity.chain.clone(), private_key(&self.identity))?;
        self.ca.set_credentials(self.credentials());
        self.ca.node_uses(self.svids.authorities());
        self.settle_files();
        Ok(())
    }

    pub(super) async fn take_svid(
        &mut self,
        renewal: identity::Renewal,
        svid: handfast_ca::client::Svid,
        now: u64,
    ) -> Result<(), RunError> {
        let wanted = self.wanted_entries();
        let verifier = &self.verifier;
        let renewed = self.svids.accept(renewal, svid, verifier, &wanted, now)?;
        match renewed {
            Renewed::Node(renewed) => {
                let (identity, node) = *renewed;
                self.take_identity(identity, node)?;
            }
            Renewed::Proof(entry) => {
                if let Some(svid) = self.svids.proofs().get(&entry) {
                    let event = Event::IdentityReady(svid.local_identity());
                    self.feed(event).await;
                }
            }
            Renewed::Unwanted(entry) => {
                tracing::debug!(
                    entry,
                    "a proof SVID came for an entry that has gone or changed"
                );
                self.renew()?;
            }
        }
        self.ca.node_uses(self.svids.authorities());
        Ok(())
    }
}

fn identity(entry: &KnownEntry) -> Identity {
    Identity {
        spiffe_id: entry.spiffe_id.clone(),
        labels: entry.labels.clone(),
    }
}

/// A node's key as TLS wants it.
pub(super) fn private_key(identity: &NodeIdentity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.to_pkcs8().to_vec()))
}
