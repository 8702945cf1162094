//! The other half of `verify`: what the peer's node says of a flow. A question changes nothing, and is answered only
//! about addresses that are announced between the two nodes: their identities are known to both already.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::agent::{Agent, workload};
use super::super::report::name;
use super::here::{Checks, FlowRules};
use super::protocol_named;
use crate::admin::{VerifyCheck, VerifyState};
use crate::core::{AnnouncedState, ConnId, ConnectionView, Event, PeerNumber, PeerView, View};
use crate::wire::MAX_ANSWER;

/// An answer counts for so long.
const FRESH: Duration = Duration::from_secs(2);
/// The same question is not asked again before.
const AGAIN: Duration = Duration::from_millis(300);
/// Questions that are remembered.
const REMEMBERED: usize = 64;
/// Lines of a peer's answer that are read, and the longest word and sentence in one.
const LINES: usize = 16;
const WORD: usize = 40;
const SENTENCE: usize = 300;

/// A flow between the asker's address and one of the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Question {
    /// On the asking node.
    asker: IpAddr,
    /// On the node that is asked.
    asked: IpAddr,
    /// The asker's end opens the flow.
    outward: bool,
    protocol: String,
    port: u16,
}

/// What has been asked lately, and what came back.
#[derive(Debug, Default)]
pub(in crate::shell) struct Questions {
    next: u64,
    asked: BTreeMap<(PeerNumber, Question), Asked>,
}

#[derive(Debug)]
struct Asked {
    id: u64,
    at: Duration,
    answer: Option<(Duration, Vec<VerifyCheck>)>,
}

impl Questions {
    /// The number to ask under, unless it was asked a moment ago.
    fn due(&mut self, peer: PeerNumber, question: &Question, now: Duration) -> Option<u64> {
        self.asked.retain(|_, asked| asked.at + FRESH * 2 > now);
        let key = (peer, question.clone());
        let earlier = self.asked.get(&key);
        let recent = earlier.is_some_and(|asked| asked.at + AGAIN > now);
        if recent || (earlier.is_none() && self.asked.len() >= REMEMBERED) {
            return None;
        }
        self.next += 1;
        let (id, at) = (self.next, now);
        let answer = earlier.and_then(|asked| asked.answer.clone());
        self.asked.insert(key, Asked { id, at, answer });
        Some(id)
    }

    /// A peer has answered. What it says is text from a stranger: cut to size, and to what can be printed.
    pub(in crate::shell) fn answered(
        &mut self,
        peer: PeerNumber,
        id: u64,
        answer: &[u8],
        now: Duration,
    ) {
        let Ok(mut checks) = serde_json::from_slice::<Vec<VerifyCheck>>(answer) else {
            return;
        };
        checks.truncate(LINES);
        for check in &mut checks {
            check.what = printable(&check.what, WORD);
            check.detail = printable(&check.detail, SENTENCE);
        }
        let mut all = self.asked.iter_mut();
        if let Some((_, asked)) = all.find(|((of, _), asked)| *of == peer && asked.id == id) {
            asked.answer = Some((now, checks));
        }
    }

    fn answer(
        &self,
        peer: PeerNumber,
        question: &Question,
        now: Duration,
    ) -> Option<&[VerifyCheck]> {
        let asked = self.asked.get(&(peer, question.clone()))?;
        let (at, checks) = asked.answer.as_ref()?;
        (*at + FRESH > now).then_some(checks.as_slice())
    }
}

fn printable(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(most).map(plain).collect()
}

impl Agent {
    /// What the peer said last of its side, and asks it anew.
    pub(super) async fn check_there(
        &mut self,
        peer: &PeerView,
        (near, far): (IpAddr, IpAddr),
        flow: FlowRules,
        checks: &mut Checks,
    ) {
        let what = format!("on {}", peer.name);
        if peer.connection != ConnectionView::Live {
            let detail = format!(
                "{} is not reached: how the flow stands there cannot be told",
                peer.name
            );
            return checks.add(&what, VerifyState::Unknown, detail);
        }
        let question = Question {
            asker: near,
            asked: far,
            outward: flow.outward,
            protocol: flow.protocol.to_string(),
            port: flow.port,
        };
        let now = self.clock.now().boot;
        if let Some(id) = self.questions.due(peer.number, &question, now)
            && let Ok(question) = serde_json::to_vec(&question)
        {
            let peer = peer.number;
            self.feed(Event::Ask { peer, id, question }).await;
        }
        match self.questions.answer(peer.number, &question, now) {
            Some(said) => checks.0.extend(said.iter().map(|check| VerifyCheck {
                what: format!("{} on {}", check.what, peer.name),
                ..check.clone()
            })),
            None => {
                let detail = format!("{} has not said yet", peer.name);
                checks.add(&what, VerifyState::Unknown, detail);
            }
        }
    }

    /// A peer asks how a flow stands here. Nothing is said to a question that makes no sense.
    pub(in crate::shell) fn answer_peer(
        &self,
        peer: PeerNumber,
        conn: ConnId,
        id: u64,
        question: &[u8],
    ) -> Option<Event> {
        let question: Question = serde_json::from_slice(question).ok()?;
        let checks = self.seen_from(peer, &question)?;
        let answer = serde_json::to_vec(&checks.0).ok()?;
        (answer.len() <= MAX_ANSWER).then_some(Event::AnswerGiven { conn, id, answer })
    }

    /// Which identity that is remains untold; that it is on the deny list everybody knows who has the list.
    fn is_revoked_at(&self, view: &View, address: IpAddr) -> bool {
        let mut endpoints = view.endpoints.iter();
        let identity = endpoints
            .find(|endpoint| endpoint.addresses.contains(&address))
            .and_then(|endpoint| endpoint.identity);
        identity
            .and_then(|identity| view.identities.get(&identity))
            .is_some_and(|known| known.revoked)
    }

    /// This node's side, as far as the peer may know it.
    fn seen_from(&self, number: PeerNumber, question: &Question) -> Option<Checks> {
        let view = self.view();
        let peer = view.peers.iter().find(|peer| peer.number == number)?;
        if !peer
            .prefixes
            .iter()
            .any(|net| net.contains(&question.asker))
        {
            return None;
        }
        let mut checks = Checks(Vec::new());
        let mut announced = peer.announced.iter();
        let announced = announced.find(|(address, _, _)| *address == question.asked);
        let Some((address, endpoint, state)) = announced else {
            let detail = match self.is_revoked_at(&view, question.asked) {
                true => format!("who is at {} is revoked", question.asked),
                false => format!("{} is announced to nobody on your node", question.asked),
            };
            checks.holds("announcement", false, detail);
            return Some(checks);
        };
        checks.holds(
            "announcement",
            *state == AnnouncedState::Confirmed,
            match state {
                AnnouncedState::Confirmed => format!("{address} is announced and confirmed"),
                AnnouncedState::Sent => format!("{address} is announced, and not confirmed yet"),
                AnnouncedState::Withdrawing => format!("{address} is being withdrawn"),
            },
        );
        self.check_session(peer, &mut checks);
        let endpoint = self.endpoint(endpoint.0)?;
        let Some(local) = self.identity_of(endpoint) else {
            checks.holds("identity", false, format!("{address} has no identity"));
            return Some(checks);
        };
        let mut remotes = peer.remotes.iter();
        let Some((_, remote)) = remotes.find(|(remote, _)| *remote == question.asker) else {
            let detail = format!("your node has not announced {}", question.asker);
            checks.holds("remote", false, detail);
            return Some(checks);
        };
        let detail = format!("{} is {}", question.asker, name(&view, *remote));
        checks.holds("remote", true, detail);
        let known = view.identities.get(remote)?;
        let flow = FlowRules {
            // The asker's flow outward comes in here.
            outward: !question.outward,
            protocol: protocol_named(&question.protocol).ok()?,
            port: question.port,
        };
        let other = workload(&known.identity).ok()?;
        let needed = self.check_rule(&local, &other, flow, &mut checks).ok()?;
        self.check_pair(&view, &local, *remote, peer, needed, &mut checks)
            .ok()?;
        Some(checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerNumber = PeerNumber(1);

    fn question() -> Question {
        Question {
            asker: "10.0.0.1".parse().unwrap(),
            asked: "10.0.1.1".parse().unwrap(),
            outward: true,
            protocol: "tcp".into(),
            port: 80,
        }
    }

    fn answer(detail: &str) -> Vec<u8> {
        let check = VerifyCheck {
            what: "pair".into(),
            state: VerifyState::Ok,
            detail: detail.into(),
        };
        serde_json::to_vec(&vec![check; 100]).unwrap()
    }

    #[test]
    fn a_question_is_not_repeated_at_once_and_its_answer_counts_for_a_while() {
        let (mut questions, now) = (Questions::default(), Duration::from_secs(100));
        let id = questions.due(PEER, &question(), now).unwrap();
        assert_eq!(questions.due(PEER, &question(), now), None);
        questions.answered(PeerNumber(2), id, &answer("of another"), now);
        assert!(questions.answer(PEER, &question(), now).is_none());
        questions.answered(PEER, id, &answer("proven"), now);
        assert!(questions.answer(PEER, &question(), now).is_some());
        assert!(questions.answer(PEER, &question(), now + FRESH).is_none());
    }

    #[test]
    fn what_a_peer_says_is_cut_and_cannot_steer_a_terminal() {
        let (mut questions, now) = (Questions::default(), Duration::from_secs(100));
        let id = questions.due(PEER, &question(), now).unwrap();
        let long = format!("\u{1b}[2Jgone{}", "x".repeat(5000));
        questions.answered(PEER, id, &answer(&long), now);
        let said = questions.answer(PEER, &question(), now).unwrap();
        assert_eq!(said.len(), LINES);
        assert_eq!(said[0].detail.chars().count(), SENTENCE);
        assert!(!said[0].detail.contains('\u{1b}'));
    }

    #[test]
    fn questions_are_bounded_and_rubbish_is_no_answer() {
        let (mut questions, now) = (Questions::default(), Duration::from_secs(100));
        for port in 0..REMEMBERED as u16 {
            let question = Question { port, ..question() };
            assert!(questions.due(PEER, &question, now).is_some());
        }
        let one_more = Question {
            port: u16::MAX,
            ..question()
        };
        assert_eq!(questions.due(PEER, &one_more, now), None);
        questions.answered(PEER, 1, b"{}", now);
        questions.answered(PEER, 1, b"\xff\xff", now);
        assert!(questions.due(PEER, &one_more, now + FRESH * 3).is_some());
    }
}
