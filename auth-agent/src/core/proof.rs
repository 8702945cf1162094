//! Proofs: each identity once in a session, again only when its SVID has been renewed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::event::RemoteProof;
use super::peer::{Footing, Given, Proven, Shown};
use super::types::{ConnId, IdentityNumber, PeerNumber};
use super::{Alarm, CloseReason, Core, Discarded, Effect};
use crate::wire::{Frame, LeafHash};

/// A proof may be shown so often again in a session, its answer being late.
const REPEATS: u32 = 3;

impl Core {
    /// Shows an identity to the peer, unless it has been shown already with this very SVID.
    pub(super) fn show(&mut self, number: PeerNumber, identity: IdentityNumber) {
        let now = self.now.boot;
        // Verifying takes its time where many prove themselves at once.
        let again_at = now + self.config.times.retry * 3;
        let Some(mine) = self.mine.get(&identity).cloned() else {
            return;
        };
        // Its workload may be gone before its SVID is.
        let borne = self.bearers.contains_key(&identity);
        if !borne || self.is_revoked(identity) || mine.not_after <= self.now.wall {
            return;
        }
        let Some(known) = self.numbers.get(identity) else {
            return;
        };
        let name = known.identity.clone();
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let Some(live) = peer.live.as_mut() else {
            return;
        };
        let given = live.given.entry(identity).or_default();
        let shown = |shown: &Option<Shown>| shown.is_some_and(|s| s.leaf_hash == mine.leaf_hash);
        if shown(&given.accepted) {
            return;
        }
        let unanswered = shown(&given.sent);
        let other_sent = given.sent.is_some() && !unanswered;
        if let Some(at) = given.retry_at.filter(|at| now < *at && !other_sent) {
            return peer.retry(at);
        }
        let request = if live.dialled {
            match live.grants.contexts.pop_front() {
                Some(request) => Some(request),
                None => return,
            }
        } else {
            None
        };
        given.retry_at = Some(again_at);
        if !unanswered {
            given.sent = Some(Shown {
                leaf_hash: mine.leaf_hash,
                not_after: mine.not_after,
                at: now,
            });
        }
        let sent = (identity, mine.leaf_hash);
        live.given_order.retain(|other| *other != sent);
        live.given_order.push_back(sent);
        let conn = live.conn;
        peer.retry(again_at);
        self.count(if unanswered {
            "proofs-unanswered"
        } else {
            "proofs-sent"
        });
        self.emit(Effect::SendProof {
            conn,
            identity: name,
            leaf_hash: mine.leaf_hash,
            request,
        });
    }

    pub(super) fn proof_accepted(&mut self, number: PeerNumber, conn: ConnId, leaf: LeafHash) {
        let Some(live) = self.session_mut(number) else {
            return;
        };
        let known = live.given_order.iter().position(|(_, sent)| *sent == leaf);
        let Some((identity, _)) = known.and_then(|at| live.given_order.remove(at)) else {
            let mut given = live.given.values().filter_map(|given| given.accepted);
            // Said twice, since it was shown twice.
            if given.any(|accepted| accepted.leaf_hash == leaf) {
                return self.count("late-confirmations");
            }
            return self.violation(conn, CloseReason::NeverSaid("proof-accepted"));
        };
        if let Some(given) = live.given.get_mut(&identity)
            && given.sent.is_some_and(|sent| sent.leaf_hash == leaf)
        {
            given.accepted = given.sent.take();
            given.retry_at = None;
        }
        let mine = self
            .mine
            .get(&identity)
            .filter(|mine| mine.leaf_hash == leaf);
        if let Some(serial) = mine.map(|mine| mine.serial.clone()) {
            self.rest_on(number, identity, serial, true);
        }
        self.record_all(number, identity);
        self.pursue(number, identity);
        self.announce_all_again(number, identity);
        self.consider_peer(number);
    }

    /// Records the pairs that one local identity makes with all of a peer's.
    pub(super) fn record_all(&mut self, number: PeerNumber, identity: IdentityNumber) {
        let proven = self
            .session(number)
            .into_iter()
            .flat_map(|live| live.proven.values());
        let remotes: BTreeSet<IdentityNumber> = proven.map(|proven| proven.identity).collect();
        for remote in remotes {
            self.record(number, identity, remote);
        }
    }

    pub(super) fn proof_refused(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        leaf: Option<LeafHash>,
        reason: &str,
    ) {
        let retry_at = self.now.boot + self.config.times.retry;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let id = peer.id.clone();
        let Some(live) = peer.live.as_mut() else {
            return;
        };
        let at = match leaf {
            Some(leaf) => live.given_order.iter().position(|(_, sent)| *sent == leaf),
            None => Some(0),
        };
        let accepted = live.given.iter().find_map(|(identity, given)| {
            let accepted = given.accepted.map(|accepted| accepted.leaf_hash)?;
            (Some(accepted) == leaf).then_some((*identity, accepted))
        });
        let open = at.and_then(|at| live.given_order.remove(at));
        if open.is_none() && accepted.is_none() {
            let Some(_) = leaf else {
                return self.violation(conn, CloseReason::NeverSaid("proof-refused"));
            };
            // One that this node has taken back itself.
            return self.count("late-refusals");
        }
        let Some((identity, leaf)) = open.or(accepted) else {
            return;
        };
        live.put_off(identity, leaf, retry_at);
        peer.retry(retry_at);
        if accepted.is_some() {
            // It counted, and does not any more.
            self.remove_pairs(|key| key.peer == number && key.local == identity);
        }
        self.count("proofs-refused");
        let what = self.name_of(identity);
        self.alarm(Alarm::Refused {
            id,
            what,
            reason: reason.to_owned(),
        });
        self.discard_where(Discarded::ProofRefused, |core, key, hold| {
            hold.peer == Some(number) && core.identity_of(key.endpoint) == Some(identity)
        });
    }

    /// The shell could not show it; the granted context is burnt, the SVID probably replaced.
    pub(super) fn proof_failed(&mut self, conn: ConnId, leaf: LeafHash) {
        let retry_at = self.now.boot + self.config.times.retry;
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let Some(live) = self.session_mut(number).filter(|live| live.conn == conn) else {
            return;
        };
        let known = live.given_order.iter().position(|(_, sent)| *sent == leaf);
        let Some((identity, _)) = known.and_then(|at| live.given_order.remove(at)) else {
            return;
        };
        live.put_off(identity, leaf, retry_at);
        if let Some(peer) = self.peer_mut(number) {
            peer.retry(retry_at);
        }
        self.count("proofs-failed");
    }

    /// A proof has come: is it legal now? Whether it is right is the shell's to say.
    pub(super) fn proof(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        authenticator: Vec<u8>,
        request: Option<[u8; 32]>,
    ) {
        let limits = self.config.limits.clone();
        let Some(live) = self.session_mut(number) else {
            return;
        };
        // A server's proofs are spontaneous, a client's answer one of our contexts, once.
        let granted = match request {
            None => live.dialled,
            Some(request) if !live.dialled => {
                let at = live.grants.contexts.iter().position(|c| *c == request);
                at.and_then(|at| live.grants.contexts.remove(at)).is_some()
            }
            Some(_) => false,
        };
        let verifying = live.proofs_begun - live.proofs_ended;
        if !granted {
            return self.violation(conn, CloseReason::RequestNotGranted);
        }
        if usize::try_from(verifying).unwrap_or(usize::MAX) >= limits.waiting_per_session {
            return self.violation(conn, CloseReason::TooMuchWaiting);
        }
        if live.proven.len() >= limits.proofs_per_session {
            return self.violation(conn, CloseReason::TooManyProofs);
        }
        live.proofs_begun += 1;
        self.emit(Effect::VerifyProof {
            conn,
            authenticator,
            request,
        });
        if self.session(number).is_some_and(|live| !live.dialled) {
            self.make_grants(number, conn);
        }
    }

    pub(super) fn proof_verdict(
        &mut self,
        conn: ConnId,
        verdict: Result<RemoteProof, (Option<LeafHash>, String)>,
    ) {
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let Some(live) = self.session_mut(number).filter(|live| live.conn == conn) else {
            return;
        };
        if live.proofs_ended >= live.proofs_begun {
            return;
        }
        live.proofs_ended += 1;
        let accepted = verdict.and_then(|proof| {
            let leaf = proof.leaf_hash;
            self.accept(number, proof)
                .map_err(|reason| (Some(leaf), reason.to_owned()))
        });
        if let Err((leaf_hash, reason)) = accepted {
            self.count("proofs-wrong");
            let id = self.peer(number).map(|peer| peer.id.clone());
            let frame = Frame::ProofRefused {
                leaf_hash,
                reason: reason.as_str().into(),
            };
            self.emit(Effect::Send { conn, frame });
            self.alarm(Alarm::RefusedFrom {
                id: id.unwrap_or_default(),
                what: "a proof".to_owned(),
                reason,
            });
            self.refused_something(number, conn);
        }
        self.drain_waiting(number, conn);
    }

    fn accept(&mut self, number: PeerNumber, proof: RemoteProof) -> Result<(), &'static str> {
        let now = self.now;
        let live = self.session(number).ok_or("no session")?;
        if proof.node != live.node.name {
            return Err("the proof is of another node");
        }
        if proof.not_after <= now.wall {
            return Err("the proof has expired");
        }
        if self.deny.identities.contains(&proof.identity.spiffe_id)
            || self.deny.serials.contains(&proof.serial)
        {
            return Err("the identity or its certificate is revoked");
        }
        let identity = self
            .number_of(&proof.identity)
            .ok_or("too many identities")?;
        let live = self.session_mut(number).ok_or("no session")?;
        let conn = live.conn;
        let before = live.proven.get(&proof.leaf_hash);
        let repeats = before.map_or(0, |before| before.repeats.saturating_add(1));
        let proven = Proven {
            identity,
            not_after: proof.not_after,
            serial: proof.serial.clone(),
            at: now.boot,
            repeats,
        };
        live.proven.insert(proof.leaf_hash, proven);
        self.count("proofs-verified");
        if repeats > REPEATS {
            // Nobody waits that often for an answer that was given.
            self.refused_something(number, conn);
        }
        self.rest_on(number, identity, proof.serial, false);
        self.write_identity(identity);
        self.emit(Effect::Send {
            conn,
            frame: Frame::ProofAccepted {
                leaf_hash: proof.leaf_hash,
            },
        });
        self.answer(number, identity);
        Ok(())
    }

    /// A remote identity is proven: whatever policy pairs with it here is proven and announced in turn.
    pub(super) fn answer(&mut self, number: PeerNumber, remote: IdentityNumber) {
        let locals: Vec<IdentityNumber> = self.bearers.keys().copied().collect();
        for local in locals {
            if !self.pairing(local, remote).wanted {
                continue;
            }
            if let Some(peer) = self.peer_mut(number) {
                peer.wanted.insert(local);
            }
            self.pursue(number, local);
            self.record(number, local, remote);
        }
        self.consider_peer(number);
    }

    /// Remembers, longer than the agent lives, what entries of the kernel rest on.
    fn rest_on(
        &mut self,
        number: PeerNumber,
        identity: IdentityNumber,
        serial: Vec<u8>,
        ours: bool,
    ) {
        let footing = Footing {
            identity,
            serial,
            ours,
        };
        if let Some(peer) = self.peer_mut(number) {
            let epoch = peer.last_epoch;
            peer.rests_on.insert(footing, epoch);
            self.persist();
        }
    }

    /// Forgets proofs that have expired, and the addresses that were known by nothing else.
    pub(super) fn expire_proofs(&mut self, number: PeerNumber) {
        let wall = self.now.wall;
        let expired = self.drop_proofs(number, "expired", |proven| proven.not_after <= wall);
        for identity in expired {
            self.unproven(number, identity);
        }
    }

    /// Throws a peer's proofs away, and says so: the peer may see it otherwise, sooner or later, and shows them again.
    pub(super) fn drop_proofs(
        &mut self,
        number: PeerNumber,
        reason: &str,
        which: impl Fn(&Proven) -> bool,
    ) -> BTreeSet<IdentityNumber> {
        let Some(live) = self.session_mut(number) else {
            return BTreeSet::new();
        };
        let conn = live.conn;
        let dropped: Vec<(LeafHash, Proven)> = live
            .proven
            .extract_if(.., |_, proven| which(proven))
            .collect();
        for (leaf_hash, _) in &dropped {
            let frame = Frame::ProofRefused {
                leaf_hash: Some(*leaf_hash),
                reason: reason.into(),
            };
            self.emit(Effect::Send { conn, frame });
        }
        let identities = dropped.into_iter();
        identities.map(|(_, proven)| proven.identity).collect()
    }

    /// Takes away what an identity of the peer's had, if no proof of it is left in the session.
    pub(super) fn unproven(&mut self, number: PeerNumber, identity: IdentityNumber) {
        let now = self.now;
        let Some(peer) = self.peer(number) else {
            return;
        };
        let left = peer
            .live
            .as_ref()
            .is_some_and(|live| live.proof_of(identity, now).is_some());
        if left {
            return;
        }
        let addresses: Vec<_> = peer
            .remotes
            .iter()
            .filter(|(_, remote)| remote.identity == identity)
            .map(|(address, _)| *address)
            .collect();
        self.remove_pairs(|key| key.peer == number && key.remote == identity);
        for address in addresses {
            self.remove_remote(number, address);
        }
    }
}

impl super::peer::Session {
    /// A proof has come to nothing; another that was accepted still counts.
    fn put_off(&mut self, identity: IdentityNumber, leaf: LeafHash, retry_at: Duration) {
        let given: &mut Given = self.given.entry(identity).or_default();
        for shown in [&mut given.sent, &mut given.accepted] {
            shown.take_if(|shown| shown.leaf_hash == leaf);
        }
        given.retry_at = Some(retry_at);
    }
}
