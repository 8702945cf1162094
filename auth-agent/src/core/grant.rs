//! Contexts for the client's proofs: a TLS client answers only what its server has granted ahead, each once.

use super::peer::Grants;
use super::types::{ConnId, PeerNumber};
use super::{CloseReason, Core, Effect};
use crate::wire::{Frame, MAX_REQUESTS};

impl Core {
    /// Server: keeps the client in contexts.
    pub(super) fn make_grants(&mut self, number: PeerNumber, conn: ConnId) {
        let ahead = self.config.limits.grants.min(MAX_REQUESTS);
        let Some(grants) = self.grants_mut(number, conn) else {
            return;
        };
        let stock = grants.contexts.len() + grants.making;
        if stock * 2 <= ahead {
            let count = ahead - stock;
            grants.making += count;
            self.emit(Effect::MakeGrant { conn, count });
        }
    }

    fn grants_mut(&mut self, number: PeerNumber, conn: ConnId) -> Option<&mut Grants> {
        let peer = self.peer_mut(number)?;
        match peer.live.as_mut().filter(|live| live.conn == conn) {
            Some(live) => Some(&mut live.grants),
            None => peer
                .greetings
                .get_mut(&conn)
                .map(|greeting| &mut greeting.grants),
        }
    }

    /// Server: the shell has made contexts. They are of no use to anybody but this connection's client.
    pub(super) fn grant_made(&mut self, conn: ConnId, requests: Vec<[u8; 32]>) {
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let Some(grants) = self.grants_mut(number, conn) else {
            return;
        };
        grants.making = grants.making.saturating_sub(requests.len());
        grants.contexts.extend(&requests);
        // Before live, only the Hello may come first; the node that leads has not sent it yet.
        let leads = self.peer(number).is_some_and(|peer| self.leads(&peer.id));
        let live = self.session(number).is_some_and(|live| live.conn == conn);
        if live || !leads {
            self.emit(Effect::Send {
                conn,
                frame: Frame::Grant { requests },
            });
        }
    }

    /// Server, leading: contexts made before Hello was sent go out when the session is live.
    pub(super) fn send_early_grants(&mut self, number: PeerNumber) {
        let Some(live) = self.session(number) else {
            return;
        };
        let requests: Vec<[u8; 32]> = live.grants.contexts.iter().copied().collect();
        let conn = live.conn;
        if !live.dialled && !requests.is_empty() {
            let frame = Frame::Grant { requests };
            self.emit(Effect::Send { conn, frame });
        }
    }

    /// Client: contexts have come.
    pub(super) fn granted(&mut self, number: PeerNumber, conn: ConnId, requests: Vec<[u8; 32]>) {
        let limit = self
            .config
            .limits
            .grants
            .saturating_mul(2)
            .max(MAX_REQUESTS);
        let Some(peer) = self.peer(number) else {
            return;
        };
        let dialled = match peer.greetings.get(&conn) {
            Some(greeting) => greeting.dialled,
            None => peer.live.as_ref().is_some_and(|live| live.dialled),
        };
        if !dialled {
            return self.violation(conn, CloseReason::OutOfState("grant"));
        }
        let Some(grants) = self.grants_mut(number, conn) else {
            return;
        };
        grants.contexts.extend(requests);
        if grants.contexts.len() > limit {
            return self.violation(conn, CloseReason::TooManyGrants);
        }
        self.pursue_all(number);
    }
}
