//! What the CA says, taken in: bundle, deny list, nodes, entries, policies, certificates.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use handfast_ca::client::Update;
use handfast_ca::deny::DenyList;
use handfast_ca::model::{Node, Subject};
use handfast_ca::verify::Verifier;
use handfast_encrypt::Tunnel;
use handfast_policies::{PolicySet, Source};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::RunError;
use super::agent::{Agent, workload};
use super::ca::{Credentials, FromCa, ToCa};
use crate::core::{self, Event, Identity, NodeInfo};
use crate::endpoint::{Endpoint, EndpointId};
use crate::identity::{self, KnownEntry, KnownNode, KnownPolicy, Renewed, serial_bytes};

impl Agent {
    /// Something came over the link to the CA.
    pub(super) async fn hear_ca(&mut self, event: FromCa) {
        match event {
            FromCa::Connected => {
                tracing::info!(ca = %self.ca_address, "the CA is reached");
                self.ca_connected = true;
            }
            FromCa::Disconnected(reason) => {
                if self.ca_connected {
                    tracing::warn!(%reason, "the CA is no longer reached");
                } else {
                    tracing::debug!(%reason, "the CA is not reached");
                }
                self.ca_connected = false;
            }
            FromCa::Update(update) => {
                let sequence = update.sequence;
                let problem = self.take_update(*update).await.err().map(|e| e.to_string());
                if let Some(problem) = &problem {
                    self.alarm(format!("update {sequence} of the CA: {problem}"));
                }
                self.ca.say(ToCa::Acknowledge(sequence, problem));
            }
            FromCa::Issued(answers) => {
                for (renewal, answer) in answers {
                    let now = self.clock.now().wall;
                    match answer {
                        Ok(svid) => {
                            let what = renewal.describe();
                            if let Err(error) = self.take_svid(renewal, svid, now).await {
                                self.alarm(format!("{what}: {error}"));
                            }
                        }
                        Err(refusal) => {
                            self.alarm(format!("the CA refuses {}: {refusal}", renewal.describe()));
                            self.svids.failed(&renewal, now);
                        }
                    }
                }
            }
            FromCa::NotIssued(renewals, reason) => {
                let now = self.clock.now().wall;
                tracing::info!(%reason, count = renewals.len(), "certificates were not issued");
                for renewal in &renewals {
                    self.svids.failed(renewal, now);
                }
            }
        }
    }

    /// Applies an update; what is wrong in one part does not keep the others from being applied.
    async fn take_update(&mut self, update: Update) -> Result<(), RunError> {
        self.clock.heard(update.ca_time_ms);
        let mut problem = Ok(());
        // The first update of every stream carries all. Taking a bundle makes the link anew, so only a new one is taken.
        if let Some(bundle) = update.bundle
            && bundle != *self.verifier.bundle()
        {
            self.store.save_bundle(&bundle)?;
            let deny = self.verifier.deny_list().clone();
            self.set_verifier(Verifier::new(bundle, deny));
            self.ca.set_credentials(self.credentials());
        }
        if let Some(list) = update.deny_list {
            self.set_deny_list(list).await?;
        }
        if let Some(nodes) = update.nodes {
            self.knowledge.nodes = nodes.iter().filter_map(known_node).collect();
            self.apply_nodes().await?;
        }
        if let Some(entries) = update.entries {
            self.knowledge.entries = entries.iter().map(known_entry).collect();
            self.apply_entries().await?;
        }
        if let Some(policies) = update.policies {
            let old = std::mem::replace(
                &mut self.knowledge.policies,
                policies
                    .into_iter()
                    .map(|policy| KnownPolicy {
                        name: policy.name,
                        text: policy.text,
                        version: policy.version,
                    })
                    .collect(),
            );
            problem = self.apply_policies().await;
            if problem.is_err() {
                // The last good ones stay in force, over a restart too.
                self.knowledge.policies = old;
            }
        }
        self.knowledge.sequence = update.sequence;
        self.store.save_knowledge(&self.knowledge)?;
        problem
    }

    /// A deny list from a peer: believed if the CA signed it and it is newer.
    pub(super) fn take_deny_list(&mut self, signed: &[u8]) -> Result<Option<Event>, RunError> {
        let list = match DenyList::from_bytes(signed, self.verifier.bundle()) {
            Ok(list) => list,
            Err(error) => {
                self.alarm(format!("a peer's deny list is not believed: {error}"));
                return Ok(None);
            }
        };
        self.adopt_deny_list(list)
    }

    async fn set_deny_list(&mut self, list: DenyList) -> Result<(), RunError> {
        if let Some(event) = self.adopt_deny_list(list)? {
            self.feed(event).await;
        }
        Ok(())
    }

    /// Stores a newer list and judges by it from now on; stored first, since it is acknowledged afterwards.
    fn adopt_deny_list(&mut self, list: DenyList) -> Result<Option<Event>, RunError> {
        let ours = self.verifier.deny_list().number();
        if list.number() < ours {
            self.alarm(format!(
                "deny list {} is older than ours ({ours}): not taken",
                list.number()
            ));
            return Ok(None);
        }
        if list.number() == ours {
            return Ok(None);
        }
        self.store.save_deny_list(&list)?;
        let event = deny_event(&list, &self.verifier);
        self.set_verifier(Verifier::new(self.verifier.bundle().clone(), list));
        Ok(Some(event))
    }

    fn set_verifier(&mut self, verifier: Verifier) {
        self.tls.set_verifier(verifier.clone());
        self.verifier = verifier;
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            verifier: self.verifier.clone(),
            identity: Arc::clone(&self.identity),
        }
    }

    /// The nodes of the mesh: the core learns where to dial, the routing table which prefixes are theirs.
    pub(super) async fn apply_nodes(&mut self) -> Result<(), RunError> {
        let nodes: Vec<NodeInfo> = self
            .knowledge
            .nodes
            .iter()
            .map(|node| NodeInfo {
                id: node.spiffe_id.clone(),
                name: node.name.clone(),
                addresses: node.underlay.clone(),
                prefixes: node.prefixes.clone(),
            })
            .collect();
        // The gates know a prefix before packets are routed to them.
        self.feed(Event::Nodes(nodes)).await;
        let own = self.node.spiffe_id.to_string();
        let prefixes: Vec<_> = self
            .knowledge
            .nodes
            .iter()
            .filter(|node| node.spiffe_id != own)
            .flat_map(|node| node.prefixes.iter().copied())
            .collect();
        self.routes
            .set(self.tunnel.device().index, &prefixes)
            .await?;
        self.attach_wires().await
    }

    /// Which endpoint is whom, after entries or endpoints have changed.
    pub(super) async fn apply_entries(&mut self) -> Result<(), RunError> {
        for endpoint in self.endpoints.all().to_vec() {
            self.apply_endpoint(&endpoint).await?;
        }
        let wanted = self.wanted_entries();
        for gone in self.svids.retain(&wanted) {
            self.feed(Event::IdentityGone(gone.identity)).await;
        }
        self.renew()
    }

    /// Tells policy and core who an endpoint is.
    pub(super) async fn apply_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), RunError> {
        let identity = self.identity_of(endpoint);
        let workload = identity.as_ref().map(workload).transpose()?;
        let changes = self.policy.set_endpoint(endpoint.id, workload);
        self.write_policy_anew(&changes)?;
        self.feed(Event::EndpointAdded {
            endpoint: core::EndpointId(endpoint.id),
            addresses: endpoint.addresses.iter().copied().collect(),
            identity,
        })
        .await;
        Ok(())
    }

    /// The identity of the first entry that matches; a flow has one identity at each end.
    pub(super) fn identity_of(&self, endpoint: &Endpoint) -> Option<Identity> {
        self.entry_of(endpoint).map(|entry| Identity {
            spiffe_id: entry.spiffe_id.clone(),
            labels: entry.labels.clone(),
        })
    }

    fn entry_of(&self, endpoint: &Endpoint) -> Option<&KnownEntry> {
        self.knowledge.entries.iter().find(|entry| {
            let selectors = entry.selectors.iter();
            identity::matches(selectors.map(|(k, v)| (k.as_str(), v.as_str())), endpoint)
        })
    }

    fn wanted_entries(&self) -> Vec<KnownEntry> {
        let mut wanted = BTreeMap::new();
        for endpoint in self.endpoints.all() {
            if let Some(entry) = self.entry_of(endpoint) {
                wanted.insert(entry.id.clone(), entry.clone());
            }
        }
        wanted.into_values().collect()
    }

    /// Asks for every certificate that is due.
    pub(super) fn renew(&mut self) -> Result<(), RunError> {
        let wanted = self.wanted_entries();
        let due = self.svids.due(self.clock.now().wall, &wanted)?;
        if !due.is_empty() {
            self.ca.say(ToCa::Issue(due));
        }
        Ok(())
    }

    async fn take_svid(
        &mut self,
        renewal: identity::Renewal,
        svid: handfast_ca::client::Svid,
        now: u64,
    ) -> Result<(), RunError> {
        match self.svids.accept(renewal, svid, &self.verifier, now)? {
            Renewed::Node(renewed) => {
                let (identity, node) = *renewed;
                self.store.save_identity(&identity)?;
                self.identity = Arc::new(identity);
                self.node = node;
                self.tls
                    .set_credentials(self.identity.chain.clone(), private_key(&self.identity))?;
                self.ca.set_credentials(self.credentials());
            }
            Renewed::Proof(entry) => {
                if let Some(svid) = self.svids.proofs().get(&entry) {
                    let event = Event::IdentityReady(svid.local_identity());
                    self.feed(event).await;
                }
            }
        }
        Ok(())
    }

    /// Reads the policies of the CA and of the folders that the agent was given, together; all of them or none.
    pub(super) async fn apply_policies(&mut self) -> Result<(), RunError> {
        let mut sources: Vec<Source> = self
            .knowledge
            .policies
            .iter()
            .map(|policy| Source {
                name: policy.name.clone(),
                text: policy.text.clone(),
            })
            .collect();
        let outcome = local_sources(&self.config.policy_paths)
            .map_err(|error| error.to_string())
            .and_then(|local| {
                sources.extend(local);
                PolicySet::read(sources).map_err(|errors| {
                    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    lines.join("; ")
                })
            });
        match outcome {
            Ok(set) => {
                self.policy_error = None;
                self.policy_version += 1;
                self.set_policies(Arc::new(set)).await
            }
            Err(error) => {
                self.policy_error = Some(error.clone());
                Err(RunError::Policy(format!(
                    "policies are not applied, the last good ones stay in force: {error}"
                )))
            }
        }
    }

    /// Attached endpoints by number.
    pub(super) fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints
            .all()
            .iter()
            .find(|endpoint| endpoint.id == id)
    }
}

/// A node's key as TLS wants it.
pub(super) fn private_key(identity: &handfast_ca::client::NodeIdentity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.to_pkcs8().to_vec()))
}

/// The deny list as the core compares it.
pub(super) fn deny_event(list: &DenyList, verifier: &Verifier) -> Event {
    let mut known = core::DenyList {
        number: list.number(),
        signed: list.bytes().to_vec(),
        ..core::DenyList::default()
    };
    for denial in list.denials() {
        match &denial.subject {
            Subject::SpiffeId(id) => {
                // A node may be named by its SPIFFE ID too.
                known.nodes.insert(id.to_string());
                known.identities.insert(id.to_string());
            }
            Subject::Node(name) => {
                if let Ok(id) = handfast_ca::node_id(verifier.bundle().trust_domain(), name) {
                    known.nodes.insert(id.to_string());
                }
            }
            Subject::Serial(serial) => {
                known.serials.insert(serial_bytes(serial));
            }
        }
    }
    Event::DenyList(Arc::new(known))
}

fn known_node(node: &Node) -> Option<KnownNode> {
    (!node.revoked).then(|| KnownNode {
        spiffe_id: node.spiffe_id.to_string(),
        name: node.name.to_string(),
        underlay: node.underlay.clone(),
        prefixes: node.prefixes.clone(),
    })
}

fn known_entry(entry: &handfast_ca::model::Entry) -> KnownEntry {
    KnownEntry {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.to_string(),
        selectors: entry
            .selectors
            .iter()
            .map(|selector| (selector.kind.clone(), selector.value.clone()))
            .collect(),
        labels: entry.labels.clone(),
    }
}

/// The documents of files and folders (`*.yaml`, `*.yml`, `*.json`), by name.
fn local_sources(paths: &[std::path::PathBuf]) -> std::io::Result<Vec<Source>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut inside: Vec<_> = std::fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()?;
            inside.retain(|path| is_policy(path));
            inside.sort();
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    files
        .into_iter()
        .map(|path| {
            Ok(Source {
                text: std::fs::read_to_string(&path)?,
                name: path.display().to_string(),
            })
        })
        .collect()
}

fn is_policy(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}
