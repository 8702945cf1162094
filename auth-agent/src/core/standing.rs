//! What stands in the kernel for a peer: readiness, the moving of epochs, and the end.

use super::effect::{AnnouncedState, SessionEntry, SessionState};
use super::peer::Said;
use super::types::PeerNumber;
use super::{Alarm, CloseReason, Core, Discarded, Effect};
use crate::wire::Frame;

impl Core {
    /// Says `Ready` when this session carries everything that older ones did.
    pub(super) fn check_ready(&mut self, number: PeerNumber) {
        let able = self.settled && self.policy.is_some();
        let Some(peer) = self.peer_mut(number).filter(|_| able) else {
            return;
        };
        let Some(live) = peer.live.as_mut() else {
            return;
        };
        let carried = peer
            .announced
            .values()
            .filter(|a| a.entry.epoch < live.epoch || a.withdrawing())
            .all(|a| matches!(a.said, Said::Refused { .. }) && !a.withdrawing());
        if live.ready_sent || !live.tunnel_ready() || !carried {
            return;
        }
        live.ready_sent = true;
        let conn = live.conn;
        let frame = Frame::Ready;
        self.emit(Effect::Send { conn, frame });
        self.take_over(number);
    }

    pub(super) fn peer_ready(&mut self, number: PeerNumber, conn: super::ConnId) {
        let Some(live) = self.peer_mut(number).and_then(|peer| peer.live.as_mut()) else {
            return;
        };
        if !live.peer_tunnel || std::mem::replace(&mut live.ready_heard, true) {
            return self.violation(conn, CloseReason::OutOfState("ready"));
        }
        self.take_over(number);
    }

    /// Both are ready: the oldest valid epoch moves.
    fn take_over(&mut self, number: PeerNumber) {
        let Some(live) = self.peer_mut(number).and_then(|peer| peer.live.as_mut()) else {
            return;
        };
        if live.committed || !live.ready_sent || !live.ready_heard {
            return;
        }
        live.committed = true;
        self.count("sessions-ready");
        self.move_oldest(number);
    }

    /// Only the live session's epoch counts from now on.
    fn move_oldest(&mut self, number: PeerNumber) {
        let now = self.now;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let Some(live) = &peer.live else {
            return;
        };
        let (epoch, ends, ready) = (live.epoch, live.ends, live.tunnel_ready());
        let state = if ready {
            SessionState::Ready
        } else {
            SessionState::Pending
        };
        let entry = SessionEntry {
            oldest: epoch,
            current: epoch,
            expires: ends.at(now),
            state,
        };
        let moved = peer
            .standing
            .is_none_or(|standing| standing.entry.oldest != epoch);
        peer.standing = Some(super::peer::Standing { entry, ends });
        self.persist();
        self.emit(Effect::SetSession {
            peer: number,
            session: entry,
        });
        self.activate_tunnel(number);
        if moved {
            self.sweep(number, epoch);
        }
    }

    /// Drops what older epochs carried, here and in the kernel.
    fn sweep(&mut self, number: PeerNumber, below: u32) {
        self.emit(Effect::SweepEpoch {
            peer: number,
            below,
        });
        let (now, limit) = (self.now.boot, self.config.limits.remotes_per_peer);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let remotes: Vec<_> = peer
            .remotes
            .extract_if(.., |_, remote| remote.epoch < below)
            .collect();
        for (address, remote) in &remotes {
            peer.forgets(*address, remote.identity, now, limit);
        }
        let announced: Vec<_> = peer
            .announced
            .extract_if(.., |_, announcement| announcement.entry.epoch < below)
            .collect();
        peer.rests_on.retain(|_, epoch| *epoch >= below);
        peer.inherited = false;
        for (address, _) in remotes {
            self.holders.remove(&address);
        }
        for (address, announcement) in announced {
            self.rest(address, announcement);
        }
        self.pairs
            .retain(|key, pair| key.peer != number || pair.epoch >= below);
        self.persist();
    }

    /// Hard expiry, the predecessor's or the session's own.
    pub(super) fn expire_standing(&mut self, number: PeerNumber) {
        let now = self.now;
        let Some(peer) = self.peer(number) else {
            return;
        };
        let Some(standing) = peer.standing.filter(|s| s.ends.at(now) <= now.boot) else {
            return;
        };
        let survives = peer
            .live
            .as_ref()
            .is_some_and(|live| live.ends.at(now) > now.boot && live.epoch > standing.entry.oldest);
        if survives {
            self.count("predecessors-expired");
            self.move_oldest(number);
        } else {
            self.end(number, CloseReason::Expired);
        }
    }

    /// Writes the end of a session again after the wall clock has jumped.
    pub(super) fn rewrite_expiry(&mut self, number: PeerNumber) {
        let now = self.now;
        let Some(standing) = self
            .peer_mut(number)
            .and_then(|peer| peer.standing.as_mut())
        else {
            return;
        };
        let expires = standing.ends.at(now);
        if expires != standing.entry.expires {
            standing.entry.expires = expires;
            let session = standing.entry;
            self.persist();
            self.emit(Effect::SetSession {
                peer: number,
                session,
            });
        }
    }

    /// The session is over: first the cut, then everything that it carried, last the tunnel and the connection.
    pub(super) fn end(&mut self, number: PeerNumber, reason: CloseReason) {
        self.end_standing(number);
        let Some(peer) = self.peer(number) else {
            return;
        };
        let greetings: Vec<_> = peer.greetings.keys().copied().collect();
        if reason == CloseReason::Revoked {
            for conn in greetings {
                self.close_greeting(number, conn, reason);
            }
        }
        self.close_live(number, reason);
        self.alarm(Alarm::SessionEnded {
            peer: number,
            reason,
        });
    }

    /// Ends what stands in the kernel; the connection, if any, goes on.
    pub(super) fn end_standing(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        if peer.standing.take().is_none() {
            return;
        }
        peer.lineage = 0;
        let below = peer.last_epoch.saturating_add(1);
        let session = SessionEntry::cut(peer.last_epoch);
        let refused = peer.negative.keys().copied().collect();
        // They were greeted while this still stood.
        let greeted: Vec<_> = peer.greetings.keys().copied().collect();
        peer.wanted.clear();
        peer.asked.clear();
        self.emit(Effect::SetSession {
            peer: number,
            session,
        });
        self.discard_peer(number, Discarded::SessionEnded);
        self.forget_negatives(number, refused);
        self.sweep(number, below);
        self.emit(Effect::RemoveTunnel { peer: number });
        self.write_prefixes();
        for conn in greeted {
            self.close_greeting(number, conn, CloseReason::Superseded);
        }
    }

    /// True while the entry lets gates decide.
    pub(super) fn passes(&self, number: PeerNumber) -> bool {
        self.peer(number)
            .and_then(|peer| peer.standing)
            .is_some_and(|standing| {
                standing.entry.state == SessionState::Ready
                    && standing.ends.at(self.now) > self.now.boot
            })
    }

    /// True if the peer believes this announcement.
    pub(super) fn confirmed(&self, number: PeerNumber, address: std::net::IpAddr) -> bool {
        self.peer(number)
            .and_then(|peer| peer.announced.get(&address))
            .is_some_and(|announcement| announcement.entry.state == AnnouncedState::Confirmed)
    }
}
