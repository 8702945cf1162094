//! Pairs: two identities proven to each other, and until when.
//!
//! Recorded only when the peer's proof has been verified in the live session and the peer has accepted ours
//! there (safety property 1). A pair ends with the earlier of both proof SVIDs, or at policy's maximum age.

use std::collections::BTreeSet;
use std::time::Duration;

use super::event::Policy;
use super::peer::Ends;
use super::types::{IdentityNumber, Pairing, PeerNumber};
use super::{Core, Effect, PairKey};

/// The epoch of pairs within this node.
pub(super) const LOCAL_EPOCH: u32 = 1;
/// A successor session proves everything anew well before the shortest maximum age.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(5);

/// One recorded pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub ends: Ends,
    /// As the kernel has it.
    pub expires: Duration,
    pub epoch: u32,
}

impl Core {
    /// What policy says of two identities, by their numbers.
    pub(super) fn pairing(&self, local: IdentityNumber, remote: IdentityNumber) -> Pairing {
        let known = self.numbers.get(local).zip(self.numbers.get(remote));
        match (&self.policy, known) {
            (Some(policy), Some((local, remote))) => {
                policy.0.pairing(&local.identity, &remote.identity)
            }
            _ => Pairing::default(),
        }
    }

    /// Records a pair with a peer if both proofs stand.
    pub(super) fn record(
        &mut self,
        number: PeerNumber,
        local: IdentityNumber,
        remote: IdentityNumber,
    ) {
        let now = self.now;
        let pairing = self.pairing(local, remote);
        if !pairing.wanted || self.is_revoked(local) || self.is_revoked(remote) {
            return;
        }
        let Some(live) = self.session_mut(number).filter(|live| !live.flushed) else {
            return;
        };
        let accepted = live.given.get(&local).and_then(|given| given.accepted);
        let proven = live.proof_of(remote, now).cloned();
        let (Some(accepted), Some(proven)) = (accepted, proven) else {
            return;
        };
        let shown = accepted.at.min(proven.at);
        let age = pairing.max_age.map_or(Duration::MAX, |max_age| {
            live.renew_at = live
                .renew_at
                .min(live.since + (max_age / 2).max(SHORTEST_RENEWAL));
            shown.saturating_add(max_age)
        });
        let ends = Ends {
            age,
            not_after: accepted.not_after.min(proven.not_after),
        };
        let epoch = live.epoch;
        let pair = PairKey {
            local,
            remote,
            peer: number,
        };
        self.write_pair(pair, ends, epoch);
    }

    /// Records the pairs that one local identity makes with the others on this node.
    pub(super) fn record_local(&mut self, identity: IdentityNumber) {
        let others: Vec<IdentityNumber> = self.bearers.keys().copied().collect();
        for other in others {
            let wanted = self.pairing(identity, other).wanted;
            let mines = self.mine.get(&identity).zip(self.mine.get(&other));
            let revoked = self.is_revoked(identity) || self.is_revoked(other);
            let (true, false, Some((one, two))) = (wanted, revoked, mines) else {
                continue;
            };
            // Both keys are here, and are held afresh all the time: no age.
            let ends = Ends {
                age: Duration::MAX,
                not_after: one.not_after.min(two.not_after),
            };
            for (local, remote) in [(identity, other), (other, identity)] {
                let peer = PeerNumber::LOCAL;
                let pair = PairKey {
                    local,
                    remote,
                    peer,
                };
                self.write_pair(pair, ends, LOCAL_EPOCH);
            }
        }
    }

    fn write_pair(&mut self, key: PairKey, ends: Ends, epoch: u32) {
        let expires = ends.at(self.now);
        if expires <= self.now.boot {
            return;
        }
        let pair = Pair {
            ends,
            expires,
            epoch,
        };
        let same = self
            .pairs
            .get(&key)
            .is_some_and(|old| old.ends == ends && old.epoch == epoch);
        if same {
            return;
        }
        if self.pairs.insert(key, pair).is_none() {
            self.count("pairs-recorded");
        }
        if self.removals.pairs.contains(&key) {
            // An agent that starts again must not take it for undone.
            self.persist();
        }
        self.emit(Effect::SetPair {
            pair: key,
            expires,
            epoch,
        });
    }

    /// True while the gates find the pair.
    pub(super) fn has_pair(&self, key: PairKey) -> bool {
        self.pairs
            .get(&key)
            .is_some_and(|pair| pair.expires > self.now.boot)
    }

    pub(super) fn remove_pairs(&mut self, gone: impl Fn(&PairKey) -> bool) {
        let keys: Vec<PairKey> = self
            .pairs
            .extract_if(.., |key, _| gone(key))
            .map(|(key, _)| key)
            .collect();
        for pair in keys {
            self.persist();
            self.emit(Effect::RemovePair { pair });
        }
    }

    pub(super) fn expire_pairs(&mut self) {
        let now = self.now.boot;
        let expired: BTreeSet<PairKey> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.expires <= now)
            .map(|(key, _)| *key)
            .collect();
        self.remove_all(&expired);
    }

    /// In one pass, however many they are.
    fn remove_all(&mut self, keys: &BTreeSet<PairKey>) {
        if !keys.is_empty() {
            self.remove_pairs(|key| keys.contains(key));
        }
    }

    /// Writes what certificates limit anew, after the wall clock has jumped.
    pub(super) fn rewrite_pairs(&mut self) {
        let now = self.now;
        let changed: Vec<(PairKey, Pair)> = self
            .pairs
            .iter()
            .map(|(key, pair)| {
                let expires = pair.ends.at(now);
                (*key, Pair { expires, ..*pair })
            })
            .filter(|(key, new)| {
                self.pairs
                    .get(key)
                    .is_some_and(|p| new.expires != p.expires)
            })
            .collect();
        for (key, pair) in changed {
            self.pairs.insert(key, pair);
            self.emit(Effect::SetPair {
                pair: key,
                expires: pair.expires,
                epoch: pair.epoch,
            });
        }
    }

    /// Policy has changed: pairs that it no longer wants go, those that it wants now come.
    pub(super) fn policy_changed(&mut self, policy: Policy) {
        self.policy = Some(policy);
        let unwanted: BTreeSet<PairKey> = self
            .pairs
            .keys()
            .filter(|key| !self.pairing(key.local, key.remote).wanted)
            .copied()
            .collect();
        self.remove_all(&unwanted);
        self.pair_everything();
    }

    /// Goes through all identities here and all proven ones of all peers again.
    pub(super) fn pair_everything(&mut self) {
        let locals: Vec<IdentityNumber> = self.bearers.keys().copied().collect();
        for local in locals {
            self.record_local(local);
        }
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            let Some(live) = self.session(number) else {
                continue;
            };
            let remotes: BTreeSet<IdentityNumber> =
                live.proven.values().map(|proven| proven.identity).collect();
            for remote in remotes {
                self.answer(number, remote);
            }
            self.check_ready(number);
        }
        self.consider_all();
    }

    /// Forgets every pair; those with peers are proven again in successor sessions.
    pub(super) fn flush_pairs(&mut self) {
        self.remove_pairs(|key| key.peer != PeerNumber::LOCAL);
        let now = self.now.boot;
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            if let Some(live) = self.session_mut(number) {
                live.flushed = true;
                live.renew_at = now;
            }
            self.maybe_dial(number);
        }
    }
}
