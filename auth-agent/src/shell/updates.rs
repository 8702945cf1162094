//! What the CA says, taken in: bundle, deny list, nodes, entries, policies, certificates.

use std::collections::HashSet;
use std::sync::Arc;

use handfast_ca::client::Update;
use handfast_ca::deny::DenyList;
use handfast_ca::model::{Node, Subject};
use handfast_ca::verify::Verifier;

use super::RunError;
use super::agent::Agent;
use super::alarms::Topic;
use super::contradictions::Contradictions;
use crate::core::{self, Event, NodeInfo};
use crate::endpoint::{Endpoint, EndpointId};
use crate::identity::{
    Change, Credentials, FromCa, IdentityError, KnownNode, KnownPolicy, serial_bytes,
};

/// What is in force, or known, but not everywhere where it must be. Tried again until it is.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    pub(super) nodes: bool,
    pub(super) entries: bool,
    pub(super) policy_map: bool,
    pub(super) trust: bool,
    pub(super) identity: bool,
    pub(super) knowledge: bool,
    pub(super) foreign: bool,
    pub(super) audit_heads: bool,
}

impl Agent {
    /// Something came over the link to the CA.
    pub(super) async fn hear_ca(&mut self, event: FromCa) {
        match event {
            FromCa::Connected { address } => {
                tracing::info!(ca = %address, "the CA is reached");
                self.ca_address = address;
                self.ca_connected = true;
                self.alarms.over(Topic::TurnedAway);
            }
            FromCa::Disconnected(reason) => {
                if self.ca_connected {
                    tracing::warn!(%reason, "the CA is no longer reached");
                } else {
                    tracing::debug!(%reason, "the CA is not reached");
                }
                self.ca_connected = false;
                if reason.turned_away {
                    self.turned_away(&reason.reason);
                }
            }
            FromCa::Attested(Ok(joined)) => {
                tracing::info!("the node has attested anew");
                let now = self.clock.now().wall;
                self.svids
                    .attested(&joined.identity.chain, joined.node.not_after, now);
                if let Err(error) = self.take_identity(joined.identity, joined.node) {
                    self.alarm(format!("the node's new SVID: {error}"));
                }
            }
            FromCa::Attested(Err(reason)) => {
                self.alarm(format!("the node could not attest anew: {reason}"));
            }
            FromCa::Update(update) => {
                let sequence = update.sequence;
                let not_understood = update.problems.first().cloned();
                let outcome = self.take_update(*update).await;
                let mut problem = outcome
                    .err()
                    .map(|error| error.to_string())
                    .or(not_understood);
                if self.unsettled.trust {
                    problem.get_or_insert_with(|| {
                        "bundle and deny list are in force, but not stored".into()
                    });
                }
                if let Some(problem) = &problem {
                    self.alarm(format!("update {sequence} of the CA: {problem}"));
                }
                self.ca.acknowledge(sequence, problem);
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
            FromCa::Clocks(None) => self.alarms.over(Topic::Clocks),
            FromCa::Clocks(Some(reason)) => {
                let text = format!("nothing is signed for this node: {reason}");
                self.alarm_about(Topic::Clocks, text);
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

    /// The CA does not want this node as it is: it may prove anew who it is.
    fn turned_away(&mut self, reason: &str) {
        match self.reattest.due(&self.store) {
            Ok(Some(by)) => self.ca.attest(by),
            Ok(None) => {
                let text = format!("the CA turns this node away: {reason}");
                self.alarm_about(Topic::TurnedAway, text);
            }
            Err(error) => self.alarm(format!("this node cannot attest anew: {error}")),
        }
    }

    /// Applies an update; what is wrong in one part does not keep the others from being applied.
    async fn take_update(&mut self, mut update: Update) -> Result<(), RunError> {
        self.clock.heard(update.ca_time_ms);
        // Revocations first: they must not wait for anything.
        let mut outcomes = Vec::new();
        // The first update of every stream carries all: only what is new is taken.
        if let Some(bundle) = &update.bundle
            && bundle != self.verifier.bundle()
        {
            let bundle = bundle.clone();
            let deny = self.verifier.deny_list().clone();
            self.set_verifier(Verifier::new(bundle, deny));
            self.unsettled.trust = true;
        }
        if let Some(list) = update.deny_list.take()
            && let Some(event) = self.adopt_deny_list(list)
        {
            self.feed(event).await;
        }
        // Most updates concern others, and say no more than that there was one. The first is stored in any case.
        self.unsettled.knowledge |= self.knowledge.sequence == 0 || is_to_be_known(&update);
        // Workloads wait for this on open streams; the rest may take its time.
        self.workloads.apply(Change::of(&update));
        if let Some(nodes) = update.nodes {
            let known = std::mem::take(&mut self.knowledge.nodes);
            self.knowledge.nodes = nodes.map(known_node).onto(known);
            self.unsettled.nodes = true;
        }
        if update.entries.is_some() {
            self.knowledge.entries = self.workloads.entries();
            self.unsettled.entries = true;
        }
        if let Some(federated) = update.federated {
            self.unsettled.foreign |= self.foreign.federated != federated;
            self.foreign.federated = federated;
        }
        if let Some(crls) = update.crls {
            self.unsettled.foreign |= self.foreign.crls != crls;
            self.foreign.crls = crls;
        }
        if let Some(servers) = update.servers {
            self.knowledge.servers = servers;
            let servers = self.knowledge.servers(&self.store.ca_address()?);
            self.ca.set_servers(servers);
        }
        if let Some(retired) = update.retired {
            self.svids.retire(&retired);
            self.knowledge.retired = retired;
        }
        // What was retired or revoked is replaced now.
        outcomes.push(self.renew());
        for head in update.audit_heads.into_iter().flatten() {
            match self.audit_heads.take(head) {
                Ok(changed) => self.unsettled.audit_heads |= changed,
                Err(tampered) => self.alarm(tampered.to_string()),
            }
        }
        if let Some(policies) = update.policies {
            let known = policies.into_iter().map(|policy| KnownPolicy {
                name: policy.name,
                text: policy.text,
                version: policy.version,
            });
            let old = std::mem::replace(&mut self.knowledge.policies, known.collect());
            let outcome = self.apply_policies().await;
            if self.policy_error.is_some() {
                // The last good ones stay in force, over a restart too.
                self.knowledge.policies = old;
            }
            outcomes.push(outcome);
        }
        self.knowledge.sequence = update.sequence;
        outcomes.push(self.settle().await);
        outcomes.into_iter().collect()
    }

    /// Does what an update or a failure has left to be done; what fails again stays for the next time.
    pub(super) async fn settle(&mut self) -> Result<(), RunError> {
        let mut outcomes = Vec::new();
        if std::mem::take(&mut self.unsettled.nodes) {
            let outcome = self.apply_nodes().await;
            self.unsettled.nodes |= outcome.is_err();
            outcomes.push(outcome);
        }
        if std::mem::take(&mut self.unsettled.entries) {
            let outcome = self.apply_entries().await;
            self.unsettled.entries |= outcome.is_err();
            outcomes.push(outcome);
        }
        outcomes.push(self.settle_policy_map());
        self.settle_files();
        outcomes.into_iter().collect()
    }

    /// Stores what is in force already. A disk that refuses is an alarm, and tried again.
    pub(super) fn settle_files(&mut self) {
        let store = &self.store;
        let todo = &mut self.unsettled;
        let mut refused = Vec::new();
        let mut save = |flag: &mut bool, outcome: Result<(), IdentityError>| match outcome {
            Ok(()) => *flag = false,
            Err(error) => refused.push(error.to_string()),
        };
        if todo.trust {
            save(&mut todo.trust, store.save_trust(&self.verifier));
        }
        if todo.identity {
            save(&mut todo.identity, store.save_identity(&self.identity));
        }
        if todo.foreign {
            save(&mut todo.foreign, store.save_foreign(&self.foreign));
        }
        if todo.audit_heads {
            let heads = self.audit_heads.all();
            save(&mut todo.audit_heads, store.save_audit_heads(heads));
        }
        if todo.knowledge {
            save(&mut todo.knowledge, store.save_knowledge(&self.knowledge));
        }
        for refusal in refused {
            self.alarm(refusal);
        }
    }

    /// A deny list from a peer: believed if the CA signed it and it is newer.
    pub(super) fn take_deny_list(&mut self, signed: &[u8]) -> Option<Event> {
        match DenyList::from_bytes(signed, self.verifier.bundle()) {
            Ok(list) => self.adopt_deny_list(list),
            Err(error) => {
                self.alarm(format!("a peer's deny list is not believed: {error}"));
                None
            }
        }
    }

    /// Judges by a newer list from now on. It is stored after it has cut, and before it is acknowledged: a disk that
    /// refuses must not let a revoked node go on.
    fn adopt_deny_list(&mut self, list: DenyList) -> Option<Event> {
        let ours = self.verifier.deny_list().number();
        if list.number() < ours {
            self.alarm(format!(
                "deny list {} is older than ours ({ours}): not taken",
                list.number()
            ));
        }
        if list.number() <= ours {
            return None;
        }
        let lifts = self.verifier.deny_list().denials().iter().any(|denial| {
            let mut still = list.denials().iter();
            !still.any(|other| other.subject == denial.subject)
        });
        if lifts {
            self.alarms.over(Topic::Revoked);
        }
        let event = deny_event(&list, &self.verifier);
        self.set_verifier(Verifier::new(self.verifier.bundle().clone(), list));
        self.unsettled.trust = true;
        Some(event)
    }

    /// Judges by this from now on: peers, the CA, and what workloads get.
    fn set_verifier(&mut self, verifier: Verifier) {
        let denied: HashSet<Vec<u8>> = verifier
            .deny_list()
            .denials()
            .iter()
            .filter_map(|denial| match &denial.subject {
                Subject::Serial(serial) => Some(serial_bytes(serial)),
                _ => None,
            })
            .collect();
        self.svids.replace_denied(|serial| denied.contains(serial));
        self.tls.set_verifier(verifier.clone());
        self.workloads.apply(Change {
            verifier: Some(verifier.clone()),
            ..Change::default()
        });
        self.verifier = verifier;
        self.ca.set_credentials(self.credentials());
    }

    pub(super) fn credentials(&self) -> Credentials {
        Credentials {
            verifier: self.verifier.clone(),
            identity: Arc::clone(&self.identity),
        }
    }

    /// The nodes of the mesh: the core learns where to dial, the routing table which prefixes are theirs.
    pub(super) async fn apply_nodes(&mut self) -> Result<(), RunError> {
        let own = self.node.spiffe_id.to_string();
        let sound = Contradictions::of(&own, &self.node.prefixes, &self.knowledge.nodes);
        let believed = |node: &KnownNode| {
            let prefixes = node.prefixes.iter().copied();
            prefixes
                .filter(|p| node.spiffe_id == own || sound.allow_prefix(p))
                .collect()
        };
        let nodes: Vec<NodeInfo> = self
            .knowledge
            .nodes
            .iter()
            .map(|node| NodeInfo {
                id: node.spiffe_id.clone(),
                name: node.name.clone(),
                addresses: node.underlay.clone(),
                prefixes: believed(node),
            })
            .collect();
        for told in sound.told {
            self.alarm(told);
        }
        // Whoever is managed now is so before anything else is done.
        let joining: Vec<_> = self
            .knowledge
            .nodes
            .iter()
            .filter(|node| node.joining)
            .flat_map(|node| node.prefixes.iter().copied())
            .collect();
        let judged = self.gates.set_joining(&joining);
        // The gates know a prefix before packets are routed to them.
        self.feed(Event::Nodes(nodes)).await;
        let routed = self.set_routes().await;
        let filtered = self.set_filter().await;
        let watched = self.attach_wires().await;
        judged.and(routed).and(filtered).and(watched)
    }

    /// Attached endpoints by number.
    pub(super) fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints
            .all()
            .iter()
            .find(|endpoint| endpoint.id == id)
    }
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

/// Whether an update has something of what is known over a restart.
fn is_to_be_known(update: &Update) -> bool {
    update.nodes.is_some()
        || update.entries.is_some()
        || update.policies.is_some()
        || update.servers.is_some()
        || update.retired.is_some()
}

/// A revoked node keeps its prefixes, so that nothing of it counts as outside the mesh; nobody dials it.
fn known_node(node: &Node) -> KnownNode {
    KnownNode {
        spiffe_id: node.spiffe_id.to_string(),
        name: node.name.to_string(),
        underlay: if node.revoked {
            Vec::new()
        } else {
            node.underlay.clone()
        },
        prefixes: node.prefixes.clone(),
        joining: !node.managed,
    }
}
