//! Time: every due thing is done before the event that comes with the time, in the order in which it was due.

use std::collections::BTreeSet;
use std::time::Duration;

use super::types::{IdentityNumber, Now, PeerNumber};
use super::{Core, Effect};

/// How often what the kernel enforces by itself is also forgotten here.
pub(super) const HOUSEKEEPING: Duration = Duration::from_secs(10);

impl Core {
    /// Takes the new time. A wall clock that has jumped forward shortens what certificates limit. One that was
    /// wrong and is put right gives back what it took: never more than certificates say, by a clock that the shell
    /// does not let fall behind the CA's.
    pub(super) fn advance(&mut self, now: Now) {
        let passed = now.boot.saturating_sub(self.now.boot).as_secs();
        let jumped =
            self.begun && now.wall > self.now.wall.saturating_add(passed).saturating_add(2);
        let back = self.begun && now.wall.saturating_add(2) < self.now.wall.saturating_add(passed);
        let boot = now.boot.max(self.now.boot);
        self.now = Now { boot, ..now };
        if jumped || back {
            self.rewrite();
        }
        if back {
            self.pursue_everything();
        }
    }

    pub(super) fn run_timers(&mut self) {
        self.run_rewrite();
        self.expire_holds();
        while let Some((at, peer)) = self.deadlines.first().copied() {
            if at > self.now.boot {
                break;
            }
            self.deadlines.remove(&(at, peer));
            self.deadline_of.remove(&peer);
            self.peer_timers(peer);
            self.update_deadlines();
            // A deadline that stays due would spin: look again a little later.
            self.postpone_due(peer);
        }
        if self.now.boot >= self.housekeeping_at {
            self.housekeeping_at = self.now.boot + HOUSEKEEPING;
            self.housekeeping();
        }
    }

    fn postpone_due(&mut self, peer: PeerNumber) {
        let Some(at) = self.deadline_of.get(&peer).copied() else {
            return;
        };
        if at <= self.now.boot {
            let later = self.now.boot + Duration::from_millis(10);
            self.deadlines.remove(&(at, peer));
            self.deadlines.insert((later, peer));
            self.deadline_of.insert(peer, later);
        }
    }

    pub(super) fn update_deadlines(&mut self) {
        for number in std::mem::take(&mut self.touched) {
            let new = self
                .peer(number)
                .and_then(|peer| peer.deadline(self.now, &self.config.times));
            if let Some(old) = self.deadline_of.remove(&number) {
                self.deadlines.remove(&(old, number));
            }
            if let Some(at) = new {
                self.deadlines.insert((at, number));
                self.deadline_of.insert(number, at);
            }
        }
    }

    /// Goes on with whatever was put off for what the clock said.
    fn pursue_everything(&mut self) {
        self.pair_everything();
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            self.pursue_all(number);
        }
    }

    /// Writes every end anew, by the clock as it is now.
    fn rewrite(&mut self) {
        let numbers: Vec<_> = self.numbers.iter().map(|(number, _)| number).collect();
        for number in numbers {
            self.emit_identity(number);
        }
        self.rewrite_pairs();
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.rewrite_expiry(peer);
        }
    }

    fn housekeeping(&mut self) {
        let (now, limits) = (self.now, self.config.times.hold);
        self.rests.retain(|_, rest| rest.until > now.boot);
        self.settle_rewrite();
        self.expire_pairs();
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for number in peers {
            self.expire_proofs(number);
            let Some(peer) = self.peers.get_mut(&number) else {
                continue;
            };
            peer.asked.retain(|_, at| *at + limits > now.boot);
            let remembered = limits + super::hold::IN_FLIGHT;
            peer.unsure.take_if(|(_, until)| {
                until.is_some_and(|until| until + remembered + remembered <= now.boot)
            });
            peer.forgot.retain(|_, (_, at)| *at + remembered > now.boot);
            let expired: Vec<_> = peer
                .negative
                .iter()
                .filter(|(_, until)| **until <= now.boot)
                .map(|(address, _)| *address)
                .collect();
            let idle = peer.is_idle();
            self.forget_negatives(number, expired);
            if idle {
                self.forget_peer(number);
            }
        }
        if self.settled {
            self.forget_identities();
        }
    }

    /// Its number does not come back, nor does what the kernel has under it.
    fn forget_peer(&mut self, number: PeerNumber) {
        let Some(peer) = self.peers.remove(&number) else {
            return;
        };
        self.by_id.remove(&peer.id);
        self.touched.insert(number);
        self.persist();
        if peer.last_epoch > 0 {
            self.emit(Effect::RemoveSession { peer: number });
        }
    }

    /// Identities that nothing mentions lose their number for good.
    fn forget_identities(&mut self) {
        let mentioned = self.mentioned();
        let unused: Vec<IdentityNumber> = self
            .numbers
            .iter()
            .map(|(number, _)| number)
            .filter(|number| !mentioned.contains(number))
            .collect();
        for number in unused {
            self.numbers.forget(number);
            self.emit(Effect::IdentityForgotten { number });
            self.persist();
        }
    }

    fn mentioned(&self) -> BTreeSet<IdentityNumber> {
        let here = self.mine.keys().chain(self.bearers.keys()).copied();
        let rests = self.rests.values().filter_map(|rest| rest.identity);
        let there = self.peers.values().flat_map(|peer| {
            let proven = peer.live.iter().flat_map(|live| live.proven.values());
            let announced = peer.announced.values().map(|a| a.identity);
            let remotes = peer.remotes.values().map(|remote| remote.identity);
            announced
                .chain(remotes)
                .chain(proven.map(|proven| proven.identity))
        });
        here.chain(rests).chain(there).collect()
    }
}
