//! When keys change, decided without a word between the nodes, and never before the other one is ready.
//!
//! Each direction of a session has keys 0, 1, 2 … (see `chain`). Two rules keep the peers together:
//!
//! 1. Before a node sends with key n it can receive with key n + 1.
//! 2. A node moves from key n to n + 1 only after it has received something under key n.
//!
//! So what it has received under n says that the peer can receive under n + 1. A node that sees the peer ahead
//! follows at once. A peer whose agent is away stops nothing: its kernel has one more key than is in use, and
//! the node that gets no sign of the next one stays where it is.

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Install the next key for receiving.
    Receive,
    /// Install the next key for sending, and send with it.
    Send,
    /// Keys for receiving below this one have had their time.
    Retire(u32),
}

/// Where a session's keys stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratchet {
    /// The key sent with.
    sending: u32,
    /// The newest key that can be received with.
    receiving: u32,
    /// The newest key that something was received under.
    heard: Option<u32>,
    retired: u32,
}

impl Ratchet {
    /// A session whose key 0 is sent with, and whose keys 0 and 1 can be received with.
    pub(super) const fn new() -> Self {
        Self {
            sending: 0,
            receiving: 1,
            heard: None,
            retired: 0,
        }
    }

    /// Something was received under this key.
    pub(super) fn heard(&mut self, counter: u32) {
        self.heard = self.heard.max(Some(counter));
    }

    /// The next step, if there is one; `due` says that the key sent with has served long enough. To be asked
    /// again until there is none.
    pub(super) fn step(&mut self, due: bool) -> Option<Step> {
        let ahead = self.heard.is_some_and(|heard| heard > self.sending);
        let moves = ahead || due && self.may_move();
        let next = self.sending.saturating_add(u32::from(moves));
        let newest = next.max(self.heard.unwrap_or(0));
        if self.receiving <= newest {
            self.receiving += 1;
            return Some(Step::Receive);
        }
        if moves {
            self.sending = next;
            return Some(Step::Send);
        }
        match self.heard {
            Some(heard) if heard > self.retired => {
                self.retired = heard;
                Some(Step::Retire(heard))
            }
            _ => None,
        }
    }

    /// Whether the peer is known to hold the next key.
    pub(super) fn may_move(&self) -> bool {
        self.heard.is_some_and(|heard| heard >= self.sending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One node: the ratchet and what its kernel holds.
    struct Node {
        ratchet: Ratchet,
        installed: u32,
        sending: u32,
    }

    impl Node {
        fn new() -> Self {
            Self {
                ratchet: Ratchet::new(),
                installed: 1,
                sending: 0,
            }
        }

        fn tick(&mut self, due: bool) {
            let mut due = due;
            while let Some(step) = self.ratchet.step(due) {
                match step {
                    Step::Receive => self.installed += 1,
                    Step::Send => {
                        assert!(self.installed > self.sending + 1, "rule 1");
                        self.sending += 1;
                        due = false;
                    }
                    Step::Retire(below) => assert!(below <= self.installed),
                }
            }
        }
    }

    /// A packet from one to the other: it must be one that the other can read.
    fn send(from: &Node, to: &mut Node) {
        assert!(from.sending <= to.installed, "a packet nobody can read");
        to.ratchet.heard(from.sending);
    }

    #[test]
    fn whatever_the_order_of_ticks_and_packets_every_packet_can_be_read() {
        // All histories of eight events: who ticks, whether due, who sends; an agent may be away for ever.
        for history in 0..6_u32.pow(8) {
            let (mut a, mut b) = (Node::new(), Node::new());
            let mut left = history;
            for _ in 0..8 {
                match left % 6 {
                    0 => a.tick(true),
                    1 => b.tick(true),
                    2 => a.tick(false),
                    3 => b.tick(false),
                    4 => send(&a, &mut b),
                    _ => send(&b, &mut a),
                }
                left /= 6;
            }
        }
    }

    #[test]
    fn with_traffic_both_ways_keys_change_on_time_and_together() {
        let (mut a, mut b) = (Node::new(), Node::new());
        for round in 0..10 {
            send(&a, &mut b);
            send(&b, &mut a);
            a.tick(true);
            send(&a, &mut b);
            b.tick(false);
            assert_eq!((a.sending, b.sending), (round + 1, round + 1));
        }
    }

    #[test]
    fn nobody_moves_toward_a_silent_peer() {
        let (mut a, mut b) = (Node::new(), Node::new());
        for _ in 0..10 {
            a.tick(true);
            send(&a, &mut b);
        }
        assert_eq!(a.sending, 0);
        // The other's agent is away, its kernel answers: one step, to the key that it holds.
        send(&b, &mut a);
        for _ in 0..10 {
            a.tick(true);
            send(&a, &mut b);
            send(&b, &mut a);
        }
        assert_eq!((a.sending, b.sending, b.installed), (1, 0, 1));
    }
}
