//! The agent at work: the core in the middle, and everything that its effects change around it.
//!
//! One task owns all of this. Inputs come one at a time; the effects of each are carried out in order before the
//! next is looked at, which is what the core's ordering promises rest on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use handfast_ca::client::NodeIdentity;
use handfast_ca::verify::{NodeSvid, Verifier};
use handfast_encrypt::{PublicKey, Routes};
use handfast_policies::Workload;

use super::alarms::{Alarms, Topic};
use super::awaited::Awaited;
use super::gates::Gates;
use super::memory::Memory;
use super::net::Net;
use super::observations::Observations;
use super::observe::History;
use super::park::Park;
use super::policy::PolicyTable;
use super::readiness::Readiness;
use super::running_pods::RunningPods;
use super::stored::Stored;
use super::tunnel_effects::TunnelTo;
use super::tunnel_filter::Filter;
use super::tunnel_worker::TunnelWorker;
use super::tunnels::Slot;
use super::updates::Unsettled;
use super::verify::Questions;
use super::{RunError, proofs};
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::core::{Alarm, ConnId, Core, Effect, Event, Identity, PeerNumber};
use crate::endpoint::{EndpointId, EndpointRecords};
use crate::identity::{
    AuditHeads, Foreign, Knowledge, KnownEntry, Link, NodeStore, Reattest, Svids, Workloads,
};
use crate::tls::SessionTls;
use crate::wire::Frame;

/// A node at work.
pub(super) struct Agent {
    pub(super) config: AgentConfig,
    pub(super) started: Instant,
    pub(super) readiness: Readiness,
    pub(super) clock: Clock,
    pub(super) core: Core,
    pub(super) stored: Stored,

    pub(super) store: NodeStore,
    pub(super) node: NodeSvid,
    pub(super) identity: Arc<NodeIdentity>,
    pub(super) verifier: Verifier,
    pub(super) svids: Svids,
    pub(super) knowledge: Knowledge,
    pub(super) foreign: Foreign,
    pub(super) audit_heads: AuditHeads,
    pub(super) workloads: Workloads,
    pub(super) reattest: Reattest,

    pub(super) ca: Link,
    pub(super) ca_connected: bool,
    /// The server that is or was last reached.
    pub(super) ca_address: String,
    pub(super) tls: Arc<SessionTls>,
    pub(super) net: Net,

    pub(super) gates: Gates,
    pub(super) park: Park,
    pub(super) policy: PolicyTable,
    pub(super) policy_version: u64,
    pub(super) policy_error: Option<String>,
    pub(super) unsettled: Unsettled,
    pub(super) tunnels: TunnelWorker,
    /// Devices that were made anew, and are not up yet.
    pub(super) tunnels_unrestored: BTreeSet<Slot>,
    /// What our nftables table is to do.
    pub(super) filter: Option<Filter>,
    pub(super) routes: Routes,
    pub(super) endpoints: EndpointRecords,
    /// The entry that says who an endpoint is, as policy and core have been told.
    pub(super) bearers: BTreeMap<EndpointId, Option<Arc<KnownEntry>>>,
    pub(super) netlink: rtnetlink::Handle,
    pub(super) running_pods: RunningPods,
    /// Pods that start when they have an identity.
    pub(super) awaited: Awaited,

    pub(super) observations: Observations,
    /// What peers were asked for `verify`.
    pub(super) questions: Questions,
    pub(super) memory: Memory,
    pub(super) history: History,
    pub(super) alarms: Alarms,
}

impl Agent {
    /// Gives the core an input and carries out what it wants, until it wants nothing more.
    pub(super) async fn feed(&mut self, event: Event) {
        self.feed_all(VecDeque::from([event])).await;
    }

    /// The same with several inputs as one step: what waits together is stored once. So is what the effects of a step
    /// bring about.
    pub(super) async fn feed_all(&mut self, mut events: VecDeque<Event>) {
        while !events.is_empty() {
            let now = self.clock.now();
            let mut unwritten = Unwritten::default();
            let effects = self.core.handle_all(now, std::mem::take(&mut events));
            let stored = !self.stored.is_due(&effects) || self.store();
            for effect in effects {
                if let Some(conn) = effect.confirms()
                    && unwritten.concerns(self.core.peer_of_connection(conn))
                {
                    continue;
                }
                let refused = effect.refused();
                let outcome = if stored {
                    self.carry_out(effect, &mut events).await
                } else {
                    self.carry_out_unstored(effect, &mut events).await
                };
                if let Err(error) = outcome {
                    unwritten.note(refused.as_ref());
                    events.extend(refused);
                    // The kernel refuses: nothing opens by it, since what permits comes last and the
                    // gates drop what they do not know; people must hear of it.
                    tracing::error!(%error, "an effect failed");
                    self.alarm(error.to_string());
                }
            }
            self.net.flush();
        }
    }

    /// One effect, whole. What it brings about at once is queued as the core's next inputs.
    pub(super) async fn carry_out(
        &mut self,
        effect: Effect,
        events: &mut VecDeque<Event>,
    ) -> Result<(), RunError> {
        match effect {
            // Done before the step's other effects.
            Effect::Persist => {}
            Effect::Dial {
                peer,
                id,
                addresses,
            } => self.net.dial(peer, &id, addresses),
            Effect::Close { conn, reason } => self.net.close(conn, reason),
            Effect::Send { conn, frame } => self.net.send(conn, &frame),
            Effect::MakeGrant { conn, count } => events.push_back(make_grant(conn, count)?),
            Effect::SendProof {
                conn,
                leaf_hash,
                request,
                ..
            } => {
                if !self.send_proof(conn, leaf_hash, request) {
                    events.push_back(Event::ProofFailed { conn, leaf_hash });
                }
            }
            Effect::VerifyProof {
                conn,
                authenticator,
                request,
            } => {
                // That takes a while: what was said before it need not wait.
                self.net.flush();
                events.extend(self.verify_proof(conn, &authenticator, request));
            }
            Effect::VerifyDenyList { signed, .. } => events.extend(self.take_deny_list(&signed)),
            Effect::ClearTables => {
                self.gates.clear()?;
                self.policy.forget_installed();
            }
            Effect::Identity { number, identity } => {
                let workload = workload(&identity)?;
                let changes = self.policy.set_identity(number.0, workload);
                self.write_policy(&changes)?;
            }
            Effect::IdentityForgotten { number } => {
                let changes = self.policy.remove_identity(number.0);
                self.write_policy(&changes)?;
                self.gates.remove_identity(number)?;
            }
            Effect::SendTunnelKey {
                conn,
                id,
                own_key,
                peer_key,
            } => self.send_tunnel_key(conn, &id, own_key, peer_key),
            Effect::VerifyTunnelKey {
                conn,
                id,
                own_key,
                peer_key,
                tag,
            } => events.extend(self.check_tunnel_key(conn, &id, own_key, peer_key, &tag)),
            Effect::InstallTunnel {
                peer,
                id,
                conn,
                own_key,
                peer_key,
                endpoint,
                prefixes,
            } => {
                let wanted = TunnelTo {
                    peer,
                    id,
                    own_key: PublicKey::new(own_key),
                    key: PublicKey::new(peer_key),
                    endpoint,
                    prefixes,
                };
                // The outcome comes from the worker; what cannot even be ordered has failed.
                if let Err(error) = self.install_tunnel(conn, wanted) {
                    self.alarm(format!("tunnel: {error}"));
                    events.push_back(Event::TunnelFailed { conn });
                }
            }
            Effect::CallPeer { peer } => self.tunnels.call(peer)?,
            Effect::ActivateTunnel { peer } => self.tunnels.activate(peer)?,
            Effect::RemoveTunnel { peer } => self.tunnels.remove(peer)?,
            Effect::Discard { key, reason } => {
                tracing::debug!(?key, %reason, "held packets dropped");
                let packets = self.park.discard(key);
                if packets > 0 {
                    self.note_discarded(key, reason, packets);
                }
            }
            Effect::Release { key } => self.park.release(key),
            Effect::Asked {
                peer,
                conn,
                id,
                question,
            } => events.extend(self.answer_peer(peer, conn, id, &question)),
            Effect::Answered { peer, id, answer } => {
                let now = self.clock.now().boot;
                self.questions.answered(peer, id, &answer, now);
            }
            Effect::Alarm(alarm) => self.raise(&alarm),
            write => self.gates.apply(&write)?,
        }
        Ok(())
    }

    fn send_proof(
        &mut self,
        conn: ConnId,
        leaf: crate::wire::LeafHash,
        request: Option<[u8; 32]>,
    ) -> bool {
        let (Some(open), Some(svid)) = (self.net.get(conn), self.svids.by_leaf(leaf)) else {
            return false;
        };
        match crate::proof::make(&open.proofs, &svid.chain, &svid.key, request.as_ref()) {
            Ok(authenticator) => {
                let frame = Frame::Proof {
                    authenticator,
                    request,
                };
                self.net.send(conn, &frame);
                true
            }
            Err(error) => {
                tracing::warn!(%error, identity = svid.identity.spiffe_id, "no proof was made");
                false
            }
        }
    }

    fn verify_proof(
        &self,
        conn: ConnId,
        authenticator: &[u8],
        request: Option<[u8; 32]>,
    ) -> Option<Event> {
        let open = self.net.get(conn)?;
        let wall = self.clock.now().wall;
        let judged = proofs::judge(
            &open.proofs,
            authenticator,
            request.as_ref(),
            &self.verifier,
            wall,
        );
        Some(match judged {
            Ok(proof) => Event::ProofVerified { conn, proof },
            Err(invalid) => Event::ProofInvalid {
                conn,
                leaf_hash: invalid.leaf_hash,
                reason: invalid.reason,
            },
        })
    }

    fn raise(&mut self, alarm: &Alarm) {
        match alarm {
            // A scan makes thousands of these a second; `observe` and the counters have them.
            Alarm::Dropped { .. } => tracing::debug!("{alarm}"),
            // An everyday matter: the log has it.
            Alarm::SessionEnded { .. } => tracing::info!("{alarm}"),
            Alarm::Refused { reason, .. } | Alarm::RefusedFrom { reason, .. }
                if reason.contains("revoked") =>
            {
                self.alarm_about(Topic::Revoked, alarm.to_string());
            }
            alarm => self.alarm(alarm.to_string()),
        }
    }

    /// Remembers what deserves a person's attention.
    pub(super) fn alarm(&mut self, text: String) {
        self.alarm_about(Topic::Any, text);
    }

    pub(super) fn alarm_about(&mut self, topic: Topic, text: String) {
        tracing::warn!("{text}");
        self.alarms.raise(text, topic, self.clock.now());
    }
}

/// Whose entries the kernel has refused in one step: these peers are told that nothing stands.
#[derive(Debug, Default)]
struct Unwritten {
    everybody: bool,
    peers: BTreeSet<PeerNumber>,
}

impl Unwritten {
    fn note(&mut self, refused: Option<&Event>) {
        match refused {
            Some(Event::NotWritten { peer: Some(peer) }) => {
                self.peers.insert(*peer);
            }
            Some(_) => self.everybody = true,
            None => {}
        }
    }

    fn concerns(&self, peer: Option<PeerNumber>) -> bool {
        self.everybody || peer.is_some_and(|peer| self.peers.contains(&peer))
    }
}

fn make_grant(conn: ConnId, count: usize) -> Result<Event, RunError> {
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        let mut request = [0; 32];
        aws_lc_rs::rand::fill(&mut request).map_err(|_| RunError::NoRandomness)?;
        requests.push(request);
    }
    Ok(Event::GrantMade { conn, requests })
}

/// An identity as the policy language sees it.
pub(super) fn workload(identity: &Identity) -> Result<Workload, RunError> {
    Ok(Workload {
        spiffe_id: identity
            .spiffe_id
            .parse()
            .map_err(|_| RunError::BadSpiffeId(identity.spiffe_id.clone()))?,
        labels: identity.labels.clone(),
    })
}
