//! What happens to a world: one fault or change at a time, by chance; and the end of all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use handfast_agent::core::{EndpointId, Event, PeerNumber};

use super::node::{Rules, Workload, identity};
use super::world::World;

/// Names that workloads have, everywhere.
const NAMES: u64 = 6;

impl World {
    pub fn disturb(&mut self) {
        let index = self.rng.index(self.nodes.len());
        let down = Duration::from_millis(self.rng.below(3_000));
        match self.rng.below(44) {
            40..=41 => self.rotate_tunnel_key(index),
            42 => self.renew_some_session(index),
            43 => self.ask_about_a_flow(index),
            0..=4 => self.break_some(),
            5..=7 => self.crash(index, down),
            8 => self.crash(index, down * 10),
            9 => self.reboot(index, down),
            10..=16 => self.replace_workload(index),
            17..=22 => self.new_workload(index),
            23..=25 => self.cut_or_mend(index),
            26 => self.ca.reach[index] ^= true,
            27 => self.ca_comes_back(),
            28..=29 => self.jump_clock(index),
            30..=31 => self.change_deny_list(),
            32 => self.change_rules(),
            33..=34 => self.rotate(),
            35 => self.renew_early(index),
            36..=37 => self.both_at_once(index),
            _ => self.burst(index),
        }
    }

    /// A second tunnel device with another key, if every peer has come over to the first.
    pub fn rotate_tunnel_key(&mut self, index: usize) {
        if self.nodes[index].core.is_none() || !self.nodes[index].has_rotated(self.at) {
            return;
        }
        self.say(|| format!("node {index}: another tunnel key"));
        let node = &mut self.nodes[index];
        node.rotations = node.rotations.wrapping_add(1);
        let (key, port) = (node.tunnel_key(), 51872 + u16::from(node.rotations % 2));
        self.feed(index, Event::TunnelKey { key, port });
    }

    fn any_peer(&mut self) -> PeerNumber {
        PeerNumber(1 + u32::try_from(self.rng.below(8)).unwrap())
    }

    pub fn renew_some_session(&mut self, index: usize) {
        let peer = self.any_peer();
        self.feed(index, Event::RenewSession { peer });
    }

    fn ask_about_a_flow(&mut self, index: usize) {
        let (peer, id) = (self.any_peer(), self.rng.below(20));
        let question = vec![1];
        self.feed(index, Event::Ask { peer, id, question });
    }

    fn any_name(&mut self) -> String {
        format!("n{}", self.rng.below(NAMES))
    }

    fn any_endpoint(&mut self, index: usize) -> Option<EndpointId> {
        let all: Vec<EndpointId> = self.nodes[index].workloads.keys().copied().collect();
        self.rng.pick(&all)
    }

    pub fn new_workload(&mut self, index: usize) {
        let host = 1 + u8::try_from(self.rng.below(2)).unwrap();
        let name = self.any_name();
        if !self.nodes[index].workloads.values().any(|w| w.host == host) {
            self.add_workload(index, host, identity(&name));
        }
    }

    /// Its last words are still under way, and more for it, when somebody else gets the address at once.
    fn replace_workload(&mut self, index: usize) {
        let Some(endpoint) = self.any_endpoint(index) else {
            return;
        };
        let host = self.nodes[index].workloads[&endpoint].host;
        let address = self.nodes[index].address(host);
        for other in 0..self.nodes.len() {
            if other == index {
                continue;
            }
            for host in 1..=2 {
                let to = self.nodes[other].address(host);
                self.send(index, endpoint, to);
            }
            if let Some(from) = self.any_endpoint(other) {
                self.send(other, from, address);
            }
        }
        self.remove_workload(index, endpoint);
        if self.rng.chance(60) {
            let name = self.any_name();
            self.add_workload(index, host, identity(&name));
        }
    }

    fn cut_or_mend(&mut self, index: usize) {
        let other = self.rng.index(self.nodes.len());
        if other == index {
            return;
        }
        let both = [(index, other), (other, index)];
        let ways = match self.rng.below(3) {
            0 => &both[..1],
            1 => &both[1..],
            _ => &both[..],
        };
        for way in ways {
            if !self.cuts.remove(way) {
                self.cuts.insert(*way);
            }
        }
        let said = format!("cuts: {:?}", self.cuts);
        self.say(|| said);
    }

    pub fn ca_comes_back(&mut self) {
        self.ca.reach.fill(true);
        self.publish();
    }

    fn jump_clock(&mut self, index: usize) {
        let far = i64::try_from(self.setup.lifetime).unwrap();
        let skew = match self.rng.below(4) {
            0 => 0,
            1 => i64::try_from(self.rng.below(600)).unwrap() - 300,
            2 => -i64::try_from(self.rng.below(self.setup.lifetime)).unwrap(),
            _ => i64::try_from(self.rng.below(self.setup.lifetime * 2)).unwrap() % (far * 2),
        };
        self.say(|| format!("node {index}: the clock is wrong by {skew} s"));
        self.nodes[index].skew = skew;
    }

    fn change_deny_list(&mut self) {
        let (kind, name) = (self.rng.below(6), self.any_name());
        let serials: Vec<u64> = self.ca.certificates.keys().copied().collect();
        let serial = self.rng.pick(&serials).unwrap_or(1);
        let node = self.rng.index(self.nodes.len());
        let node = self.nodes[node].id.clone();
        self.revoke(|list| match kind {
            0 => {
                list.identities
                    .insert(format!("spiffe://example.org/{name}"));
            }
            1 => {
                list.serials.insert(serial.to_be_bytes().to_vec());
            }
            2 => {
                list.nodes.insert(node);
            }
            3 => list.identities.clear(),
            4 => list.nodes.clear(),
            _ => {
                list.identities.clear();
                list.nodes.clear();
                list.serials.clear();
            }
        });
    }

    fn change_rules(&mut self) {
        let name = |n: String| format!("spiffe://example.org/{n}");
        let (one, two) = (self.any_name(), self.any_name());
        let forbidden = match self.rng.below(3) {
            0 => BTreeSet::new(),
            _ => BTreeSet::from([(name(one), name(two))]),
        };
        let max_age = self.rng.chance(30).then(|| Duration::from_secs(20));
        self.set_rules(Rules { forbidden, max_age });
    }

    /// The CA gives new SVIDs before it had to.
    fn renew_early(&mut self, index: usize) {
        let all: Vec<Workload> = self.nodes[index].workloads.values().cloned().collect();
        if let Some(workload) = self.rng.pick(&all) {
            let node = &mut self.nodes[index];
            if let Some(svid) = node.svids.get(&workload.identity) {
                let serial = super::authority::serial_of(svid.leaf_hash);
                // Half its life has passed, as far as the agent knows.
                if let Some(of) = self.ca.certificates.get_mut(&serial) {
                    of.not_after = of
                        .not_after
                        .min(self.setup.lifetime / 2 + super::node::WALL + self.at.as_secs());
                }
            }
            self.ask(index, workload.identity);
        }
    }

    /// Two nodes that may not know each other yet send at the same moment.
    fn both_at_once(&mut self, index: usize) {
        let other = self.rng.index(self.nodes.len());
        for (from, to) in [(index, other), (other, index)] {
            if let (Some(endpoint), true) = (self.any_endpoint(from), from != to) {
                let host = 1 + u8::try_from(self.rng.below(2)).unwrap();
                let destination = self.nodes[to].address(host);
                self.send(from, endpoint, destination);
            }
        }
    }

    /// More than a queue holds.
    fn burst(&mut self, index: usize) {
        let other = self.rng.index(self.nodes.len());
        if let (Some(endpoint), true) = (self.any_endpoint(index), other != index) {
            let destination = self.nodes[other].address(1);
            for _ in 0..20 {
                self.send(index, endpoint, destination);
            }
        }
    }

    /// From now on nothing goes wrong; the liar lies on.
    pub fn faults_stop(&mut self) {
        self.faults.crash_permille = 0;
        self.faults.straggle_percent = 0;
        self.faults.loss_percent = 0;
        self.faults.tunnel_percent = 0;
        self.faults.refuse_percent = 0;
        self.faults.disk_percent = 0;
        self.faults.slow_percent = 0;
        self.cuts.clear();
        self.speed_up();
        for node in &mut self.nodes {
            node.skew = 0;
        }
        self.say(|| "faults stop".to_owned());
        let liar = self.liar.map(|liar| self.nodes[liar].id.clone());
        self.revoke(|list| {
            list.identities.clear();
            list.nodes.retain(|node| Some(node) == liar.as_ref());
        });
        self.set_rules(Rules::default());
        self.ca_comes_back();
    }
}
