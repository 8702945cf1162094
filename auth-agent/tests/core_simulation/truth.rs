//! What really happened, kept apart from the cores, and the safety properties of DESIGN.md checked against it.
//!
//! | property | checked |
//! |---|---|
//! | 1 mutual | when a proof is believed: its maker made it, in this session, with the key of the first certificate; when a pair is written: its remote identity was proven to this node in the pair's epoch, and the peer said that it accepted ours |
//! | 2 bound | when a tunnel is installed: it has the keys of these two nodes in these boots; on every packet: it came under keys of a session with the peer that counts, or that its successor's take-over has not made older than a handshake lives |
//! | 3 announce before trust | when a remote address is written: it was announced in that epoch, by the node in whose signed prefixes it lies, as an identity proven by that node; no epoch comes twice |
//! | 4 no resurrection | after every write: whom a node takes an address for, that and nobody else uses it toward it; on every packet: the receiver takes its sender, and the sender took its receiver, for who they are |
//! | 5 fail closed | on every packet: the receiver holds an unexpired proof of the sender's identity, and policy allows the two |
//! | 6 cut | on every packet: nothing on the receiver's deny list has a part in it |
//! | 8 least keys | when a proof is shown, and on every issuance: the identity's workload is attached on this node |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    Effect, Identity, IdentityNumber, PairKey, PeerNumber, RemoteEntry, RemoteProof, SessionEntry,
    SessionState,
};

use super::node::{Cover, Node, Packet};
use super::tunnels::{DEAD, GRACE};
use super::world::World;

/// A node hears of a jump of its clock by its next timer.
const UNNOTICED: u64 = 15;

/// What one node has really been shown, in one boot.
#[derive(Clone, Default)]
pub struct Facts {
    /// Proofs believed, by the peer that gave them.
    proven: BTreeMap<(usize, Identity), Vec<Proven>>,
    /// Identities of this node that the peer has said it accepts, and when last.
    accepted: BTreeMap<(usize, Identity), Vec<Duration>>,
    /// Announcements heard, and when last.
    announced: BTreeMap<(usize, IpAddr, Identity), Duration>,
    /// When an epoch began.
    epochs: BTreeMap<(PeerNumber, u32), Duration>,
    highest: BTreeMap<PeerNumber, u32>,
    /// The epoch that a connection's tunnel keys are of.
    keyed: BTreeMap<(PeerNumber, u64), u32>,
    /// The newest epoch of this peer when its session last ended: no keys of it, or before, may count.
    ended: BTreeMap<PeerNumber, u32>,
    /// The newest epoch.
    newest: BTreeMap<PeerNumber, u32>,
    /// The oldest epoch that counts, and since when.
    oldest: BTreeMap<PeerNumber, (u32, Duration)>,
    /// Peers whose tunnels went with a cut that the disk has not taken.
    cut_unstored: BTreeSet<PeerNumber>,
    /// What `ended` had of peers before a cut that the disk has not taken.
    ended_before: BTreeMap<PeerNumber, Option<u32>>,
    /// Those of which the next agent knew nothing: for it the session stood, and for the peer too.
    cut_forgotten: BTreeSet<PeerNumber>,
}

#[derive(Clone)]
struct Proven {
    at: Duration,
    not_after: u64,
    /// The end, on the boot clock, as it was reckoned when the proof came.
    ends: Duration,
    serial: Vec<u8>,
}

/// Answers to the same thing are worth remembering only so often.
const MEMORY: usize = 64;

impl Facts {
    pub fn accepted(&mut self, peer: usize, identity: Identity, at: Duration) {
        let times = self.accepted.entry((peer, identity)).or_default();
        times.push(at);
        if times.len() > MEMORY {
            times.remove(0);
        }
    }

    pub fn cut_unstored(&mut self, peer: PeerNumber) {
        self.cut_unstored.insert(peer);
    }

    pub fn all_stored(&mut self) {
        self.cut_unstored.clear();
        self.ended_before.clear();
    }

    pub fn forgets_unstored(&mut self) {
        self.cut_forgotten.append(&mut self.cut_unstored);
        for (peer, before) in std::mem::take(&mut self.ended_before) {
            match before {
                Some(epoch) => self.ended.insert(peer, epoch),
                None => self.ended.remove(&peer),
            };
        }
    }

    /// This end of a tunnel may have been made anew in a session that stands, without keys that the other end has.
    pub fn has_forgotten_a_cut(&self, peer: PeerNumber) -> bool {
        self.cut_forgotten.contains(&peer)
    }

    pub fn announced(&mut self, peer: usize, address: IpAddr, identity: Identity, at: Duration) {
        self.announced.insert((peer, address, identity), at);
    }

    fn began(&self, peer: PeerNumber, epoch: u32) -> Option<Duration> {
        self.epochs.get(&(peer, epoch)).copied()
    }
}

impl World {
    /// A node's shell has found a proof right.
    pub fn note_proof(&mut self, index: usize, peer: usize, proof: &RemoteProof) {
        let now = self.nodes[index].now(self.at);
        let left = Duration::from_secs(proof.not_after.saturating_sub(now.wall));
        let proven = Proven {
            at: self.at,
            not_after: proof.not_after,
            ends: now.boot + left,
            serial: proof.serial.clone(),
        };
        let key = (peer, proof.identity.clone());
        let all = self.nodes[index].facts.proven.entry(key).or_default();
        all.push(proven);
        if all.len() > MEMORY {
            all.remove(0);
        }
    }

    /// A session's epochs as the core has them, whether or not the kernel takes them.
    pub fn note_epoch(&mut self, index: usize, peer: PeerNumber, session: SessionEntry) {
        let at = self.at;
        let node = &mut self.nodes[index];
        let facts = &mut node.facts;
        if session.state == SessionState::Cut {
            if node.unstored {
                let before = facts.ended.get(&peer).copied();
                facts.ended_before.entry(peer).or_insert(before);
            }
            // Epochs that were not stored have not begun, and their numbers may come again.
            let newest = facts.newest.get(&peer).copied().unwrap_or_default();
            facts.ended.insert(peer, session.current.min(newest));
        }
        let oldest = facts.oldest.entry(peer).or_insert((session.oldest, at));
        if oldest.0 != session.oldest {
            *oldest = (session.oldest, at);
        }
        if session.state != SessionState::Cut {
            let known = facts.newest.entry(peer).or_default();
            *known = session.current.max(*known);
        }
    }

    /// The session's keys go into the tunnel.
    pub fn note_keys(&mut self, index: usize, peer: PeerNumber, conn: u64) {
        let facts = &mut self.nodes[index].facts;
        let epoch = facts.newest.get(&peer).copied().unwrap_or_default();
        facts.keyed.entry((peer, conn)).or_insert(epoch);
    }

    /// Property 2: the keys are those of a session with this peer that counts, or were made before its successor took
    /// over, less than three minutes ago.
    fn check_keys_of(&self, index: usize, peer: PeerNumber, packet: &Packet) {
        let facts = &self.nodes[index].facts;
        let Cover::Keys(keys) = packet.cover else {
            self.fail("property 2: a packet that nothing encrypted was delivered");
        };
        let Some(epoch) = facts.keyed.get(&(peer, keys.session)).copied() else {
            self.fail("property 2: a packet under keys of no session with its peer was delivered");
        };
        if facts.ended.get(&peer).is_some_and(|ended| epoch <= *ended) {
            self.fail(&format!(
                "property 2: node {index} delivered packet {} of node {}, from {} to {}, under keys of connection {} made \
                 at {:?}: epoch {epoch}, which has ended",
                packet.number, packet.from_node, packet.source, packet.destination, keys.session, keys.since
            ));
        }
        let (oldest, since) = facts.oldest.get(&peer).copied().unwrap_or_default();
        // The other end may take over a little later, and what it leaves takes packets until the grace is over.
        let after = keys.since > since + GRACE;
        // It was read in time; since then it may have been held.
        let held = self.setup.times.hold + Duration::from_secs(2);
        let late = self.at > keys.since + DEAD + held;
        if epoch < oldest && (after || late) {
            self.fail(&format!(
                "property 2: a packet under keys of epoch {epoch}, made at {:?}, was delivered, though {oldest} took \
                 over at {since:?}",
                keys.since
            ));
        }
    }

    /// Properties of one write, before it is in the map.
    pub fn check_before(&mut self, index: usize, effect: &Effect) {
        if self.liar == Some(index) {
            return;
        }
        match effect {
            Effect::SetSession { peer, session } => self.check_epoch(index, *peer, *session),
            Effect::SetPair {
                pair,
                expires,
                epoch,
            } => self.check_pair(index, *pair, *expires, *epoch),
            Effect::SetRemote { address, remote } => self.check_remote(index, *address, *remote),
            Effect::SendProof { identity, .. } if !self.nodes[index].runs(identity) => self.fail(
                &format!("property 8: node {index} proves {identity:?}, which does not run there"),
            ),
            _ => {}
        }
    }

    /// Property 4, wherever this write could have broken it.
    pub fn check_after(&self, index: usize, effect: &Effect) {
        match effect {
            Effect::SetRemote { address, .. } => {
                if let Some(there) = self.node_of(*address) {
                    self.check_address(there, index, *address);
                }
            }
            Effect::SetLocal { address, .. } => self.check_toward_all(index, *address),
            Effect::SetAnnounced { address, peer, .. } => {
                if let Some(there) = self.index_of(index, *peer) {
                    self.check_address(index, there, *address);
                }
            }
            Effect::SetSession { peer, .. } => {
                if let Some(there) = self.index_of(index, *peer) {
                    self.check_between(index, there);
                    self.check_between(there, index);
                }
            }
            _ => {}
        }
    }

    pub fn check_toward_all(&self, index: usize, address: IpAddr) {
        for there in 0..self.nodes.len() {
            if there != index {
                self.check_address(index, there, address);
            }
        }
    }

    /// Both directions between two nodes whose tunnel has changed.
    pub fn check_between(&self, here: usize, there: usize) {
        let addresses: Vec<IpAddr> = self.nodes[there].kernel.remotes.keys().copied().collect();
        for address in addresses {
            self.check_address(here, there, address);
        }
    }

    /// Node `there` takes an address of node `here` for somebody: nobody else may use it toward there.
    fn check_address(&self, here: usize, there: usize, address: IpAddr) {
        if here == there || self.liar == Some(here) || self.liar == Some(there) {
            return;
        }
        let (here, there) = (&self.nodes[here], &self.nodes[there]);
        let (Some(as_here), Some(as_there)) =
            (here.number_of(&there.id), there.number_of(&here.id))
        else {
            return;
        };
        // Without each other's keys of this boot no packet gets through.
        let keyed = |one: &Node, number, two: &Node| {
            let tunnels = one.kernel.tunnels.get(&number);
            tunnels.is_some_and(|tunnels| tunnels.all().any(|of| two.has_had_key(of.key)))
        };
        if !keyed(here, as_here, there) || !keyed(there, as_there, here) {
            return;
        }
        let Some(believed) = there.kernel.takes_for(as_there, address) else {
            return;
        };
        let user = here.kernel.user_of(as_here, address);
        let Some(workload) = user.and_then(|user| here.workloads.get(&user)) else {
            return;
        };
        if **believed != workload.identity {
            self.fail(&format!(
                "property 4: node {} takes {address} for {}, node {} lets {} use it",
                there.index, believed.spiffe_id, here.index, workload.identity.spiffe_id
            ));
        }
    }

    fn check_epoch(&mut self, index: usize, peer: PeerNumber, session: SessionEntry) {
        let at = self.at;
        let facts = &mut self.nodes[index].facts;
        let highest = facts.highest.get(&peer).copied();
        if highest.is_some_and(|highest| session.current < highest) {
            let why = format!("property 3: node {index} counts its epochs with {peer} anew");
            self.fail(&why);
        }
        // A cut begins nothing; one that was not stored may come before the epoch that it ends.
        if highest != Some(session.current) && session.state != SessionState::Cut {
            facts.highest.insert(peer, session.current);
            facts.epochs.insert((peer, session.current), at);
        }
    }

    fn check_pair(&self, index: usize, pair: PairKey, expires: Duration, epoch: u32) {
        let node = &self.nodes[index];
        let named = |number: IdentityNumber| node.kernel.names.get(&number);
        let (Some(local), Some(remote)) = (named(pair.local), named(pair.remote)) else {
            self.fail("property 1: a pair of numbers without names");
        };
        let old = node.kernel.pairs.get(&pair);
        if old.is_some_and(|(end, of)| *of == epoch && expires <= *end) {
            return;
        }
        if pair.peer == PeerNumber::LOCAL {
            if !node.svids.contains_key(&**local) || !node.svids.contains_key(&**remote) {
                self.fail("property 1: a pair on this node without both keys");
            }
            return;
        }
        let Some(there) = self.index_of(index, pair.peer) else {
            self.fail("property 1: a pair with an unknown peer");
        };
        let Some(began) = node.facts.began(pair.peer, epoch) else {
            self.fail("property 1: a pair of an epoch that never began");
        };
        let key = (there, remote.as_ref().clone());
        let proofs = node.facts.proven.get(&key);
        let proof = proofs.is_some_and(|all| all.iter().any(|p| p.at >= began));
        let ends =
            proofs.and_then(|all| all.iter().map(|p| p.ends.max(self.end_of(index, p))).max());
        let key = (there, local.as_ref().clone());
        let accepted = node.facts.accepted.get(&key);
        let accepted = accepted.is_some_and(|all| all.iter().any(|at| *at >= began));
        if !proof || !accepted {
            self.fail(&format!(
                "property 1: node {index} records {} with {}: proven {proof}, ours accepted {accepted}",
                local.spiffe_id, remote.spiffe_id
            ));
        }
        if ends.is_some_and(|ends| expires > ends + Duration::from_secs(2)) {
            self.fail("property 1: a pair that outlives its proof");
        }
    }

    /// The end of a proof on a node's boot clock, by its wall clock as it is now.
    fn end_of(&self, index: usize, proven: &Proven) -> Duration {
        let now = self.nodes[index].now(self.at);
        now.boot + Duration::from_secs(proven.not_after.saturating_sub(now.wall))
    }

    fn check_remote(&self, index: usize, address: IpAddr, remote: RemoteEntry) {
        let node = &self.nodes[index];
        let Some(identity) = node.kernel.names.get(&remote.identity) else {
            self.fail("property 3: an address of a number without a name");
        };
        let Some(there) = self.index_of(index, remote.peer) else {
            self.fail("property 3: an address of an unknown peer");
        };
        if !self.nodes[there].has_address(address) {
            self.fail(&format!(
                "property 3: node {index} believes node {there} about {address}, which is not in its prefixes"
            ));
        }
        let key = (there, address, identity.as_ref().clone());
        let heard = node.facts.announced.get(&key).copied();
        let began = node.facts.began(remote.peer, remote.epoch);
        let proofs = node.facts.proven.get(&(there, identity.as_ref().clone()));
        let in_epoch = |at: Duration| began.is_some_and(|began| at >= began);
        let proven = proofs.is_some_and(|all| all.iter().any(|p| in_epoch(p.at)));
        if !heard.is_some_and(in_epoch) || !proven {
            self.fail(&format!(
                "property 3: node {index} takes {address} for {}: announced {heard:?}, proven {proven}",
                identity.spiffe_id
            ));
        }
    }

    /// Properties 3 to 6 on a packet that is about to be delivered.
    pub fn check_delivery(&self, index: usize, peer: PeerNumber, packet: &Packet) {
        if self.liar == Some(index) {
            return;
        }
        self.check_keys_of(index, peer, packet);
        let node = &self.nodes[index];
        let taken_for = node.kernel.takes_for(peer, packet.source);
        let lies = self.liar == Some(packet.from_node);
        let Some(taken_for) = taken_for else {
            self.fail("property 3: a packet from nobody was delivered");
        };
        if lies {
            // Its own workloads it may mix up: nobody else's.
            self.check_of_liar(index, taken_for, packet);
        } else if **taken_for != packet.from {
            self.fail(&format!(
                "property 4: a packet of {} was delivered as {}'s",
                packet.from.spiffe_id, taken_for.spiffe_id
            ));
        }
        let Some((_, receiver)) = node.workload_at(packet.destination) else {
            self.fail("property 4: delivered to nobody");
        };
        let meant = packet.meant.as_ref().filter(|_| !lies);
        if meant.is_some_and(|meant| **meant != receiver.identity) {
            self.fail(&format!(
                "property 4: a packet meant for {meant:?} was delivered to {}",
                receiver.identity.spiffe_id
            ));
        }
        self.check_proof(index, packet.from_node, taken_for, &receiver.identity);
    }

    fn check_of_liar(&self, index: usize, taken_for: &Identity, packet: &Packet) {
        let there = &self.nodes[packet.from_node];
        if !there.has_address(packet.source) || !self.ca.holds(packet.from_node, taken_for) {
            self.fail(&format!(
                "property 3: node {index} takes {} of the lying node for {}",
                packet.source, taken_for.spiffe_id
            ));
        }
    }

    fn check_proof(&self, index: usize, there: usize, remote: &Arc<Identity>, local: &Identity) {
        let node = &self.nodes[index];
        let now = node.now(self.at);
        let none = Arc::default();
        let alive = node.core.is_some();
        let deny = node.deny.as_ref().filter(|_| alive).unwrap_or(&none);
        let named = |id: &String| deny.identities.contains(id) || deny.nodes.contains(id);
        let node_id = &self.nodes[there].id;
        // What the kernel has refused is written again at once: a cut may take a second.
        let refused = node
            .refused
            .is_some_and(|at| self.at < at + Duration::from_secs(1));
        if refused {
            return;
        }
        if named(&remote.spiffe_id) || named(&local.spiffe_id) || named(node_id) {
            self.fail("property 6: a packet of somebody revoked was delivered");
        }
        let key = (there, remote.as_ref().clone());
        let proofs = node.facts.proven.get(&key);
        let good = proofs.is_some_and(|all| {
            all.iter().any(|proven| {
                let in_time = now.boot <= proven.ends + Duration::from_secs(2)
                    || proven.not_after + UNNOTICED > now.wall;
                in_time && !deny.serials.contains(&proven.serial)
            })
        });
        if !good {
            self.fail(&format!(
                "property 5: a packet of {} was delivered without an unexpired proof",
                remote.spiffe_id
            ));
        }
        let allowed = node.kernel.rules.as_ref();
        if !allowed.is_some_and(|rules| rules.allow(local, remote)) {
            self.fail("property 5: a packet was delivered that policy forbids");
        }
    }

    /// Property 8: whatever a shell holds is for workloads that are attached there, or were a moment ago.
    pub fn check_keys(&self, index: usize) {
        let node = &self.nodes[index];
        let strange: BTreeSet<&Identity> = node.svids.keys().filter(|id| !node.runs(id)).collect();
        if !strange.is_empty() {
            self.fail(&format!(
                "property 8: node {index} holds keys of {strange:?}"
            ));
        }
    }
}
