//! The tunnel toward a peer: whose key it has, and when both sides have it.
//!
//! A Hello claims a key. It counts as the peer's once the peer has shown that it holds the private half: otherwise
//! whoever claims the key of another first would have that node's packets taken for its own, or keep it out. A peer
//! that has shown its key once in a boot need not show it again for a successor session to be installed.
//!
//! Static keys change by successor sessions: a node that has a new one says it in the next Hello of each peer. The old
//! tunnel carries packets until both ends have the new one and the successor has taken over.

use std::time::Duration;

use super::effect::SessionState;
use super::peer::Tunnel;
use super::types::{ConnId, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect, dial};
use crate::wire::Frame;

/// Between the successors that a new tunnel key calls for.
const APART: Duration = Duration::from_millis(5);

impl Core {
    /// The session begins: shows our key, and goes on at once where the peer's is known.
    pub(super) fn begin_tunnel(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        let Some(live) = &peer.live else {
            return;
        };
        let known = live.tunnel == Tunnel::Installing;
        let effect = Effect::SendTunnelKey {
            conn: live.conn,
            id: peer.id.clone(),
            own_key: live.own_key,
            peer_key: live.hello.tunnel_key,
        };
        self.emit(effect);
        if known {
            self.install_tunnel(number);
        }
    }

    /// The peer shows its key; whether it holds it is the shell's to say.
    pub(super) fn tunnel_key_shown(&mut self, number: PeerNumber, conn: ConnId, tag: [u8; 32]) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let id = peer.id.clone();
        let Some(live) = peer.live.as_mut() else {
            return;
        };
        if std::mem::replace(&mut live.key_shown, true) {
            return self.violation(conn, CloseReason::OutOfState("tunnel-key"));
        }
        let (own_key, peer_key) = (live.own_key, live.hello.tunnel_key);
        if live.tunnel == Tunnel::Claimed {
            self.emit(Effect::VerifyTunnelKey {
                conn,
                id,
                own_key,
                peer_key,
                tag,
            });
        }
    }

    pub(super) fn tunnel_key_checked(&mut self, conn: ConnId, held: bool) {
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let claimed = |live: &&mut super::peer::Session| {
            live.conn == conn && live.tunnel == Tunnel::Claimed && live.key_shown
        };
        let Some(key) = self
            .session_mut(number)
            .filter(|live| claimed(live))
            .map(|live| live.hello.tunnel_key)
        else {
            return;
        };
        if !held {
            return self.violation(conn, CloseReason::TunnelKeyNotHeld);
        }
        if self.tunnel_key_taken(number, &key) {
            return self.violation(conn, CloseReason::TunnelKeyTaken);
        }
        if let Some(peer) = self.peer_mut(number) {
            peer.tunnel_key = Some(key);
            if let Some(live) = peer.live.as_mut() {
                live.tunnel = Tunnel::Installing;
            }
        }
        self.persist();
        self.install_tunnel(number);
    }

    /// A tunnel's key stands for one peer: it may be neither ours nor one that another peer with a session has
    /// shown to hold. Otherwise the tunnel would take the other's packets for this peer's.
    pub(super) fn tunnel_key_taken(&self, number: PeerNumber, key: &[u8; 32]) -> bool {
        *key == self.local.tunnel_key
            || Some(*key) == self.former_tunnel_key
            || self.peers.values().any(|other| {
                other.number != number
                    && (other.standing.is_some() || other.live.is_some())
                    && other.tunnel_key.as_ref() == Some(key)
            })
    }

    pub(super) fn install_tunnel(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        let Some(live) = &peer.live else {
            return;
        };
        let effect = Effect::InstallTunnel {
            peer: number,
            id: peer.id.clone(),
            conn: live.conn,
            own_key: live.own_key,
            peer_key: live.hello.tunnel_key,
            endpoint: live.endpoint,
            prefixes: live.node.prefixes.clone(),
        };
        self.emit(effect);
        self.call_peer(number);
    }

    /// Once the peer has its end and ours is being made, whichever comes last.
    fn call_peer(&mut self, number: PeerNumber) {
        let live = self.peer(number).and_then(|peer| peer.live.as_ref());
        if live.is_some_and(|live| live.peer_tunnel && live.tunnel == Tunnel::Installing) {
            self.emit(Effect::CallPeer { peer: number });
        }
    }

    pub(super) fn tunnel_installed(&mut self, conn: ConnId) {
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let live = self.peer_mut(number).and_then(|peer| peer.live.as_mut());
        let Some(live) = live.filter(|live| live.conn == conn && live.tunnel == Tunnel::Installing)
        else {
            return;
        };
        live.tunnel = Tunnel::Installed;
        let frame = Frame::TunnelReady;
        self.emit(Effect::Send { conn, frame });
        self.tunnel_changed(number);
    }

    pub(super) fn tunnel_failed(&mut self, conn: ConnId) {
        let retry_at = self.now.boot + self.config.times.retry;
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let id = peer.id.clone();
        let ordered = |live: &&mut super::peer::Session| {
            live.conn == conn && live.tunnel == Tunnel::Installing
        };
        if let Some(live) = peer.live.as_mut().filter(ordered) {
            live.tunnel = Tunnel::Failed { retry_at };
            self.count("tunnels-failed");
            self.alarm(Alarm::TunnelFailed { id });
        }
    }

    pub(super) fn peer_tunnel_ready(&mut self, number: PeerNumber, conn: ConnId) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.failures = peer.failures.min(dial::FAILURES_OF_WHO_ANSWERS);
        let Some(live) = peer.live.as_mut() else {
            return;
        };
        if std::mem::replace(&mut live.peer_tunnel, true) {
            return self.violation(conn, CloseReason::OutOfState("tunnel-ready"));
        }
        self.call_peer(number);
        self.tunnel_changed(number);
    }

    /// Both ends have the session's tunnel, and nothing of its predecessor counts: packets leave by it.
    pub(super) fn activate_tunnel(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let (Some(live), Some(standing)) = (peer.live.as_mut(), &peer.standing) else {
            return;
        };
        if live.activated || !live.tunnel_ready() || standing.entry.oldest != live.epoch {
            return;
        }
        live.activated = true;
        self.emit(Effect::ActivateTunnel { peer: number });
    }

    /// A device with another key stands beside the one in use. Successor sessions say the new one; where there are
    /// many, not all at once.
    pub(super) fn tunnel_key_changed(&mut self, key: [u8; 32], port: u16) {
        if (self.local.tunnel_key, self.local.tunnel_port) == (key, port) {
            return;
        }
        let former = std::mem::replace(&mut self.local.tunnel_key, key);
        self.local.tunnel_port = port;
        if former != key {
            self.former_tunnel_key = Some(former);
        }
        self.count("tunnel-keys-changed");
        let live = self.peers.values().filter(|peer| peer.live.is_some());
        let live: Vec<PeerNumber> = live.map(|peer| peer.number).collect();
        let mut at = self.now.boot;
        for number in live {
            self.renew_by(number, at);
            self.maybe_dial(number);
            at += APART;
        }
    }

    /// Once it stands on both sides, packets may pass.
    fn tunnel_changed(&mut self, number: PeerNumber) {
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let ready = peer.live.as_ref().is_some_and(|live| live.tunnel_ready());
        let Some(standing) = peer.standing.as_mut().filter(|_| ready) else {
            return;
        };
        let waited = std::mem::replace(&mut standing.entry.state, SessionState::Ready);
        let session = standing.entry;
        self.activate_tunnel(number);
        if waited != SessionState::Ready {
            self.persist();
            self.emit(Effect::SetSession {
                peer: number,
                session,
            });
        }
        self.check_ready(number);
        self.consider_peer(number);
    }
}
