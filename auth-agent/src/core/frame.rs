//! Which frame is legal when. Whatever is not ends the connection with a name for it.
//!
//! | frame | before live | live |
//! |---|---|---|
//! | hello | once | never |
//! | grant | to the client, after hello | to the client |
//! | goodbye | yes | yes |
//! | all others | never | yes; those about proofs wait for the verdicts on proofs that came before |

use super::peer::Session;
use super::session::STOPS;
use super::types::{ConnId, PeerNumber};
use super::{Alarm, CloseReason, Core, Effect};
use crate::wire::Frame;

impl Core {
    pub(super) fn frame(&mut self, conn: ConnId, frame: Frame) {
        let Some(number) = self.conns.get(&conn).copied() else {
            return;
        };
        let greeting = self
            .peer(number)
            .and_then(|peer| peer.greetings.get(&conn))
            .map(|greeting| greeting.hello.is_some());
        match (greeting, frame) {
            (greeting, Frame::Goodbye { reason }) => {
                self.goodbye(number, conn, greeting.is_some(), reason.as_str());
            }
            (Some(_), Frame::Hello(hello)) => self.hello(number, conn, hello),
            (Some(true), Frame::Grant { requests }) => self.granted(number, conn, requests),
            (Some(_), frame) | (None, frame @ Frame::Hello(_)) => {
                self.violation(conn, CloseReason::OutOfState(frame.name()));
            }
            (None, frame) => {
                self.heard(number);
                self.live_frame(number, conn, frame);
            }
        }
    }

    fn goodbye(&mut self, number: PeerNumber, conn: ConnId, greeting: bool, reason: &str) {
        self.conns.remove(&conn);
        self.count(CloseReason::Goodbye.name());
        if let Some(peer) = self.peer(number).filter(|_| greeting && reason != STOPS) {
            let alarm = Alarm::Refused {
                id: peer.id.clone(),
                what: "a session".to_owned(),
                reason: reason.to_owned(),
            };
            self.alarm(alarm);
        }
        self.emit(Effect::Close {
            conn,
            reason: CloseReason::Goodbye,
        });
        self.lost(number, conn);
    }

    fn heard(&mut self, number: PeerNumber) {
        let now = self.now.boot;
        if let Some(live) = self.session_mut(number) {
            live.heard = now;
        }
        self.demonstrated(number);
    }

    fn live_frame(&mut self, number: PeerNumber, conn: ConnId, frame: Frame) {
        match frame {
            Frame::Ping => self.emit(Effect::Send {
                conn,
                frame: Frame::Pong,
            }),
            Frame::Pong => {}
            Frame::Grant { requests } => self.granted(number, conn, requests),
            Frame::Proof {
                authenticator,
                request,
            } => self.proof(number, conn, authenticator, request),
            Frame::TunnelKey { tag } => self.tunnel_key_shown(number, conn, tag),
            Frame::TunnelReady => self.peer_tunnel_ready(number, conn),
            Frame::DenyList { bytes, more } => {
                self.deny_list_offered(number, conn, bytes, more);
            }
            Frame::Ask { id, question } => self.asked(number, conn, id, question),
            Frame::Answer { id, answer } => self.answered(number, id, answer),
            frame => {
                let limit = self.config.limits.waiting_per_session;
                let Some(live) = self.session_mut(number) else {
                    return;
                };
                if live.proofs_ended == live.proofs_begun && live.waiting.is_empty() {
                    self.ordered_frame(number, conn, frame);
                } else if live.waiting.len() >= limit {
                    self.violation(conn, CloseReason::TooMuchWaiting);
                } else {
                    live.waiting.push_back((live.proofs_begun, frame));
                }
            }
        }
    }

    /// A frame that may rely on proofs sent before it: their verdicts are in.
    fn ordered_frame(&mut self, number: PeerNumber, conn: ConnId, frame: Frame) {
        match frame {
            Frame::ProofAccepted { leaf_hash } => self.proof_accepted(number, conn, leaf_hash),
            Frame::ProofRefused { leaf_hash, reason } => {
                self.proof_refused(number, conn, leaf_hash, reason.as_str());
            }
            Frame::Announce {
                address,
                leaf_hash,
                generation,
                boot_id,
            } => self.announce_received(number, conn, address, leaf_hash, generation, boot_id),
            Frame::Announced {
                address,
                generation,
            } => self.announced(number, conn, address, generation),
            Frame::AnnounceRefused {
                address,
                generation,
                reason,
            } => self.announce_refused(number, conn, address, generation, reason.as_str()),
            Frame::Withdraw {
                address,
                generation,
            } => self.withdraw_received(number, conn, address, generation),
            Frame::Withdrawn {
                address,
                generation,
            } => self.withdrawn(number, conn, address, generation),
            Frame::Resolve { address, leaf_hash } => {
                self.resolve_received(number, conn, address, leaf_hash);
            }
            Frame::ResolveRefused { address } => self.resolve_refused(number, address),
            Frame::Ready => self.peer_ready(number, conn),
            other => self.violation(conn, CloseReason::OutOfState(other.name())),
        }
    }

    /// A verdict is in: what waited for it goes on, in order.
    pub(super) fn drain_waiting(&mut self, number: PeerNumber, conn: ConnId) {
        loop {
            let Some(live) = self.session_mut(number).filter(|live| live.conn == conn) else {
                return;
            };
            let ended = live.proofs_ended;
            if live.waiting.front().is_none_or(|(after, _)| *after > ended) {
                return;
            }
            if let Some((_, frame)) = live.waiting.pop_front() {
                self.ordered_frame(number, conn, frame);
            }
        }
    }

    pub(super) fn session(&self, number: PeerNumber) -> Option<&Session> {
        self.peer(number)?.live.as_ref()
    }

    pub(super) fn session_mut(&mut self, number: PeerNumber) -> Option<&mut Session> {
        self.peer_mut(number)?.live.as_mut()
    }
}
