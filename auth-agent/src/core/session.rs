//! From a TLS connection to a live session: Hello both ways, and which of several connections it shall be.

use std::net::SocketAddr;

use super::effect::{AnnouncedState, SessionEntry, SessionState};
use super::event::{Connected, PeerNode};
use super::peer::{Bucket, Ends, Grants, Greeting, Peer, Said, Session, Standing, Tunnel};
use super::types::{ConnId, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect};
use crate::wire::{Frame, Hello, OLDEST_VERSION, VERSION};

/// The last word of an agent that stops.
pub(super) const STOPS: &str = "agent stops";
/// Boot IDs remembered of one peer, to see two of them take turns.
const BOOT_IDS: usize = 8;

impl Core {
    pub(super) fn connected(&mut self, connected: Connected) {
        let Connected {
            conn,
            node,
            dialled,
            address,
            local_not_after,
        } = connected;
        let number = match self.admit(&node, dialled) {
            Ok(number) => number,
            Err(reason) => {
                if dialled {
                    self.dial_ended(&node.id, true);
                }
                return self.refuse(conn, reason);
            }
        };
        let leads = self.leads(&node.id);
        let now = self.now.boot;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        if dialled {
            peer.dialling = None;
            let renewing = peer.live.as_ref().is_none_or(|live| now >= live.renew_at);
            if !renewing {
                return self.refuse(conn, CloseReason::Duplicate);
            }
        }
        let greeting = Greeting {
            dialled,
            node,
            address,
            local_not_after,
            own_key: [0; 32],
            since: now,
            hello: None,
            grants: Grants::default(),
        };
        peer.greetings.insert(conn, greeting);
        self.conns.insert(conn, number);
        if leads {
            self.prefer_own_dial(number);
        } else {
            let lineage = self.peer(number).map_or(0, |peer| peer.lineage);
            self.send_hello(number, conn, lineage);
        }
        if !dialled {
            self.make_grants(number, conn);
        }
    }

    /// Whether anything can come of a connection with this node.
    fn admit(&mut self, node: &PeerNode, dialled: bool) -> Result<PeerNumber, CloseReason> {
        if self.stopped {
            return Err(CloseReason::Stopping);
        }
        if node.id == self.local.id {
            return Err(CloseReason::OurselvesOnTheOtherSide);
        }
        if self.node_revoked(node) {
            return Err(CloseReason::Revoked);
        }
        if node.not_after <= self.now.wall {
            return Err(CloseReason::Expired);
        }
        self.prefix_conflict(node)?;
        let number = self
            .ensure_peer(&node.id, &node.name)
            .ok_or(CloseReason::TooMany)?;
        let limit = self.config.limits.conns_per_peer;
        let full = self
            .peer(number)
            .is_some_and(|peer| peer.greetings.len() >= limit);
        if full && !dialled {
            return Err(CloseReason::TooMany);
        }
        Ok(number)
    }

    fn refuse(&mut self, conn: ConnId, reason: CloseReason) {
        self.count(reason.name());
        self.emit(Effect::Close { conn, reason });
    }

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

    fn send_hello(&mut self, number: PeerNumber, conn: ConnId, lineage: u64) {
        let own_key = self.local.tunnel_key;
        let greetings = self.peer_mut(number).map(|peer| &mut peer.greetings);
        if let Some(greeting) = greetings.and_then(|greetings| greetings.get_mut(&conn)) {
            greeting.own_key = own_key;
        }
        let hello = Hello {
            version: VERSION,
            oldest_version: OLDEST_VERSION,
            features: 0,
            node_id: self.local.id.clone(),
            boot_id: self.local.boot_id,
            tunnel_kind: self.local.tunnel_kind,
            tunnel_key: own_key,
            tunnel_port: self.local.tunnel_port,
            deny_number: self.deny.number,
            endpoints: u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX),
            lineage,
        };
        let frame = Frame::Hello(hello);
        self.emit(Effect::Send { conn, frame });
    }

    /// Two dials at once, neither live: ours goes on, since ours is the lower ID.
    fn prefer_own_dial(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        if peer.live.is_some() || !peer.greetings.values().any(|greeting| greeting.dialled) {
            return;
        }
        let theirs: Vec<ConnId> = peer
            .greetings
            .iter()
            .filter(|(_, greeting)| !greeting.dialled)
            .map(|(conn, _)| *conn)
            .collect();
        self.close_greetings(number, &theirs);
    }

    fn close_greetings(&mut self, number: PeerNumber, conns: &[ConnId]) {
        for conn in conns {
            self.close_greeting(number, *conn, CloseReason::Duplicate);
        }
    }

    pub(super) fn close_greeting(&mut self, number: PeerNumber, conn: ConnId, reason: CloseReason) {
        self.conns.remove(&conn);
        if let Some(peer) = self.peer_mut(number) {
            peer.greetings.remove(&conn);
        }
        self.refuse(conn, reason);
    }

    /// A Hello on a connection that is not live.
    pub(super) fn hello(&mut self, number: PeerNumber, conn: ConnId, hello: Hello) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let id = peer.id.clone();
        let demonstrated = peer.live.as_ref().is_none_or(|live| live.demonstrated);
        let Some(greeted) = peer.greetings.get(&conn).map(|g| g.hello.is_some()) else {
            return;
        };
        if greeted {
            return self.violation(conn, CloseReason::OutOfState("hello"));
        }
        if hello.node_id != id {
            return self.violation(conn, CloseReason::NodeIdMismatch);
        }
        if let Some(reason) = self.unfit(&hello) {
            return self.turn_away(number, conn, reason);
        }
        if self.tunnel_key_taken(number, &hello.tunnel_key) {
            return self.violation(conn, CloseReason::TunnelKeyTaken);
        }
        let lineage = hello.lineage;
        if let Some(greeting) = self
            .peer_mut(number)
            .and_then(|peer| peer.greetings.get_mut(&conn))
        {
            greeting.hello = Some(hello);
        }
        if self.leads(&id) {
            // Live here, but the peer may not know yet: what it does next tells which one it has chosen.
            if demonstrated {
                self.lead_live(number, conn);
            }
        } else {
            self.go_live(number, conn, lineage);
            self.emit(Effect::Send {
                conn,
                frame: Frame::Ping,
            });
        }
    }

    /// Why two programs, or their settings, cannot work together.
    fn unfit(&self, hello: &Hello) -> Option<CloseReason> {
        let (theirs, oldest) = (hello.version, hello.oldest_version);
        if theirs < OLDEST_VERSION || oldest > VERSION {
            return Some(CloseReason::Version { theirs, oldest });
        }
        let (ours, theirs) = (self.local.tunnel_kind, hello.tunnel_kind);
        (ours != theirs).then_some(CloseReason::TunnelKind { ours, theirs })
    }

    /// Says why there is no session, on both sides: it takes a person to change that.
    fn turn_away(&mut self, number: PeerNumber, conn: ConnId, reason: CloseReason) {
        let frame = Frame::Goodbye {
            reason: reason.to_string().as_str().into(),
        };
        self.emit(Effect::Send { conn, frame });
        self.close_greeting(number, conn, reason);
        self.back_off(number);
        if let Some(id) = self.peer(number).map(|peer| peer.id.clone()) {
            self.alarm(Alarm::NoSession { id, reason });
        }
    }

    /// The peer has shown that it takes this session as live: what it dialled before is not needed.
    pub(super) fn demonstrated(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let Some(live) = peer.live.as_mut().filter(|live| !live.demonstrated) else {
            return;
        };
        live.demonstrated = true;
        let waiting: Vec<ConnId> = peer
            .greetings
            .iter()
            .filter(|(_, greeting)| greeting.hello.is_some())
            .map(|(conn, _)| *conn)
            .collect();
        self.close_greetings(number, &waiting);
    }

    /// The node that leads decides whether the session goes on where the one before stands: only if the peer's is
    /// the same. A node that has cut a session does not know what the other still believes of its addresses.
    pub(super) fn lead_live(&mut self, number: PeerNumber, conn: ConnId) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        let greeting = peer.greetings.get(&conn);
        let theirs = greeting.and_then(|greeting| greeting.hello.as_ref());
        let (Some(theirs), ours) = (theirs, peer.lineage) else {
            return;
        };
        let same_boot = peer.boot_ids.last() == Some(&theirs.boot_id);
        let same = ours != 0 && same_boot && theirs.lineage == ours;
        if !same && same_boot && peer.live.is_some() {
            // Dials that crossed: said before the live connection became the session. Were it not so, that one
            // would be ending.
            return self.close_greeting(number, conn, CloseReason::Duplicate);
        }
        let lineage = match same {
            true => ours,
            false => self.next_generation(),
        };
        self.send_hello(number, conn, lineage);
        self.go_live(number, conn, lineage);
    }

    /// Hello both ways: this connection is the session from now on.
    fn go_live(&mut self, number: PeerNumber, conn: ConnId, lineage: u64) {
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
        for (address, announcement) in &mut peer.announced {
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
