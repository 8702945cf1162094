//! The network between nodes, and the checks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    ConnId, Connected, DenyList, Direction, Effect, EndpointId, Event, HoldKey, Identity,
    LocalIdentity, NodeInfo, PeerNode, PeerNumber, Policy, RemoteProof,
};
use handfast_agent::wire::{Frame, LeafHash};

use super::Rng;
use super::kernel::Verdict;
use super::node::{Node, Packet, Parked, Workload, added, open_policy};

const HOUR: u64 = 3_600;

/// One thing that will happen.
#[derive(Debug)]
enum Action {
    Input(usize, u64, Event),
    Deliver { link: u64, to_dialler: bool },
    Arrive(Packet),
    Established { link: u64 },
    Start(usize),
}

/// One connection.
#[derive(Debug)]
struct Link {
    dialler: usize,
    acceptor: usize,
    open: [bool; 2],
    queues: [VecDeque<Frame>; 2],
    last: [Duration; 2],
    /// (who verified, whose identity).
    verified: BTreeSet<(usize, Identity)>,
}

pub struct World {
    pub seed: u64,
    pub rng: Rng,
    pub at: Duration,
    pub nodes: Vec<Node>,
    pub policy: Policy,
    pub delivered: BTreeSet<u64>,
    pub dropped: BTreeMap<&'static str, u64>,
    pub partitions: BTreeSet<(usize, usize)>,
    /// Percent of effects after which the agent dies.
    pub crash_percent: u64,
    /// Percent of packets that a tunnel keeps back for up to four seconds, as WireGuard does before a handshake.
    pub straggle_percent: u64,
    /// The agent of this node dies after so many more effects.
    pub crash_after: Option<(usize, usize)>,
    pub history: VecDeque<String>,
    links: BTreeMap<u64, Link>,
    queue: BTreeMap<(Duration, u64), Action>,
    next: u64,
    lives: Vec<u64>,
    next_serial: u64,
}

impl World {
    pub fn new(count: usize, seed: u64) -> Self {
        let mut world = Self {
            seed,
            rng: Rng(seed),
            at: Duration::ZERO,
            nodes: (0..count).map(Node::new).collect(),
            policy: open_policy(),
            delivered: BTreeSet::new(),
            dropped: BTreeMap::new(),
            partitions: BTreeSet::new(),
            crash_percent: 0,
            straggle_percent: 0,
            crash_after: None,
            history: VecDeque::new(),
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            next: 1,
            lives: vec![0; count],
            next_serial: 1,
        };
        for node in 0..count {
            world.start(node);
        }
        world
    }

    fn say(&mut self, text: String) {
        if self.history.len() > 400 {
            self.history.pop_front();
        }
        self.history
            .push_back(format!("{:>10.3} {text}", self.at.as_secs_f64()));
    }

    /// Stops the history with its end and its seed.
    pub fn fail(&self, why: &str) -> ! {
        let history: Vec<_> = self.history.iter().map(String::as_str).collect();
        panic!("seed {}: {why}\n{}", self.seed, history.join("\n"));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn later(&mut self, delay: Duration, action: Action) {
        let number = self.number();
        self.queue.insert((self.at + delay, number), action);
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1_000 + self.rng.below((to - from).max(1) * 1_000))
    }

    // Nodes and workloads.

    fn start(&mut self, index: usize) {
        if self.nodes[index].core.is_some() {
            return;
        }
        self.say(format!("node {index}: agent starts"));
        let seed = self.seed ^ ((index as u64) << 8);
        let core = self.nodes[index].new_core(seed);
        self.nodes[index].core = Some(core);
        let mut events = self.nodes[index].beginnings();
        events.push(Event::Nodes(self.node_list()));
        events.push(Event::Policy(self.policy.clone()));
        for event in events {
            self.feed(index, event);
        }
        // SVIDs come from the CA a little later: their keys died with the old agent.
        let workloads: Vec<Identity> = self.nodes[index]
            .workloads
            .values()
            .map(|workload| workload.identity.clone())
            .collect();
        for identity in workloads {
            let delay = self.millis(1, 50);
            self.issue(index, identity, delay);
        }
    }

    fn node_list(&self) -> Vec<NodeInfo> {
        self.nodes
            .iter()
            .map(|node| NodeInfo {
                id: node.id.clone(),
                name: node.name.clone(),
                addresses: vec![underlay(node.index)],
                prefixes: vec![node.prefix],
            })
            .collect()
    }

    /// The agent dies; the kernel stays.
    pub fn crash(&mut self, index: usize, down: Duration) {
        if self.nodes[index].core.take().is_none() {
            return;
        }
        self.say(format!("node {index}: agent dies"));
        self.lives[index] += 1;
        self.nodes[index].parked.clear();
        self.nodes[index].svids.clear();
        for link in std::mem::take(&mut self.nodes[index].conns) {
            self.break_link(link.0);
        }
        self.later(down, Action::Start(index));
    }

    /// The whole node dies: kernel and workloads with it.
    pub fn reboot(&mut self, index: usize, down: Duration) {
        self.crash(index, down);
        self.say(format!("node {index}: reboots"));
        let node = &mut self.nodes[index];
        node.kernel = Default::default();
        node.boot += 1;
        node.workloads.clear();
        node.next_endpoint = 1;
    }

    pub fn add_workload(&mut self, index: usize, host: u8, identity: Identity) -> EndpointId {
        let address = self.nodes[index].address(host);
        let endpoint = EndpointId(self.nodes[index].next_endpoint);
        self.nodes[index].next_endpoint += 1;
        self.say(format!(
            "node {index}: {address} is {} as endpoint {}",
            identity.spiffe_id, endpoint.0
        ));
        let workload = Workload {
            address,
            identity: identity.clone(),
        };
        let event = added(endpoint, &workload);
        self.nodes[index].workloads.insert(endpoint, workload);
        self.feed(index, event);
        let delay = self.millis(1, 50);
        self.issue(index, identity, delay);
        endpoint
    }

    pub fn remove_workload(&mut self, index: usize, endpoint: EndpointId) {
        self.say(format!("node {index}: endpoint {} is gone", endpoint.0));
        // The attachment is gone at once, whatever the agent does.
        self.nodes[index].workloads.remove(&endpoint);
        self.nodes[index]
            .kernel
            .locals
            .retain(|_, (holder, _)| *holder != endpoint);
        self.feed(index, Event::EndpointRemoved { endpoint });
    }

    /// The CA issues or renews a proof SVID.
    pub fn issue(&mut self, index: usize, identity: Identity, delay: Duration) {
        self.next_serial += 1;
        let serial = self.next_serial;
        let life = self.lives[index];
        let ready = LocalIdentity {
            identity,
            leaf_hash: super::node::leaf(serial),
            not_after: self.nodes[index].now(self.at).wall + 24 * HOUR,
            serial: serial.to_be_bytes().to_vec(),
        };
        self.later(
            delay,
            Action::Input(index, life, Event::IdentityReady(ready)),
        );
    }

    pub fn deny(&mut self, list: DenyList) {
        self.say(format!("deny list {}: {:?}", list.number, list.identities));
        let list = Arc::new(list);
        for index in 0..self.nodes.len() {
            self.nodes[index].deny = Some(list.clone());
            self.feed(index, Event::DenyList(list.clone()));
        }
    }

    /// Only one node hears of it.
    pub fn deny_at(&mut self, index: usize, list: DenyList) {
        self.say(format!("deny list {} at node {index}", list.number));
        let list = Arc::new(list);
        self.nodes[index].deny = Some(list.clone());
        self.feed(index, Event::DenyList(list));
    }

    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy.clone();
        for index in 0..self.nodes.len() {
            self.feed(index, Event::Policy(policy.clone()));
        }
    }

    // Packets.

    /// A workload sends; the number tells whether it has arrived.
    pub fn send(&mut self, index: usize, endpoint: EndpointId, destination: IpAddr) -> u64 {
        let number = self.number();
        let Some(workload) = self.nodes[index].workloads.get(&endpoint) else {
            return number;
        };
        let to_node = self
            .nodes
            .iter()
            .position(|node| node.prefix.contains(&destination));
        let packet = Packet {
            number,
            source: workload.address,
            destination,
            from: workload.identity.clone(),
            from_node: index,
            to_node: to_node.unwrap_or(index),
            keys: None,
        };
        let key = HoldKey {
            endpoint,
            direction: Direction::Egress,
            remote: destination,
        };
        self.at_tunnel(index, key, packet, false);
        number
    }

    fn at_tunnel(&mut self, index: usize, key: HoldKey, mut packet: Packet, again: bool) {
        let now = self.nodes[index].now(self.at).boot;
        let queued = self.nodes[index]
            .parked
            .get(&key)
            .is_some_and(|q| !q.is_empty());
        let verdict = match queued && !again {
            true => Verdict::Hold("order"),
            false => self.nodes[index]
                .kernel
                .to_tunnel(packet.source, packet.destination, now)
                .once(again),
        };
        match verdict {
            Verdict::Pass => {
                let cut = self.cut_off(index, packet.to_node);
                if cut {
                    return self.lose("underlay");
                }
                let own = self.nodes[index].tunnel_key();
                let kernel = &self.nodes[index].kernel;
                let peer = kernel.peer_of(packet.destination);
                let tunnel = peer.and_then(|peer| kernel.tunnels.get(&peer));
                packet.keys = tunnel.map(|(_, theirs)| (own, *theirs));
                let straggles = self.straggle_percent > 0 && self.rng.chance(self.straggle_percent);
                let delay = self.millis(1, if straggles { 4_000 } else { 40 });
                self.later(delay, Action::Arrive(packet));
            }
            Verdict::Hold(_) => self.park(index, key, packet, None),
            Verdict::Drop(why) => self.lose(why),
        }
    }

    fn lose(&mut self, why: &'static str) {
        *self.dropped.entry(why).or_insert(0) += 1;
    }

    fn park(&mut self, index: usize, key: HoldKey, packet: Packet, peer: Option<PeerNumber>) {
        if self.nodes[index].core.is_none() {
            return self.lose("agent down");
        }
        let queue = self.nodes[index].parked.entry(key).or_default();
        queue.push_back(Parked { packet, peer });
        self.feed(index, Event::Held(key));
    }

    fn arrive(&mut self, packet: Packet) {
        let index = packet.to_node;
        let sender = self.nodes[packet.from_node].id.clone();
        let peer = self.nodes[index]
            .kernel
            .tunnels
            .iter()
            .find(|(_, (id, _))| *id == sender)
            .map(|(peer, (_, key))| (*peer, *key));
        let Some((peer, key)) = peer else {
            return self.lose("no tunnel");
        };
        if packet.keys != Some((key, self.nodes[index].tunnel_key())) {
            return self.lose("other key");
        }
        let Some((endpoint, _)) = self.nodes[index].workload_at(packet.destination) else {
            return self.lose("destination");
        };
        let key = HoldKey {
            endpoint,
            direction: Direction::Ingress,
            remote: packet.source,
        };
        self.at_ingress(index, key, packet, peer, false);
    }

    fn at_ingress(
        &mut self,
        index: usize,
        key: HoldKey,
        packet: Packet,
        peer: PeerNumber,
        again: bool,
    ) {
        let now = self.nodes[index].now(self.at).boot;
        let queued = self.nodes[index]
            .parked
            .get(&key)
            .is_some_and(|q| !q.is_empty());
        let (source, destination) = (packet.source, packet.destination);
        let kernel = &self.nodes[index].kernel;
        let verdict = match kernel.at_ingress(peer, source, destination, now) {
            Verdict::Pass if queued && !again => Verdict::Hold("order"),
            verdict => verdict.once(again),
        };
        match verdict {
            Verdict::Pass => self.deliver(index, peer, packet),
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

    /// Properties 3, 4 and 6 on the packet itself.
    fn deliver(&mut self, index: usize, peer: PeerNumber, packet: Packet) {
        let kernel = &self.nodes[index].kernel;
        let taken_for = kernel
            .believes(peer, packet.source)
            .and_then(|number| kernel.names.get(&number));
        if taken_for.map(|identity| identity.as_ref()) != Some(&packet.from) {
            let why = format!(
                "properties 3, 4: a packet of {} was delivered as {taken_for:?}",
                packet.from.spiffe_id
            );
            self.fail(&why);
        }
        let Some((_, workload)) = self.nodes[index].workload_at(packet.destination) else {
            return self.lose("destination");
        };
        let revoked = |identity: &Identity| {
            let deny = self.nodes[index].deny.as_ref();
            deny.is_some_and(|deny| deny.identities.contains(&identity.spiffe_id))
        };
        if self.nodes[index].core.is_some()
            && (revoked(&packet.from) || revoked(&workload.identity))
        {
            self.fail("property 6: a packet of a revoked identity was delivered");
        }
        self.delivered.insert(packet.number);
    }

    // Connections.

    fn cut_off(&self, one: usize, two: usize) -> bool {
        self.partitions.contains(&(one.min(two), one.max(two)))
    }

    fn break_link(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let (dialler, acceptor, open) = (link.dialler, link.acceptor, link.open);
        // Frames under way are lost from some point on: here from the first.
        link.queues = Default::default();
        link.open = [false, false];
        for (side, index) in [dialler, acceptor].into_iter().enumerate() {
            self.nodes[index].conns.remove(&ConnId(number));
            if open[side] && self.nodes[index].core.is_some() {
                let delay = self.millis(0, 200);
                let life = self.lives[index];
                let conn = ConnId(number);
                self.later(
                    delay,
                    Action::Input(index, life, Event::Disconnected { conn }),
                );
            }
        }
    }

    /// Breaks one connection, if there is any.
    pub fn break_some(&mut self) {
        let open: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.open != [false, false])
            .map(|(number, _)| *number)
            .collect();
        if let Some(number) = self.rng.pick(&open) {
            self.say(format!("connection {number} breaks"));
            self.break_link(number);
        }
    }

    pub fn break_all(&mut self) {
        let open: Vec<u64> = self.links.keys().copied().collect();
        for number in open {
            self.break_link(number);
        }
    }

    fn dial(&mut self, index: usize, peer: PeerNumber, id: &str) {
        let to = self.nodes.iter().position(|node| node.id == id);
        let life = self.lives[index];
        let failed = Action::Input(index, life, Event::DialFailed { peer });
        let down = to.is_none_or(|to| self.nodes[to].core.is_none() || self.cut_off(index, to));
        let delay = self.millis(1, 80);
        let Some(acceptor) = to.filter(|_| !down) else {
            return self.later(delay * 4, failed);
        };
        let number = self.number();
        self.links.insert(
            number,
            Link {
                dialler: index,
                acceptor,
                open: [true, false],
                queues: Default::default(),
                last: Default::default(),
                verified: BTreeSet::new(),
            },
        );
        self.nodes[index].conns.insert(ConnId(number));
        self.later(delay, Action::Established { link: number });
    }

    fn established(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let (dialler, acceptor) = (link.dialler, link.acceptor);
        if !link.open[0] {
            return;
        }
        if self.nodes[acceptor].core.is_none() || self.cut_off(dialler, acceptor) {
            return self.break_link(number);
        }
        if let Some(link) = self.links.get_mut(&number) {
            link.open[1] = true;
        }
        self.nodes[acceptor].conns.insert(ConnId(number));
        for (here, there, dialled) in [(dialler, acceptor, true), (acceptor, dialler, false)] {
            let wall = self.nodes[here].now(self.at).wall;
            let node = &self.nodes[there];
            let connected = Connected {
                conn: ConnId(number),
                node: PeerNode {
                    id: node.id.clone(),
                    name: node.name.clone(),
                    prefixes: vec![node.prefix],
                    assignment: 1,
                    not_after: wall + 24 * HOUR,
                    serial: format!("node-{there}").into_bytes(),
                },
                dialled,
                address: underlay(there).ip(),
                local_not_after: wall + 24 * HOUR,
            };
            // The acceptor hears of it a little later: the client is ready first.
            let delay = if dialled {
                Duration::ZERO
            } else {
                self.millis(0, 20)
            };
            let life = self.lives[here];
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

    fn transmit(&mut self, index: usize, conn: ConnId, frame: Frame) {
        let delay = self.millis(1, 30);
        let at = self.at;
        let Some(link) = self.links.get_mut(&conn.0) else {
            return;
        };
        let from_dialler = link.dialler == index;
        let side = usize::from(!from_dialler);
        if !link.open[side] {
            return;
        }
        // In order on one connection, whatever the delays; across connections in any order.
        let arrival = (at + delay).max(link.last[side]);
        link.last[side] = arrival;
        link.queues[side].push_back(frame);
        let action = Action::Deliver {
            link: conn.0,
            to_dialler: !from_dialler,
        };
        self.later(arrival - at, action);
    }

    fn deliver_frame(&mut self, number: u64, to_dialler: bool) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        let side = usize::from(to_dialler);
        let (one, two) = (link.dialler, link.acceptor);
        let to = if to_dialler { one } else { two };
        if self.partitions.contains(&(one.min(two), one.max(two))) {
            // Stalls until the way is free or somebody gives up: a connection loses nothing from its middle.
            if !link.queues[side].is_empty() {
                let action = Action::Deliver {
                    link: number,
                    to_dialler,
                };
                self.later(Duration::from_millis(200), action);
            }
            return;
        }
        let Some(frame) = link.queues[side].pop_front() else {
            return;
        };
        let conn = ConnId(number);
        self.feed(to, Event::Frame { conn, frame });
    }

    // Time.

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let end = self.at + time;
        loop {
            let next = self.queue.keys().next().map(|(at, _)| *at);
            let tick = self
                .nodes
                .iter()
                .filter_map(|node| {
                    let due = node.core.as_ref()?.next_deadline()?;
                    Some((
                        due.saturating_sub(node.boot_offset).max(self.at),
                        node.index,
                    ))
                })
                .min();
            match (next, tick) {
                (_, Some((at, index))) if at <= end && next.is_none_or(|next| at <= next) => {
                    self.at = at;
                    self.feed(index, Event::Tick);
                }
                (Some(at), _) if at <= end => {
                    self.at = at;
                    if let Some((_, action)) = self.queue.pop_first() {
                        self.act(action);
                    }
                }
                _ => break,
            }
        }
        self.at = end;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Input(index, life, event) if self.lives[index] == life => {
                self.feed(index, event);
            }
            Action::Input(..) => {}
            Action::Deliver { link, to_dialler } => self.deliver_frame(link, to_dialler),
            Action::Arrive(packet) => self.arrive(packet),
            Action::Established { link } => self.established(link),
            Action::Start(index) => self.start(index),
        }
    }

    // The shell.

    pub fn feed(&mut self, index: usize, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.nodes[index].now(self.at);
            if let Event::IdentityReady(ready) = &event {
                let svids = &mut self.nodes[index].svids;
                svids.insert(ready.identity.clone(), ready.clone());
            }
            if !matches!(event, Event::Tick) {
                self.say(format!("node {index} <- {event:?}"));
            }
            let Some(core) = self.nodes[index].core.as_mut() else {
                return;
            };
            let effects = core.handle(now, event);
            let deadline = core.next_deadline();
            if deadline.is_some_and(|at| at + Duration::from_secs(60) < now.boot) {
                self.fail("a deadline lies long in the past");
            }
            for effect in effects {
                if self.crash_percent > 0 && self.rng.below(1_000) < self.crash_percent {
                    let down = self.millis(10, 4_000);
                    return self.crash(index, down);
                }
                match self.crash_after {
                    Some((node, 0)) if node == index => {
                        self.crash_after = None;
                        return self.crash(index, Duration::from_millis(100));
                    }
                    Some((node, left)) if node == index => {
                        self.crash_after = Some((node, left - 1));
                    }
                    _ => {}
                }
                self.carry_out(index, effect, &mut events);
                self.check_properties();
            }
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect, events: &mut VecDeque<Event>) {
        self.say(format!("node {index} -> {effect:?}"));
        if let Effect::SetPair { pair, .. } = &effect {
            self.check_pair(index, pair.local, pair.remote, pair.peer);
        }
        self.nodes[index].kernel.apply(&effect);
        match effect {
            Effect::Persist => {
                let core = self.nodes[index].core.as_ref();
                let snapshot = core.map(|core| core.snapshot());
                // As the file has it.
                let text = serde_json::to_string(&snapshot).unwrap();
                self.nodes[index].stored = serde_json::from_str(&text).unwrap();
            }
            Effect::Dial { peer, id, .. } => self.dial(index, peer, &id),
            Effect::Close { conn, .. } => {
                self.nodes[index].conns.remove(&conn);
                if let Some(link) = self.links.get_mut(&conn.0) {
                    let side = usize::from(link.dialler != index);
                    link.open[side] = false;
                    let other = if side == 0 {
                        link.acceptor
                    } else {
                        link.dialler
                    };
                    // What was sent before arrives before the end does.
                    let arrival = link.last[side].max(self.at);
                    if link.open[1 - side] {
                        link.open[1 - side] = false;
                        let life = self.lives[other];
                        let event = Event::Disconnected { conn };
                        self.nodes[other].conns.remove(&conn);
                        self.later(arrival - self.at, Action::Input(other, life, event));
                    }
                }
            }
            Effect::Send { conn, frame } => self.transmit(index, conn, frame),
            Effect::MakeGrant { conn, count } => {
                let requests = (0..count)
                    .map(|_| {
                        let mut bytes = [0; 32];
                        bytes[..8].copy_from_slice(&self.number().to_be_bytes());
                        bytes
                    })
                    .collect();
                events.push_back(Event::GrantMade { conn, requests });
            }
            Effect::SendProof {
                conn,
                identity,
                leaf_hash,
                request,
            } => {
                let svid = self.nodes[index].svids.get(identity.as_ref()).cloned();
                match svid.filter(|svid| svid.leaf_hash == leaf_hash) {
                    Some(svid) => {
                        let frame = Frame::Proof {
                            authenticator: self.authenticator(index, conn, &svid),
                            request,
                        };
                        self.transmit(index, conn, frame);
                    }
                    None => events.push_back(Event::ProofFailed { conn, leaf_hash }),
                }
            }
            Effect::VerifyProof {
                conn,
                authenticator,
                ..
            } => {
                let verdict = self.verify(conn, &authenticator);
                events.push_back(match verdict {
                    Some(proof) => {
                        if let Some(link) = self.links.get_mut(&conn.0) {
                            link.verified.insert((index, proof.identity.clone()));
                        }
                        Event::ProofVerified { conn, proof }
                    }
                    None => Event::ProofInvalid {
                        conn,
                        leaf_hash: None,
                        reason: "not of this session".to_owned(),
                    },
                });
            }
            Effect::InstallTunnel { conn, .. } => {
                let delay = self.millis(1, 20);
                let life = self.lives[index];
                self.later(
                    delay,
                    Action::Input(index, life, Event::TunnelInstalled { conn }),
                );
            }
            Effect::Discard { key, .. } => {
                let gone = self.nodes[index].parked.remove(&key).unwrap_or_default();
                for _ in gone {
                    self.lose("discarded");
                }
            }
            Effect::Release { key } => {
                let packets = self.nodes[index].parked.remove(&key).unwrap_or_default();
                for Parked { packet, peer } in packets {
                    match peer {
                        None => self.at_tunnel(index, key, packet, true),
                        Some(peer) => self.at_ingress(index, key, packet, peer, true),
                    }
                }
            }
            _ => {}
        }
    }

    fn authenticator(&self, index: usize, conn: ConnId, svid: &LocalIdentity) -> Vec<u8> {
        let node = self.nodes[index].name.clone();
        let proof = (conn.0, node, &svid.identity, svid.leaf_hash, svid.not_after);
        serde_json::to_vec(&(proof, &svid.serial)).unwrap()
    }

    fn verify(&self, conn: ConnId, authenticator: &[u8]) -> Option<RemoteProof> {
        type Proof = ((u64, String, Identity, LeafHash, u64), Vec<u8>);
        let ((link, node, identity, leaf_hash, not_after), serial): Proof =
            serde_json::from_slice(authenticator).ok()?;
        (link == conn.0).then_some(RemoteProof {
            identity,
            node,
            leaf_hash,
            not_after,
            serial,
        })
    }

    // Properties.

    /// Property 1: both have verified the other's proof on one connection.
    fn check_pair(
        &self,
        index: usize,
        local: handfast_agent::core::IdentityNumber,
        remote: handfast_agent::core::IdentityNumber,
        peer: PeerNumber,
    ) {
        let node = &self.nodes[index];
        let names = &node.kernel.names;
        let (Some(local), Some(remote)) = (names.get(&local), names.get(&remote)) else {
            self.fail("a pair of numbers without names");
        };
        if peer == PeerNumber::LOCAL {
            let here = |identity: &Identity| node.svids.contains_key(identity);
            if !here(local) || !here(remote) {
                self.fail("property 1: a pair on this node without both keys");
            }
            return;
        }
        let there = self
            .nodes
            .iter()
            .position(|other| node.core.as_ref().unwrap().peer_number(&other.id) == Some(peer));
        let Some(there) = there else {
            self.fail("a pair with an unknown peer");
        };
        let proven = self.links.values().any(|link| {
            link.verified.contains(&(index, remote.as_ref().clone()))
                && link.verified.contains(&(there, local.as_ref().clone()))
        });
        if !proven {
            self.fail("property 1: a pair whose proofs were not both checked in one session");
        }
    }

    /// Property 4 (and 3): wherever a kernel takes an address for an identity, the kernel of the address's node
    /// lets nobody else use it toward there.
    fn check_properties(&self) {
        for there in &self.nodes {
            for here in &self.nodes {
                if here.index != there.index {
                    self.check_between(here, there);
                }
            }
        }
    }

    fn check_between(&self, here: &Node, there: &Node) {
        let (Some(core_here), Some(core_there)) = (&here.core, &there.core) else {
            return;
        };
        let (Some(as_here), Some(as_there)) = (
            core_here.peer_number(&there.id),
            core_there.peer_number(&here.id),
        ) else {
            return;
        };
        for address in there.kernel.remotes.keys() {
            let Some(believed) = there.kernel.believes(as_there, *address) else {
                continue;
            };
            let believed = there.kernel.names.get(&believed);
            let Some(user) = here.kernel.user_of(as_here, *address) else {
                continue;
            };
            let Some(workload) = here.workloads.get(&user) else {
                continue;
            };
            if believed.map(|identity| identity.as_ref()) != Some(&workload.identity) {
                let why = format!(
                    "property 4: node {} takes {address} for {believed:?}, node {} lets {} use it",
                    there.index, here.index, workload.identity.spiffe_id
                );
                self.fail(&why);
            }
        }
    }
}

pub fn underlay(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index).unwrap() + 1], 7250))
}
