//! Packets: from a workload through both gates to a workload, held on the way, lost, or late.

use std::net::IpAddr;

use handfast_agent::core::{Direction, EndpointId, Event, HoldKey, PeerNumber};

use super::kernel::Verdict;
use super::node::{Cover, Packet, Parked};
use super::tunnels::Handshake;
use super::world::{Action, World};

/// What a packet is lost by when two ends have no key yet, and have not the same preshared key.
pub const HANDSHAKE: &str = "handshake";
/// What a packet is lost by when its receiver has lost the keys: it cut the session, could not store that, and died.
pub const LOST_KEYS: &str = "lost keys";
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
            cover: Cover::Liar,
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
                let tunnels = peer.and_then(|peer| kernel.tunnels.get(&peer));
                let tunnel = tunnels.and_then(|tunnels| tunnels.in_use.as_ref());
                let meant = peer.and_then(|peer| kernel.takes_for(peer, packet.destination));
                packet.meant = meant.cloned();
                packet.keys = tunnel.map(|tunnel| (tunnel.own, tunnel.key));
                if let Some((own, key)) = packet.keys {
                    packet.cover = self.cover(index, packet.to_node, own, key);
                }
                self.check_unchanged(index, &packet, again.as_ref());
                self.launch(packet);
            }
            Verdict::Hold(_) => self.park(index, key, packet, None),
            Verdict::Drop(why) => self.lose(why),
        }
    }

    /// Property 4: what was held for somebody goes to nobody else. A liar may say of its own addresses what it likes
    /// whenever it likes: it has the keys of all who are there.
    fn check_unchanged(&self, index: usize, packet: &Packet, held: Option<&Parked>) {
        let Some(was) = held.and_then(|held| held.believed.as_ref()) else {
            return;
        };
        let theirs = match held.and_then(|held| held.peer) {
            None => packet.destination,
            Some(_) => packet.source,
        };
        if self.liar.is_some() && self.node_of(theirs) == self.liar {
            return;
        }
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

    /// What a packet that leaves now is encrypted with. Keys that are old are renewed, if both ends have the same
    /// preshared key and hear each other; what finds none waits in the tunnel.
    fn cover(&mut self, index: usize, to: usize, own: [u8; 32], key: [u8; 32]) -> Cover {
        let at = self.at;
        let Some((_, here)) = self.nodes[index].kernel.tunnel(own, key, at) else {
            return Cover::Staged(0);
        };
        let (keys, session, instance) = (here.keys(at), here.session, here.instance);
        if let Some((keys, false)) = keys {
            return Cover::Keys(keys);
        }
        let there = self.nodes[to].kernel.tunnel(key, own, at);
        let agreed = there.is_some_and(|(_, there)| there.session == session);
        if agreed && !self.cut_off(index, to) && !self.cut_off(to, index) {
            let number = self.number();
            let keys = Handshake {
                number,
                session,
                since: at,
            };
            let ends = [(index, own, key), (to, key, own)];
            for (node, own, key) in ends {
                if let Some(tunnel) = self.nodes[node].kernel.tunnel_mut(own, key) {
                    tunnel.shake(keys);
                }
            }
            return Cover::Keys(keys);
        }
        keys.map_or(Cover::Staged(instance), |(keys, _)| Cover::Keys(keys))
    }

    /// What the packet turns out to be encrypted with at the other end, if that can read it.
    fn uncovered(&self, packet: &Packet) -> Option<(PeerNumber, Handshake)> {
        let (sender, receiver) = packet.keys?;
        let (here, there) = (&self.nodes[packet.to_node], &self.nodes[packet.from_node]);
        let (peer, tunnel) = here.kernel.tunnel(receiver, sender, self.at)?;
        let now = Handshake {
            number: 0,
            session: tunnel.session,
            since: self.at,
        };
        let keys = match packet.cover {
            Cover::Keys(keys) => tunnel.knows(keys, self.at).then_some(keys),
            Cover::Staged(instance) => {
                let staged = there.kernel.tunnel(sender, receiver, self.at);
                let same = staged.filter(|(_, staged)| {
                    staged.instance == instance && staged.session == tunnel.session
                });
                same.map(|_| now)
            }
            Cover::Liar => Some(now),
        };
        keys.map(|keys| (peer, keys))
    }

    /// Nobody will answer it, which the sender's end notices. Whether the receiver lost the keys by a cut that it has
    /// forgotten.
    fn unread(&mut self, packet: &Packet) -> bool {
        let (Some((sender, receiver)), at) = (packet.keys, self.at) else {
            return false;
        };
        if let Cover::Keys(keys) = packet.cover
            && let Some(tunnel) = (self.nodes[packet.from_node].kernel).tunnel_mut(sender, receiver)
        {
            tunnel.unread(keys, at);
        }
        let node = &self.nodes[packet.to_node];
        let found = node.kernel.tunnel(receiver, sender, at);
        found.is_some_and(|(peer, _)| node.facts.has_forgotten_a_cut(peer))
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

    pub fn arrive(&mut self, mut packet: Packet) {
        let index = packet.to_node;
        let node = &self.nodes[index];
        // WireGuard knows its peers by key, and takes from each only what lies in its allowed IPs.
        if packet.keys.is_none() {
            return self.lose("no tunnel");
        }
        let Some((peer, keys)) = self.uncovered(&packet) else {
            let forgotten = self.unread(&packet);
            return self.lose(match packet.cover {
                // Both ends set the preshared key anew at about the same time: tried again in five seconds.
                Cover::Staged(_) => HANDSHAKE,
                Cover::Keys(_) if forgotten => LOST_KEYS,
                _ => "other key",
            });
        };
        let tunnel = packet.keys.and_then(|(sender, receiver)| {
            let found = node.kernel.tunnel(receiver, sender, self.at);
            found.map(|(_, tunnel)| tunnel)
        });
        if !tunnel.is_some_and(|t| t.prefixes.iter().any(|p| p.contains(&packet.source))) {
            return self.lose("outside allowed IPs");
        }
        packet.cover = Cover::Keys(keys);
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
