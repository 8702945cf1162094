//! The identity half of an agent, alone: the node's SVID kept fresh, what the CA says taken in and acknowledged,
//! workloads served. No gates, no sessions, no tunnel; what follows from an update beyond identities is left out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handfast_ca::client::{Joined, Update};
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{
    AuditHeads, Beginning, Change, Credentials, Foreign, FromCa, IdentityError, Knowledge, Link,
    NodeStore, Reattest, Renewed, Svids, Workloads,
};
use crate::clock::Clock;
use crate::shell::{give_back_heap, keep_heap_together};

const HOUSEKEEPING: Duration = Duration::from_secs(2);
const QUEUE: usize = 64;

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last update that was taken in.
    pub sequence: u64,
    /// The trust bundle in force.
    pub bundle: u64,
    /// When the node's own SVID ends (unix seconds).
    pub node_not_after: u64,
}

/// A running identity agent; it ends when dropped.
#[derive(Debug)]
pub struct Standalone {
    workloads: Workloads,
    link: Link,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

impl Standalone {
    /// Starts the agent of a node that has joined. `folder`, if it lies in memory, keeps workloads' SVIDs for the
    /// next one.
    pub fn start(store: NodeStore, folder: Option<PathBuf>) -> Result<Self, IdentityError> {
        keep_heap_together();
        let identity = Arc::new(store.identity()?);
        let verifier = store.trust()?;
        let node = verifier
            .node(&identity.chain, UnixTime::now())
            .map_err(handfast_ca::Error::from)?;
        let knowledge = store.knowledge()?;
        let foreign = store.foreign()?;
        let audit_heads = AuditHeads::new(store.audit_heads(verifier.bundle())?);
        let credentials = Credentials { verifier, identity };
        let (sender, events) = mpsc::channel(QUEUE);
        let servers = knowledge.servers(&store.ca_address()?);
        let link = Link::start(servers, credentials.clone(), sender);
        let clock = Clock::new();
        let mut svids = Svids::new(
            &credentials.identity.chain,
            node.not_after,
            clock.now().wall,
        );
        svids.retire(&knowledge.retired);
        link.node_uses(svids.authorities());
        let beginning = Beginning {
            folder,
            ..Beginning::of(&node, &credentials.verifier, &knowledge, &foreign)
        };
        let (workloads, not_kept) = Workloads::start(beginning, link.clone());
        if let Some(problem) = not_kept {
            tracing::warn!(%problem, "workloads' SVIDs are not kept for a restart");
        }
        let (progress, watched) = watch::channel(Progress {
            sequence: knowledge.sequence,
            bundle: credentials.verifier.bundle().sequence(),
            node_not_after: node.not_after,
        });
        let agent = Loop {
            store,
            credentials,
            svids,
            knowledge,
            foreign,
            audit_heads,
            clock,
            link: link.clone(),
            workloads: workloads.clone(),
            progress,
            reattest: Reattest::default(),
            weighed: 0,
        };
        Ok(Self {
            workloads,
            link,
            progress: watched,
            task: tokio::spawn(agent.run(events)),
        })
    }

    /// Whom its workloads ask.
    pub fn workloads(&self) -> &Workloads {
        &self.workloads
    }

    /// How it reaches the CA.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// How far it has come.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Loop {
    store: NodeStore,
    credentials: Credentials,
    svids: Svids,
    knowledge: Knowledge,
    foreign: Foreign,
    audit_heads: AuditHeads,
    clock: Clock,
    link: Link,
    workloads: Workloads,
    progress: watch::Sender<Progress>,
    reattest: Reattest,
    /// SVIDs that were held when memory was given back last.
    weighed: usize,
}

impl Loop {
    async fn run(mut self, mut events: mpsc::Receiver<FromCa>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                _ = housekeeping.tick() => {
                    self.give_back();
                    self.renew()
                }
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "the agent goes on");
            }
        }
    }

    fn hear(&mut self, event: FromCa) -> Result<(), IdentityError> {
        match event {
            FromCa::Connected { .. } => Ok(()),
            FromCa::Disconnected(reason) => {
                tracing::debug!(%reason, "the CA is not reached");
                if reason.turned_away
                    && let Some(by) = self.reattest.due(&self.store)?
                {
                    self.link.attest(by);
                }
                Ok(())
            }
            FromCa::Attested(Ok(joined)) => self.attested(*joined),
            FromCa::Attested(Err(reason)) => {
                tracing::warn!(%reason, "the node could not attest anew");
                Ok(())
            }
            FromCa::Update(update) => {
                let sequence = update.sequence;
                let taken = self.take(*update);
                let problem = taken.as_ref().err().map(ToString::to_string);
                self.link.acknowledge(sequence, problem);
                taken
            }
            FromCa::Issued(answers) => {
                let now = self.clock.now().wall;
                for (renewal, answer) in answers {
                    match answer {
                        Ok(svid) => {
                            let verifier = &self.credentials.verifier;
                            let renewed = self.svids.accept(renewal, svid, verifier, &[], now)?;
                            self.renewed(renewed)?;
                        }
                        Err(refusal) => {
                            tracing::warn!(%refusal, "the CA refuses {}", renewal.describe());
                            self.svids.failed(&renewal, now);
                        }
                    }
                }
                Ok(())
            }
            FromCa::Clocks(reason) => {
                if let Some(reason) = reason {
                    tracing::warn!("nothing is signed for this node: {reason}");
                }
                Ok(())
            }
            FromCa::NotIssued(renewals, reason) => {
                tracing::debug!(%reason, "certificates were not issued");
                let now = self.clock.now().wall;
                for renewal in &renewals {
                    self.svids.failed(renewal, now);
                }
                Ok(())
            }
        }
    }

    /// In force first, then stored, then acknowledged.
    fn take(&mut self, update: Update) -> Result<(), IdentityError> {
        self.clock.heard(update.ca_time_ms);
        let mut change = Change::of(&update);
        let deny = update
            .deny_list
            .filter(|list| list.number() > self.credentials.verifier.deny_list().number());
        if update.bundle.is_some() || deny.is_some() {
            let now = &self.credentials.verifier;
            let bundle = update.bundle.unwrap_or_else(|| now.bundle().clone());
            let deny = deny.unwrap_or_else(|| now.deny_list().clone());
            self.credentials.verifier = Verifier::new(bundle, deny);
            self.link.set_credentials(self.credentials.clone());
            change.verifier = Some(self.credentials.verifier.clone());
        }
        let verifier = change.verifier.clone();
        self.workloads.apply(change);
        if update.entries.is_some() {
            self.knowledge.entries = self.workloads.entries();
        }
        if let Some(retired) = update.retired {
            self.svids.retire(&retired);
            self.knowledge.retired = retired;
            self.renew()?;
        }
        if let Some(servers) = update.servers {
            self.knowledge.servers = servers;
            let servers = self.knowledge.servers(&self.store.ca_address()?);
            self.link.set_servers(servers);
        }
        if let Some(verifier) = verifier {
            self.store.save_trust(&verifier)?;
        }
        if update.federated.is_some() || update.crls.is_some() {
            let known = &mut self.foreign;
            known.federated = update
                .federated
                .unwrap_or(std::mem::take(&mut known.federated));
            known.crls = update.crls.unwrap_or(std::mem::take(&mut known.crls));
            self.store.save_foreign(&self.foreign)?;
        }
        self.compare(update.audit_heads.into_iter().flatten())?;
        self.knowledge.sequence = update.sequence;
        self.store.save_knowledge(&self.knowledge)?;
        self.progress.send_modify(|progress| {
            progress.sequence = update.sequence;
            progress.bundle = self.credentials.verifier.bundle().sequence();
        });
        Ok(())
    }

    fn compare(
        &mut self,
        heads: impl Iterator<Item = handfast_ca::audit::AuditHead>,
    ) -> Result<(), IdentityError> {
        let mut changed = false;
        for head in heads {
            match self.audit_heads.take(head) {
                Ok(newer) => changed |= newer,
                Err(tampered) => tracing::error!("{tampered}"),
            }
        }
        if changed {
            self.store.save_audit_heads(self.audit_heads.all())?;
        }
        Ok(())
    }

    /// Asking for many SVIDs at once takes memory for a moment, which what stays of it lies scattered in.
    fn give_back(&mut self) {
        let held = self.workloads.counts().0;
        if held != self.weighed {
            self.weighed = held;
            give_back_heap();
        }
    }

    fn renew(&mut self) -> Result<(), IdentityError> {
        let due = self.svids.due(self.clock.now().wall, &[])?;
        if !due.is_empty() {
            self.link.renew(due);
        }
        Ok(())
    }

    fn attested(&mut self, joined: Joined) -> Result<(), IdentityError> {
        let now = self.clock.now().wall;
        self.svids
            .attested(&joined.identity.chain, joined.node.not_after, now);
        let node = Renewed::Node(Box::new((joined.identity, joined.node)));
        self.renewed(node)
    }

    fn renewed(&mut self, renewed: Renewed) -> Result<(), IdentityError> {
        if let Renewed::Node(renewed) = renewed {
            let (identity, node) = *renewed;
            self.credentials.identity = Arc::new(identity);
            self.link.set_credentials(self.credentials.clone());
            self.progress
                .send_modify(|progress| progress.node_not_after = node.not_after);
            self.store.save_identity(&self.credentials.identity)?;
        }
        self.link.node_uses(self.svids.authorities());
        Ok(())
    }
}
