//! When to dial, and a peer's timers.

use std::time::Duration;

use super::peer::{Peer, Tunnel};
use super::types::PeerNumber;
use super::{CloseReason, Core, Effect};
use crate::wire::Frame;

/// Who answers to the end is dialled again within two seconds. Only a session that has lasted makes good for all that
/// failed before: a peer that ends each one at once would otherwise have this node dial without pause.
pub(super) const FAILURES_OF_WHO_ANSWERS: u32 = 4;

impl Core {
    /// Dials if something needs a session, or a successor, and nothing is under way.
    pub(super) fn maybe_dial(&mut self, number: PeerNumber) {
        let now = self.now.boot;
        if self.stopped || !self.settled {
            return;
        }
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        if !due(peer, now) {
            return;
        }
        let addresses = peer
            .hint
            .as_ref()
            .map(|hint| hint.addresses.clone())
            .unwrap_or_default();
        if addresses.is_empty() {
            // Only the peer can dial.
            peer.next_dial = now + Duration::from_secs(1);
            return;
        }
        peer.dialling = Some(now);
        let id = peer.id.clone();
        self.emit(Effect::Dial {
            peer: number,
            id,
            addresses,
        });
    }

    pub(super) fn dial_failed(&mut self, number: PeerNumber) {
        let id = self.peer(number).map(|peer| peer.id.clone());
        if let Some(id) = id {
            self.dial_ended(&id, true);
        }
    }

    pub(super) fn dial_ended(&mut self, id: &str, failed: bool) {
        let Some(number) = self.by_id.get(id).copied() else {
            return;
        };
        if let Some(peer) = self.peer_mut(number) {
            peer.dialling = None;
        }
        if failed {
            self.count("dials-failed");
            self.back_off(number);
        }
    }

    /// Each failure doubles the wait, up to a bound; half of it is jitter.
    pub(super) fn back_off(&mut self, number: PeerNumber) {
        let (now, seed, times) = (self.now.boot, self.config.seed, self.config.times.clone());
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let doubled = times.backoff_first * (1_u32 << peer.failures.min(16));
        let wait = doubled.min(times.backoff_last);
        let random = scramble(seed ^ (u64::from(number.0) << 32) ^ u64::from(peer.failures));
        let share = u32::try_from(random % 1_000).unwrap_or(0);
        peer.failures = peer.failures.saturating_add(1);
        peer.next_dial = now + wait / 2 + wait * share / 2_000;
    }

    pub(super) fn peer_timers(&mut self, number: PeerNumber) {
        self.expire_greetings(number);
        self.expire_standing(number);
        self.keep_alive(number);
        let (now, times) = (self.now.boot, self.config.times.clone());
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        if peer
            .dialling
            .is_some_and(|since| now >= since + times.dial * 2)
        {
            let id = peer.id.clone();
            self.dial_ended(&id, true);
        }
        self.retry_tunnel(number);
        let again = self.peer_mut(number).is_some_and(|peer| {
            let due = peer.retry_at.is_some_and(|at| now >= at);
            if due {
                peer.retry_at = None;
            }
            due
        });
        if again {
            self.pursue_all(number);
            self.consider_peer(number);
        }
        self.maybe_dial(number);
    }

    fn expire_greetings(&mut self, number: PeerNumber) {
        let (now, hello) = (self.now.boot, self.config.times.hello);
        let Some(peer) = self.peer(number) else {
            return;
        };
        let late: Vec<_> = peer
            .greetings
            .iter()
            .filter(|(_, greeting)| now >= greeting.since + hello)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in late {
            self.close_greeting(number, conn, CloseReason::HelloTimeout);
            self.back_off(number);
        }
    }

    fn keep_alive(&mut self, number: PeerNumber) {
        let (now, ping) = (self.now.boot, self.config.times.ping);
        let Some(live) = self.peer_mut(number).and_then(|peer| peer.live.as_mut()) else {
            return;
        };
        if now >= live.heard + ping * 3 {
            self.close_live(number, CloseReason::Silent);
        } else if now >= live.heard.max(live.pinged) + ping {
            live.pinged = now;
            let conn = live.conn;
            self.emit(Effect::Send {
                conn,
                frame: Frame::Ping,
            });
        }
    }

    fn retry_tunnel(&mut self, number: PeerNumber) {
        let now = self.now.boot;
        let due = self
            .peer_mut(number)
            .and_then(|peer| peer.live.as_mut())
            .is_some_and(|live| match live.tunnel {
                Tunnel::Failed { retry_at } if now >= retry_at => {
                    live.tunnel = Tunnel::Installing;
                    true
                }
                _ => false,
            });
        if due {
            self.install_tunnel(number);
        }
    }
}

fn due(peer: &Peer, now: Duration) -> bool {
    let idle = peer.dialling.is_none() && peer.greetings.is_empty();
    let asked_for = match &peer.live {
        Some(live) => now >= live.renew_at,
        None => peer.needs_session(),
    };
    idle && asked_for && now >= peer.next_dial
}

/// One step of splitmix64: enough to spread dials, and the same in every replay.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
