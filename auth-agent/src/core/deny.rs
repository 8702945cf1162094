//! The deny list: what it cuts, what lifting it gives back, and who hears of it next.

use std::sync::Arc;

use super::effect::{PairKey, SessionEntry};
use super::event::{DenyList, PeerNode};
use super::peer::Footing;
use super::planted::{Bug, planted};
use super::types::{ConnId, IdentityNumber, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect};
use crate::wire::{Frame, MAX_DENY_LIST, MAX_WHOLE_DENY_LIST};

/// Deny lists a second that a peer may relay.
const DENY_LISTS_PER_SECOND: u32 = 4;
/// What a peer is told of a proof that does not count any more.
const REVOKED: &str = "revoked";

impl Core {
    pub(super) fn deny_list(&mut self, list: Arc<DenyList>) {
        let ours = self.deny.number;
        if planted(Bug::DenyListForgottenOnResume) && ours == 0 && !self.fresh {
            return;
        }
        if list.number <= ours {
            if list.number < ours {
                let offered = list.number;
                self.count("deny-lists-older");
                self.alarm(Alarm::DenyListOlder { offered, ours });
            }
            return;
        }
        self.deny = list;
        self.count("deny-lists");
        // What cuts comes first, one write each; only then the rest is tidied up.
        let nodes = self.cut_nodes();
        let changed = self.mark_identities();
        for (number, _) in changed.iter().filter(|(_, revoked)| *revoked) {
            self.cut_identity(*number);
        }
        let lifted: Vec<IdentityNumber> = changed
            .into_iter()
            .filter_map(|(number, revoked)| (!revoked).then_some(number))
            .collect();
        self.revoke_serials();
        self.revoke_nodes(nodes);
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in &peers {
            // Before proofs that are good by this list only.
            self.relay_deny_list(*number);
            self.forget_refusals(*number, &lifted);
        }
        if !lifted.is_empty() {
            self.pair_everything();
            for number in peers {
                self.pursue_all(number);
            }
        }
    }

    /// What a peer refused while these were revoked is no reason to wait any more.
    fn forget_refusals(&mut self, number: PeerNumber, lifted: &[IdentityNumber]) {
        let Some(live) = self.session_mut(number) else {
            return;
        };
        for identity in lifted {
            if let Some(given) = live.given.get_mut(identity)
                && given.sent.is_none()
            {
                given.retry_at = None;
            }
        }
    }

    /// Brings every identity's mark in line with the list. True stands for revoked, false for lifted.
    fn mark_identities(&mut self) -> Vec<(IdentityNumber, bool)> {
        let changed: Vec<(IdentityNumber, bool)> = self
            .numbers
            .iter()
            .map(|(number, known)| {
                let revoked = self.deny.identities.contains(&known.identity.spiffe_id);
                (number, known.revoked, revoked)
            })
            .filter(|(_, before, now)| before != now)
            .map(|(number, _, now)| (number, now))
            .collect();
        for (number, revoked) in &changed {
            if let Some(known) = self.numbers.get_mut(*number) {
                known.revoked = *revoked;
            }
            self.write_identity(*number);
        }
        changed
    }

    fn cut_identity(&mut self, identity: IdentityNumber) {
        self.count("identities-cut");
        self.remove_pairs(|key| key.local == identity || key.remote == identity);
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            self.drop_proofs(number, REVOKED, |proven| proven.identity == identity);
            self.unproven(number, identity);
        }
        self.take_back(identity);
        self.consider_all();
    }

    fn revoke_serials(&mut self) {
        let deny = self.deny.clone();
        let mine: Vec<IdentityNumber> = self
            .mine
            .iter()
            .filter(|(_, mine)| deny.serials.contains(&mine.serial))
            .map(|(number, _)| *number)
            .collect();
        for number in mine {
            self.lose_svid(number);
        }
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            self.drop_proofs(number, REVOKED, |proven| {
                deny.serials.contains(&proven.serial)
            });
        }
        for number in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peer_mut(number) else {
                continue;
            };
            let gone: Vec<Footing> = peer
                .rests_on
                .extract_if(.., |footing, _| deny.serials.contains(&footing.serial))
                .map(|(footing, _)| footing)
                .collect();
            for Footing { identity, ours, .. } in gone {
                // Pairs end with the proof they rest on; another proof of the identity makes them anew.
                self.persist();
                self.cut_pairs(number, identity, ours);
                if ours {
                    self.record_all(number, identity);
                } else {
                    self.unproven(number, identity);
                    self.answer(number, identity);
                }
            }
        }
    }

    /// Takes the pairs of one identity with one peer away: also those of an earlier agent, which only the kernel
    /// knows one by one.
    fn cut_pairs(&mut self, number: PeerNumber, identity: IdentityNumber, ours: bool) {
        let end = |key: &PairKey| if ours { key.local } else { key.remote };
        self.remove_pairs(|key| key.peer == number && end(key) == identity);
        if !self.peer(number).is_some_and(|peer| peer.inherited) {
            return;
        }
        let others: Vec<IdentityNumber> = self.numbers.iter().map(|(other, _)| other).collect();
        for other in others {
            let (local, remote) = match ours {
                true => (identity, other),
                false => (other, identity),
            };
            let peer = number;
            self.emit(Effect::RemovePair {
                pair: PairKey {
                    local,
                    remote,
                    peer,
                },
            });
        }
    }

    /// Ends the epochs of every node on the list, and says which they are.
    fn cut_nodes(&mut self) -> Vec<PeerNumber> {
        let cut: Vec<PeerNumber> = self
            .peers
            .values()
            .filter(|peer| {
                self.deny.nodes.contains(&peer.id) || self.deny.serials.contains(&peer.serial)
            })
            .map(|peer| peer.number)
            .collect();
        for number in &cut {
            let standing = self.peer(*number).filter(|peer| peer.standing.is_some());
            if let Some(last_epoch) = standing.map(|peer| peer.last_epoch) {
                self.persist();
                self.emit(Effect::SetSession {
                    peer: *number,
                    session: SessionEntry::cut(last_epoch),
                });
            }
        }
        cut
    }

    fn revoke_nodes(&mut self, cut: Vec<PeerNumber>) {
        for number in cut {
            let stands = self.peer(number).is_some_and(|peer| {
                peer.standing.is_some() || peer.live.is_some() || !peer.greetings.is_empty()
            });
            if stands {
                self.count("nodes-cut");
                self.end(number, CloseReason::Revoked);
            }
            self.consider_peer(number);
        }
    }

    pub(super) fn node_revoked(&self, node: &PeerNode) -> bool {
        self.deny.nodes.contains(&node.id) || self.deny.serials.contains(&node.serial)
    }

    /// Sends the list to a peer that has an older one.
    pub(super) fn relay_deny_list(&mut self, number: PeerNumber) {
        let deny = self.deny.clone();
        let fits = (1..=MAX_WHOLE_DENY_LIST).contains(&deny.signed.len());
        let Some(live) = self.session_mut(number) else {
            return;
        };
        if !fits || live.deny_number >= deny.number {
            return;
        }
        live.deny_number = deny.number;
        let conn = live.conn;
        let mut pieces = deny.signed.chunks(MAX_DENY_LIST).peekable();
        while let Some(piece) = pieces.next() {
            let frame = Frame::DenyList {
                bytes: piece.to_vec(),
                more: pieces.peek().is_some(),
            };
            self.emit(Effect::Send { conn, frame });
        }
    }

    /// A piece of a list from a peer; with the last one it is the shell's to judge.
    pub(super) fn deny_list_offered(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        bytes: Vec<u8>,
        more: bool,
    ) {
        let now = self.now.boot;
        let Some(live) = self.session_mut(number) else {
            return;
        };
        let begins = live.deny_list_in.is_empty();
        if begins && !live.deny_lists_in.take(now, DENY_LISTS_PER_SECOND) {
            return self.violation(conn, CloseReason::TooFast("deny-list"));
        }
        if live.deny_list_in.len() + bytes.len() > MAX_WHOLE_DENY_LIST {
            return self.violation(conn, CloseReason::TooMuchWaiting);
        }
        live.deny_list_in.extend(bytes);
        if !more {
            let signed = std::mem::take(&mut live.deny_list_in);
            self.emit(Effect::VerifyDenyList { conn, signed });
        }
    }
}
