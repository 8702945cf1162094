//! From Hello both ways to the end of a connection: what a session begins with, takes over, and leaves.

use std::net::SocketAddr;

use super::effect::{AnnouncedState, SessionEntry, SessionState};
use super::peer::{Bucket, Ends, Greeting, Peer, Said, Session, Standing, Tunnel};
use super::types::{ConnId, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect};
use crate::wire::{Frame, Hello};

/// The last word of an agent that stops.
pub(super) const STOPS: &str = "agent stops";
/// Boot IDs remembered of one peer, to see two of them take turns.
const BOOT_IDS: usize = 8;

impl Core {
    /// The known peer with this ID, or a new one.
    pub(super) fn ensure_peer(&mut self, id: &str, name: &str) -> Option<PeerNumber> {
        if let Some(number) = self.by_id.get(id) {
            return Some(*number);
        }
        if self.peers.len() >= self.config.limits.peers || self.next_peer == u32::MAX {
            self.count("peers-full");
            self.alarm(Alarm::Full("peers"));
            return None;
        }
        let number = PeerNumber(self.next_peer);
        self.next_peer += 1;
        self.by_id.insert(id.to_owned(), number);
        self.peers
            .insert(number, Peer::new(number, id.to_owned(), name.to_owned()));
        self.persist();
        Some(number)
    }

    /// Hello both ways: this connection is the session from now on.
    pub(super) fn go_live(&mut self, number: PeerNumber, conn: ConnId, lineage: u64) {
        let Some((greeting, hello)) = self.take_greeting(number, conn) else {
            return;
        };
        self.drop_predecessor(number);
        self.check_boot(number, &hello);
        self.check_lineage(number, lineage);
        self.take_prefixes(number, &greeting.node);
        let (now, times) = (self.now, self.config.times.clone());
        let leads = self.leads(&greeting.node.id);
        let our_key_stands = greeting.own_key == self.local.tunnel_key;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.last_epoch = peer.last_epoch.saturating_add(1);
        let ends = Ends {
            age: now.boot + times.session,
            not_after: greeting.node.not_after.min(greeting.local_not_after),
        };
        // The node that does not lead waits a little longer: its dial is for where ours is swallowed.
        let renew = match leads {
            // Our key has changed since we said it.
            _ if !our_key_stands => std::time::Duration::ZERO,
            true => times.renew,
            false => times.renew + times.renew / 6,
        };
        let known_key = peer.tunnel_key == Some(hello.tunnel_key);
        let tunnel = match known_key {
            true => Tunnel::Installing,
            false => Tunnel::Claimed,
        };
        peer.asked.clear();
        let session = Session {
            conn,
            dialled: greeting.dialled,
            epoch: peer.last_epoch,
            endpoint: SocketAddr::new(underlay(peer, &greeting), hello.tunnel_port),
            node: greeting.node,
            since: now.boot,
            ends,
            renew_at: now.boot + renew,
            heard: now.boot,
            pinged: now.boot,
            demonstrated: !leads,
            tunnel,
            own_key: greeting.own_key,
            key_shown: false,
            peer_tunnel: false,
            ready_sent: false,
            ready_heard: false,
            committed: false,
            activated: false,
            flushed: false,
            grants: greeting.grants,
            given: Default::default(),
            given_order: Default::default(),
            proven: Default::default(),
            proofs_begun: 0,
            proofs_ended: 0,
            waiting: Default::default(),
            deny_number: hello.deny_number,
            deny_list_in: Vec::new(),
            refusals: 0,
            resolves_in: Bucket::default(),
            deny_lists_in: Bucket::default(),
            asks: Default::default(),
            questions_in: Bucket::default(),
            hello,
        };
        let epoch = session.epoch;
        let cold = SessionEntry {
            oldest: epoch,
            current: epoch,
            expires: ends.at(now),
            state: SessionState::Pending,
        };
        let standing = match peer.standing {
            None => Standing { entry: cold, ends },
            Some(old) => {
                // Also where the peer's key has changed: the old tunnel carries packets until both sides are ready.
                let ends = ends.earliest(old.ends);
                let entry = SessionEntry {
                    oldest: old.entry.oldest,
                    expires: ends.at(now),
                    state: old.entry.state,
                    ..cold
                };
                Standing { entry, ends }
            }
        };
        peer.standing = Some(standing);
        peer.live = Some(session);
        self.persist();
        self.emit(Effect::SetSession {
            peer: number,
            session: standing.entry,
        });
        if leads {
            self.send_early_grants(number);
        }
        self.begin_tunnel(number);
        self.carry_over(number, epoch);
        self.relay_deny_list(number);
        self.pursue_all(number);
        self.consider_peer(number);
    }

    fn take_greeting(&mut self, number: PeerNumber, conn: ConnId) -> Option<(Greeting, Hello)> {
        let peer = self.peer_mut(number)?;
        let leads_over = peer.id.clone();
        let mut greeting = peer.greetings.remove(&conn)?;
        let hello = greeting.hello.take()?;
        if self.leads(&leads_over) {
            // None of the others is live on either side, since our Hello is missing there.
            let peer = self.peer(number)?;
            let others: Vec<ConnId> = peer.greetings.keys().copied().collect();
            self.close_greetings(number, &others);
        }
        Some((greeting, hello))
    }

    fn drop_predecessor(&mut self, number: PeerNumber) {
        let old = self.peer_mut(number).and_then(|peer| peer.live.take());
        if let Some(old) = old {
            self.conns.remove(&old.conn);
            self.refuse(old.conn, CloseReason::Superseded);
        }
    }

    /// A changed boot ID inherits nothing.
    fn check_boot(&mut self, number: PeerNumber, hello: &Hello) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let boot_id = hello.boot_id;
        if peer.boot_ids.last() == Some(&boot_id) {
            return;
        }
        let turns = peer.boot_ids.contains(&boot_id);
        let first = peer.boot_ids.is_empty();
        let id = peer.id.clone();
        peer.boot_ids.retain(|known| *known != boot_id);
        peer.boot_ids.push(boot_id);
        let excess = peer.boot_ids.len().saturating_sub(BOOT_IDS);
        peer.boot_ids.drain(..excess);
        peer.seen.clear();
        peer.seen_floor = 0;
        peer.tunnel_key = None;
        if turns {
            self.count("boot-ids-take-turns");
            self.alarm(Alarm::BootIdsTakeTurns { id });
        }
        if !first {
            self.count("cold-starts");
            self.end_standing(number);
        }
    }

    /// One of the two has cut what the other still has: both begin cold.
    fn check_lineage(&mut self, number: PeerNumber, lineage: u64) {
        let other = |peer: &Peer| peer.standing.is_some() && peer.lineage != lineage;
        if self.peer(number).is_some_and(other) {
            self.count("lineages-ended");
            self.end_standing(number);
        }
        if let Some(peer) = self.peer_mut(number) {
            peer.lineage = lineage;
        }
    }

    /// What older sessions announced is announced again; what is being withdrawn outlives their epochs.
    fn carry_over(&mut self, number: PeerNumber, epoch: u32) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let mut again = Vec::new();
        for (address, announcement) in peer.announced.iter_mut() {
            announcement.said = Said::Nothing;
            if announcement.entry.state == AnnouncedState::Withdrawing {
                announcement.entry.epoch = epoch;
                again.push((*address, announcement.entry));
            } else {
                peer.wanted.insert(announcement.identity);
            }
        }
        for (address, announced) in again {
            self.emit(Effect::SetAnnounced {
                address,
                peer: number,
                announced,
            });
            self.send_withdraw(number, address);
        }
    }

    pub(super) fn disconnected(&mut self, conn: ConnId) {
        if let Some(number) = self.conns.remove(&conn) {
            self.lost(number, conn);
        }
    }

    /// The connection is gone; the session in the kernel is not.
    pub(super) fn lost(&mut self, number: PeerNumber, conn: ConnId) {
        let settled = self.now.boot.saturating_sub(self.config.times.ping);
        if let Some(peer) = self.peer_mut(number)
            && let Some(live) = &peer.live
            && live.conn == conn
            && live.since <= settled
        {
            peer.failures = 0;
        }
        self.back_off(number);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.greetings.remove(&conn);
        if peer.live.as_ref().is_some_and(|live| live.conn == conn) {
            peer.live = None;
            peer.asked.clear();
            let next = peer
                .greetings
                .iter()
                .find(|(_, greeting)| greeting.hello.is_some())
                .map(|(conn, _)| *conn);
            if let Some(next) = next {
                self.lead_live(number, next);
            }
        }
        self.maybe_dial(number);
    }

    /// A broken rule ends the connection, not the session, and is remembered against the peer.
    pub(super) fn violation(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(number) = self.conns.remove(&conn) else {
            return;
        };
        self.count("violations");
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.violations += 1;
        let id = peer.id.clone();
        self.refuse(conn, reason);
        self.alarm(Alarm::Violation { id, reason });
        self.lost(number, conn);
    }

    /// Closes the live connection for a reason of ours.
    pub(super) fn close_live(&mut self, number: PeerNumber, reason: CloseReason) {
        let Some(conn) = self
            .peer(number)
            .and_then(|peer| peer.live.as_ref())
            .map(|live| live.conn)
        else {
            return;
        };
        self.conns.remove(&conn);
        self.refuse(conn, reason);
        self.lost(number, conn);
    }

    /// A successor is dialled now; the session goes on until it has taken over.
    pub(super) fn renew_session(&mut self, number: PeerNumber) {
        self.renew_by(number, self.now.boot);
        self.maybe_dial(number);
    }

    pub(super) fn renew_by(&mut self, number: PeerNumber, at: std::time::Duration) {
        if let Some(live) = self.session_mut(number) {
            live.renew_at = live.renew_at.min(at);
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            let frame = Frame::Goodbye {
                reason: STOPS.into(),
            };
            self.emit(Effect::Send { conn, frame });
            self.disconnected(conn);
            self.refuse(conn, CloseReason::Stopping);
        }
    }
}

/// Where the tunnel's packets go: where the CA says the node is, else where its connection came from.
fn underlay(peer: &Peer, greeting: &Greeting) -> std::net::IpAddr {
    let hints = peer.hint.iter().flat_map(|hint| &hint.addresses);
    let mut listed = hints.map(|address| address.ip());
    let first = listed.clone().next();
    if listed.any(|address| address == greeting.address) {
        greeting.address
    } else {
        first.unwrap_or(greeting.address)
    }
}
