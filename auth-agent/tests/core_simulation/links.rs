//! Connections between nodes: dialled, slow, stalled, broken; frames in order on each and in any order across.

use std::collections::VecDeque;
use std::time::Duration;

use handfast_agent::core::{ConnId, Connected, Event, PeerNode, PeerNumber};
use handfast_agent::wire::Frame;

use super::authority::serial_of;
use super::world::{Action, World, underlay};

/// How long a dial waits for an answer that does not come.
const SWALLOWED: Duration = Duration::from_secs(8);

/// Most milliseconds that a frame takes, on a connection that is as it should be and on one that is not.
const USUAL: u64 = 30;
const SLOW: u64 = 2_000;

/// One connection.
#[derive(Debug)]
pub struct Link {
    pub dialler: usize,
    pub acceptor: usize,
    /// The dialler's side, the acceptor's side.
    open: [bool; 2],
    /// Toward the acceptor, toward the dialler.
    queues: [VecDeque<Sent>; 2],
    last: [Duration; 2],
    /// Most milliseconds that a frame takes.
    slowness: u64,
}

/// What goes over a connection: frames, or bytes that are none.
#[derive(Clone, Debug)]
pub enum Sent {
    Frame(Frame),
    Garbage,
}

impl World {
    pub fn cut_off(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn cut_either_way(&self, one: usize, two: usize) -> bool {
        self.cut_off(one, two) || self.cut_off(two, one)
    }

    /// Who is at the other end of a connection.
    pub fn other_end(&self, index: usize, link: u64) -> Option<usize> {
        let link = self.links.get(&link)?;
        match index {
            _ if index == link.dialler => Some(link.acceptor),
            _ if index == link.acceptor => Some(link.dialler),
            _ => None,
        }
    }

    pub fn break_link(&mut self, number: u64) {
        let Some(link) = self.links.remove(&number) else {
            return;
        };
        self.proofs.forget(number);
        // Frames under way are lost from some point on: here from the first.
        for (side, index) in [link.dialler, link.acceptor].into_iter().enumerate() {
            self.nodes[index].conns.remove(&ConnId(number));
            if link.open[side] && self.nodes[index].core.is_some() {
                let delay = self.millis(0, 200);
                let life = self.nodes[index].life;
                let conn = ConnId(number);
                let gone = Event::Disconnected { conn };
                self.later(delay, Action::Input(index, life, gone));
            }
        }
    }

    /// Breaks one connection, if there is any.
    pub fn break_some(&mut self) {
        let open: Vec<u64> = self.links.keys().copied().collect();
        if let Some(number) = self.rng.pick(&open) {
            self.say(|| format!("connection {number} breaks"));
            self.break_link(number);
        }
    }

    /// Every connection is as it should be.
    pub fn speed_up(&mut self) {
        for link in self.links.values_mut() {
            link.slowness = USUAL;
        }
    }

    pub fn break_all(&mut self) {
        let open: Vec<u64> = self.links.keys().copied().collect();
        for number in open {
            self.break_link(number);
        }
    }

    pub fn dial(&mut self, index: usize, peer: PeerNumber, id: &str) {
        let to = self.nodes.iter().position(|node| node.id == id);
        let life = self.nodes[index].life;
        let failed = Action::Input(index, life, Event::DialFailed { peer });
        let delay = self.millis(1, 80);
        let Some(acceptor) = to.filter(|to| self.nodes[*to].core.is_some()) else {
            return self.later(delay * 4, failed);
        };
        if self.cut_either_way(index, acceptor) {
            let wait = if self.rng.chance(50) {
                delay * 4
            } else {
                SWALLOWED
            };
            return self.later(wait, failed);
        }
        if !self.handshake(index, acceptor) || !self.handshake(acceptor, index) {
            return self.later(delay * 2, failed);
        }
        let number = self.number();
        let slow = self.rng.chance(self.faults.slow_percent);
        let link = Link {
            dialler: index,
            acceptor,
            open: [true, false],
            queues: Default::default(),
            last: Default::default(),
            slowness: if slow { SLOW } else { USUAL },
        };
        self.links.insert(number, link);
        self.nodes[index].conns.insert(ConnId(number));
        self.later(delay, Action::Established(number));
    }

    /// Whether TLS on one side takes the other's certificate.
    fn handshake(&self, here: usize, there: usize) -> bool {
        let (here, there) = (&self.nodes[here], &self.nodes[there]);
        let known = here.bundle.contains(&there.svid.root);
        known && there.svid.not_after > here.now(self.at).wall
    }

    pub fn established(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let (dialler, acceptor) = (link.dialler, link.acceptor);
        link.open[1] = true;
        if self.nodes[acceptor].core.is_none() || self.cut_either_way(dialler, acceptor) {
            if let Some(link) = self.links.get_mut(&number) {
                link.open[1] = false;
            }
            return self.break_link(number);
        }
        self.nodes[acceptor].conns.insert(ConnId(number));
        for (here, there, dialled) in [(dialler, acceptor, true), (acceptor, dialler, false)] {
            let node = &self.nodes[there];
            let connected = Connected {
                conn: ConnId(number),
                node: PeerNode {
                    id: node.id.clone(),
                    name: node.name.clone(),
                    prefixes: node.prefixes.clone(),
                    assignment: 1,
                    not_after: node.svid.not_after,
                    serial: node.svid.serial.to_be_bytes().to_vec(),
                },
                dialled,
                address: underlay(there).ip(),
                local_not_after: self.nodes[here].svid.not_after,
            };
            // The acceptor hears of it a little later: the client is ready first.
            self.nodes[here].ends.insert(ConnId(number), there);
            let delay = match dialled {
                true => Duration::ZERO,
                false => self.millis(0, 20),
            };
            let life = self.nodes[here].life;
            // A connection is read only once it has been announced: no frame comes before.
            if let Some(link) = self.links.get_mut(&number) {
                link.last[usize::from(dialled)] = self.at + delay;
            }
            self.later(
                delay,
                Action::Input(here, life, Event::Connected(connected)),
            );
        }
    }

    pub fn transmit(&mut self, index: usize, conn: ConnId, sent: Sent) {
        let Some(slowness) = self.links.get(&conn.0).map(|link| link.slowness) else {
            return;
        };
        let (delay, at) = (self.millis(1, slowness), self.at);
        let Some(link) = self.links.get_mut(&conn.0) else {
            return;
        };
        let from_dialler = link.dialler == index;
        let side = usize::from(!from_dialler);
        if !link.open[side] {
            return;
        }
        let arrival = (at + delay).max(link.last[side]);
        link.last[side] = arrival;
        link.queues[side].push_back(sent);
        let action = Action::Deliver {
            link: conn.0,
            to_dialler: !from_dialler,
        };
        self.later(arrival - at, action);
    }

    pub fn deliver_frame(&mut self, number: u64, to_dialler: bool) {
        let Some(link) = self.links.get(&number) else {
            return;
        };
        let side = usize::from(to_dialler);
        let (dialler, acceptor) = (link.dialler, link.acceptor);
        let (from, to) = match to_dialler {
            true => (acceptor, dialler),
            false => (dialler, acceptor),
        };
        if self.cut_off(from, to) {
            // Stalls until the way is free or somebody gives up: a connection loses nothing from its middle.
            if !link.queues[side].is_empty() {
                let action = Action::Deliver {
                    link: number,
                    to_dialler,
                };
                self.later(Duration::from_millis(500), action);
            }
            return;
        }
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let Some(sent) = link.queues[side].pop_front() else {
            return;
        };
        let conn = ConnId(number);
        if !self.nodes[to].conns.contains(&conn) {
            return;
        }
        match sent {
            Sent::Garbage => self.hear(to, Event::Garbage { conn }),
            Sent::Frame(frame) => self.hear(to, Event::Frame { conn, frame }),
        }
    }

    /// The agent takes it in at once, or it waits with others until the agent is not busy.
    fn hear(&mut self, index: usize, event: Event) {
        if !self.setup.batches {
            return self.feed(index, event);
        }
        let node = &mut self.nodes[index];
        node.inbox.push(event);
        if node.inbox.len() == 1 {
            let (busy, life) = (self.millis(0, 10), self.nodes[index].life);
            self.later(busy, Action::Waiting(index, life));
        }
    }

    /// What a node has been told, for the checks.
    pub fn note_frame(&mut self, to: usize, conn: ConnId, frame: &Frame) {
        let at = self.at;
        let Some(from) = self.nodes[to].ends.get(&conn).copied() else {
            return;
        };
        let lies = self.liar == Some(to);
        let of = |leaf| self.ca.certificates.get(&serial_of(leaf)).cloned();
        match frame {
            Frame::ProofAccepted { leaf_hash } => {
                if let Some(certificate) = of(*leaf_hash).filter(|c| c.owner == to) {
                    let facts = &mut self.nodes[to].facts;
                    facts.accepted(from, certificate.identity, at);
                }
            }
            Frame::Announce {
                address, leaf_hash, ..
            } => {
                if let Some(certificate) = of(*leaf_hash).filter(|c| c.owner == from) {
                    let facts = &mut self.nodes[to].facts;
                    facts.announced(from, *address, certificate.identity, at);
                }
            }
            Frame::Grant { requests } if lies => {
                self.nodes[to].granted.insert(conn, requests.clone());
            }
            _ => {}
        }
    }

    /// A core closes a connection: what it sent before arrives before the end does.
    pub fn close(&mut self, index: usize, conn: ConnId) {
        self.nodes[index].conns.remove(&conn);
        let Some(link) = self.links.get_mut(&conn.0) else {
            return;
        };
        let side = usize::from(link.dialler != index);
        link.open[side] = false;
        let other = if side == 0 {
            link.acceptor
        } else {
            link.dialler
        };
        let arrival = link.last[side].max(self.at);
        if !link.open[1 - side] {
            self.links.remove(&conn.0);
            return self.proofs.forget(conn.0);
        }
        link.open[1 - side] = false;
        let life = self.nodes[other].life;
        let gone = Event::Disconnected { conn };
        self.later(arrival - self.at, Action::Input(other, life, gone));
    }

    /// The end of a connection has been heard of.
    pub fn hung_up(&mut self, index: usize, conn: ConnId) {
        self.nodes[index].conns.remove(&conn);
        let closed = |link: &Link| link.open == [false, false];
        if self.links.get(&conn.0).is_some_and(closed) {
            self.links.remove(&conn.0);
            self.proofs.forget(conn.0);
        }
    }
}
