//! From a TLS connection to Hello both ways: who may greet, what does not fit, and which of several connections it
//! shall be.

use super::event::{Connected, PeerNode};
use super::peer::{Grants, Greeting};
use super::types::{ConnId, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect};
use crate::wire::{Frame, Hello, OLDEST_VERSION, VERSION};

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
        let (now, limits) = (self.now.boot, &self.config.limits);
        let (at_once, per_second) = (limits.conns_per_peer, limits.conns_per_second);
        let let_in = dialled
            || self.peer_mut(number).is_some_and(|peer| {
                peer.greetings.len() < at_once && peer.let_in.take(now, per_second)
            });
        if let_in {
            Ok(number)
        } else {
            Err(CloseReason::TooMany)
        }
    }

    pub(super) fn refuse(&mut self, conn: ConnId, reason: CloseReason) {
        self.count(reason.name());
        self.emit(Effect::Close { conn, reason });
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

    pub(super) fn close_greetings(&mut self, number: PeerNumber, conns: &[ConnId]) {
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
}
