//! Packets: from a workload through both gates to a workload, held on the way, lost, or late.

use std::net::IpAddr;

use handfast_agent::core::{Direction, EndpointId, Event, HoldKey, PeerNumber};

use super::kernel::Verdict;
use super::node::{Packet, Parked};
use super::world::{Action, World};

/// Packets that one key may hold.
const QUEUE: usize = 64;

impl World {
    /// A workload sends; the number tells whether it has arrived.
    pub fn send(&mut self, index: usize, endpoint: EndpointId, destination: IpAddr) -> u64 {
        let number = self.number();
        let Some(workload) = self.nodes[index].workloads.get(&endpoint) else {
            return number;
        };
        let mut sources = workload.addresses.iter();
        let source = sources.find(|source| source.is_ipv4() == destination.is_ipv4());
        let (Some(source), Some(to_node)) = (source, self.node_of(destination)) else {
            return number;
        };
        let packet = Packet {
            number,
            source: *source,
            destination,
            from: workload.identity.clone(),
            from_node: index,
            to_node,
            meant: None,
            keys: None,
            instances: None,
        };
        let key = HoldKey {
            endpoint,
            direction: Direction::Egress,
            remote: destination,
        };
        self.at_tunnel(index, key, packet, None);
        number
    }

    fn queued(&self, index: usize, key: HoldKey) -> bool {
        let queue = self.nodes[index].parked.get(&key);
        queue.is_some_and(|queue| !queue.is_empty())
    }

    /// `again`: it was held, and this was known of its other end then.
    fn at_tunnel(&mut self, index: usize, key: HoldKey, mut packet: Packet, again: Option<Parked>) {
        let now = self.nodes[index].boot_clock(self.at);
        let kernel = &self.nodes[index].kernel;
        let verdict = match again.is_none() && self.queued(index, key) {
            true => Verdict::Hold("order"),
            false => kernel
                .to_tunnel(packet.source, packet.destination, now)
                .once(again.is_some()),
        };
        match verdict {
            Verdict::Pass => {
                let kernel = &self.nodes[index].kernel;
                let peer = kernel.peer_of(packet.destination);
                let tunnel = peer.and_then(|peer| kernel.tunnels.get(&peer));
                let meant = peer.and_then(|peer| kernel.takes_for(peer, packet.destination));
                packet.meant = meant.cloned();
                let own = self.nodes[index].tunnel_key();
                packet.keys = tunnel.map(|tunnel| (own, tunnel.key));
                let there = self.instance(packet.to_node, own);
                packet.instances = tunnel.map(|tunnel| (tunnel.instance, there));
                self.check_unchanged(index, &packet, again.as_ref());
                self.launch(packet);
            }
            Verdict::Hold(_) => self.park(index, key, packet, None),
            Verdict::Drop(why) => self.lose(why),
        }
    }

    /// Property 4: what was held for somebody goes to nobody else.
    fn check_unchanged(&self, index: usize, packet: &Packet, held: Option<&Parked>) {
        let Some(was) = held.and_then(|held| held.believed.as_ref()) else {
            return;
        };
        let kernel = &self.nodes[index].kernel;
        let is = match held.and_then(|held| held.peer) {
            None => packet.meant.as_ref(),
            Some(peer) => kernel.takes_for(peer, packet.source),
        };
        if is != Some(was) && self.liar != Some(index) {
            self.fail(&format!(
                "property 4: a packet that was held between {} and {} is released when {} is {}",
                packet.source,
                packet.destination,
                was.spiffe_id,
                is.map_or("nobody", |is| is.spiffe_id.as_str()),
            ));
        }
    }

    /// The peer entry that a node has for a key.
    fn instance(&self, index: usize, key: [u8; 32]) -> Option<u64> {
        let mut tunnels = self.nodes[index].kernel.tunnels.values();
        let found = tunnels.find(|tunnel| tunnel.key == key);
        found.map(|tunnel| tunnel.instance)
    }

    /// Onto the underlay.
    pub fn launch(&mut self, packet: Packet) {
        if self.cut_off(packet.from_node, packet.to_node) {
            return self.lose("underlay");
        }
        if self.rng.chance(self.faults.loss_percent) {
            return self.lose("lost");
        }
        let straggles = self.rng.chance(self.faults.straggle_percent);
        let delay = self.millis(1, if straggles { 4_000 } else { 40 });
        self.later(delay, Action::Arrive(packet));
    }

    pub fn lose(&mut self, why: &'static str) {
        self.say(|| format!("a packet is lost: {why}"));
        *self.dropped.entry(why).or_insert(0) += 1;
    }

    fn park(&mut self, index: usize, key: HoldKey, packet: Packet, peer: Option<PeerNumber>) {
        if self.nodes[index].core.is_none() {
            return self.lose("agent down");
        }
        let kernel = &self.nodes[index].kernel;
        let (toward, address) = match peer {
            Some(peer) => (Some(peer), packet.source),
            None => (kernel.peer_of(packet.destination), packet.destination),
        };
        let believed = toward.and_then(|toward| kernel.takes_for(toward, address));
        let believed = believed.cloned();
        let queue = self.nodes[index].parked.entry(key).or_default();
        if queue.len() >= QUEUE {
            return self.lose("queue full");
        }
        queue.push_back(Parked {
            packet,
            peer,
            believed,
        });
        self.feed(index, Event::Held(key));
    }

    pub fn arrive(&mut self, packet: Packet) {
        let index = packet.to_node;
        let node = &self.nodes[index];
        // WireGuard knows its peers by key, and takes from each only what lies in its allowed IPs.
        let Some((sender, receiver)) = packet.keys else {
            return self.lose("no tunnel");
        };
        let mut tunnels = node.kernel.tunnels.iter();
        let tunnel = tunnels.find(|(_, tunnel)| tunnel.key == sender);
        let Some((peer, tunnel)) = tunnel.filter(|_| receiver == node.tunnel_key()) else {
            return self.lose("other key");
        };
        if let Some((here, there)) = packet.instances {
            // Encrypted at once for the entry that the receiver had, or staged until there was one.
            let staged = self.instance(packet.from_node, receiver) == Some(here);
            let sent = there == Some(tunnel.instance);
            if !sent && (there.is_some() || !staged) {
                return self.lose("another tunnel");
            }
        }
        if !tunnel.prefixes.iter().any(|p| p.contains(&packet.source)) {
            return self.lose("outside allowed IPs");
        }
        let peer = *peer;
        let Some((endpoint, _)) = node.workload_at(packet.destination) else {
            return self.lose("destination");
        };
        let key = HoldKey {
            endpoint,
            direction: Direction::Ingress,
            remote: packet.source,
        };
        self.at_ingress(index, key, packet, peer, None);
    }

    fn at_ingress(
        &mut self,
        index: usize,
        key: HoldKey,
        packet: Packet,
        peer: PeerNumber,
        again: Option<Parked>,
    ) {
        let now = self.nodes[index].boot_clock(self.at);
        let queued = self.queued(index, key);
        let (source, destination) = (packet.source, packet.destination);
        let kernel = &self.nodes[index].kernel;
        let verdict = match kernel.at_ingress(peer, source, destination, now) {
            Verdict::Pass if queued && again.is_none() => Verdict::Hold("order"),
            verdict => verdict.once(again.is_some()),
        };
        match verdict {
            Verdict::Pass => {
                self.check_unchanged(index, &packet, again.as_ref());
                self.check_delivery(index, peer, &packet);
                self.delivered.insert(packet.number);
            }
            Verdict::Hold(_) => self.park(index, key, packet, Some(peer)),
            Verdict::Drop("unknown source") => {
                self.lose("unknown source");
                let event = Event::UnknownSource {
                    peer,
                    address: source,
                    endpoint: key.endpoint,
                };
                self.feed(index, event);
            }
            Verdict::Drop(why) => self.lose(why),
        }
    }

    /// What was held goes back to the gate that it was taken from.
    pub fn release(&mut self, index: usize, key: HoldKey) {
        let parked = self.nodes[index].parked.remove(&key).unwrap_or_default();
        for held in parked {
            let packet = held.packet.clone();
            match held.peer {
                None => self.at_tunnel(index, key, packet, Some(held)),
                Some(peer) => self.at_ingress(index, key, packet, peer, Some(held)),
            }
        }
    }

    /// The agent is too slow for what it holds: the hold's time is up in the kernel too.
    pub fn discard(&mut self, index: usize, key: HoldKey) {
        let gone = self.nodes[index].parked.remove(&key).unwrap_or_default();
        for _ in gone {
            self.lose("discarded");
        }
    }

    /// Everybody's packets, a few, from anywhere to anywhere.
    pub fn some_traffic(&mut self, flows: usize) {
        for _ in 0..flows {
            let (from, to) = (
                self.rng.index(self.nodes.len()),
                self.rng.index(self.nodes.len()),
            );
            let host = 1 + u8::try_from(self.rng.below(2)).unwrap();
            let endpoints: Vec<EndpointId> = self.nodes[from].workloads.keys().copied().collect();
            if let Some(endpoint) = self.rng.pick(&endpoints).filter(|_| from != to) {
                let all: Vec<IpAddr> = self.nodes[to].addresses(host).into_iter().collect();
                let destination = self.rng.pick(&all).unwrap();
                self.send(from, endpoint, destination);
            }
        }
    }
}
