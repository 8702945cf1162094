//! Questions between shells about a flow, for `verify` and `explain`. They change nothing here: the core keeps the
//! connection's rules and bounds what a peer may ask, and what may wait for its answers.

use std::time::Duration;

use super::types::{ConnId, PeerNumber};
use super::{Core, Effect};
use crate::wire::{Frame, MAX_ANSWER, MAX_QUESTION};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

impl Core {
    pub(super) fn ask(&mut self, number: PeerNumber, id: u64, question: Vec<u8>) {
        let (now, most) = (self.now.boot, self.config.limits.questions_open);
        let legal = (1..=MAX_QUESTION).contains(&question.len());
        let Some(live) = self.session_mut(number).filter(|_| legal) else {
            return self.count("questions-not-sent");
        };
        live.asks.retain(|_, at| *at + PATIENCE > now);
        if live.asks.len() >= most {
            return self.count("questions-not-sent");
        }
        live.asks.insert(id, now);
        let conn = live.conn;
        let frame = Frame::Ask { id, question };
        self.emit(Effect::Send { conn, frame });
    }

    pub(super) fn asked(&mut self, number: PeerNumber, conn: ConnId, id: u64, question: Vec<u8>) {
        let (now, rate) = (self.now.boot, self.config.limits.questions_per_second);
        let Some(live) = self.session_mut(number) else {
            return;
        };
        if !live.questions_in.take(now, rate) {
            return self.count("questions-too-fast");
        }
        self.emit(Effect::Asked {
            peer: number,
            conn,
            id,
            question,
        });
    }

    pub(super) fn answer_given(&mut self, conn: ConnId, id: u64, answer: Vec<u8>) {
        let number = self.conns.get(&conn).copied();
        let live = number.and_then(|number| self.session(number));
        let live = live.is_some_and(|live| live.conn == conn);
        if live && (1..=MAX_ANSWER).contains(&answer.len()) {
            let frame = Frame::Answer { id, answer };
            self.emit(Effect::Send { conn, frame });
        }
    }

    pub(super) fn answered(&mut self, number: PeerNumber, id: u64, answer: Vec<u8>) {
        let now = self.now.boot;
        let Some(live) = self.session_mut(number) else {
            return;
        };
        let asked = live.asks.remove(&id);
        if asked.is_none_or(|at| at + PATIENCE <= now) {
            return self.count("late-answers");
        }
        self.emit(Effect::Answered {
            peer: number,
            id,
            answer,
        });
    }
}
