//! The simulated world: its time, its queue of things to come, its nodes as they start, die and change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::time::Duration;

use handfast_agent::core::{ConnId, EndpointId, Event, Identity, PeerNumber, Times};

use super::authority::Authority;
use super::links::Link;
use super::node::{Node, Packet, Workload, added};
use super::proofs::Proofs;
use super::rng::Rng;
use super::tunnels::Tunnel;

/// One thing that will happen.
#[derive(Debug)]
pub enum Action {
    /// For the agent of this life only.
    Input(usize, u64, Event),
    /// The agent of this life looks at what waits for it.
    Waiting(usize, u64),
    Deliver {
        link: u64,
        to_dialler: bool,
    },
    Arrive(Packet),
    Established(u64),
    Start(usize),
    /// The CA's word reaches a node.
    Sync(usize),
    Issue(usize, u64, Identity),
    /// The tunnel's worker has done what it was told.
    Installed(usize, u64, PeerNumber, ConnId, Tunnel),
}

/// What a history is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub nodes: usize,
    pub seed: u64,
    pub times: Times,
    /// Of SVIDs, in seconds.
    pub lifetime: u64,
    pub real_proofs: bool,
    /// An agent that is busy takes in what waits as one step.
    pub batches: bool,
    /// Remember what happens, for people.
    pub trace: bool,
}

impl Setup {
    /// As in the field, with proofs as terms.
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self {
            nodes,
            seed,
            times: Times::default(),
            lifetime: 24 * 3_600,
            real_proofs: false,
            batches: seed % 128 >= 64,
            trace: std::env::var_os("HANDFAST_TRACE").is_some(),
        }
    }
}

/// What goes wrong by itself, all the time.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Of effects after which the agent dies.
    pub crash_permille: u64,
    /// Of packets that a tunnel keeps back for up to four seconds, as WireGuard does before a handshake.
    pub straggle_percent: u64,
    /// Of packets.
    pub loss_percent: u64,
    /// Of tunnels to install.
    pub tunnel_percent: u64,
    /// Of writes about addresses that the kernel refuses.
    pub refuse_percent: u64,
    /// Of snapshots to store: the disk is full, and stays so for a while.
    pub disk_percent: u64,
    /// Of new connections that are slow ones.
    pub slow_percent: u64,
    /// Of a liar's frames that it changes, or adds a lie to.
    pub lie_percent: u64,
}

/// Why a history ended before its time.
#[derive(Debug)]
pub struct Failure(pub String);

pub struct World {
    pub setup: Setup,
    pub rng: Rng,
    /// Since the beginning.
    pub at: Duration,
    pub nodes: Vec<Node>,
    pub ca: Authority,
    pub proofs: Proofs,
    pub links: BTreeMap<u64, Link>,
    pub faults: Faults,
    /// The one compromised node, if there is one.
    pub liar: Option<usize>,
    /// Nothing gets from the one to the other.
    pub cuts: BTreeSet<(usize, usize)>,
    /// The agent of this node dies after so many more effects.
    pub crash_after: Option<(usize, usize)>,
    pub delivered: BTreeSet<u64>,
    pub dropped: BTreeMap<&'static str, u64>,
    queue: BTreeMap<(Duration, u64), Box<Action>>,
    next: u64,
    /// Snapshots taken.
    pub stores: u64,
    history: VecDeque<String>,
    /// Lines of it that are kept.
    lines: usize,
}

/// Lines of a history that are kept, if `HANDFAST_LINES` does not say otherwise.
const LINES: u64 = 3_000;
/// Characters of a line that are kept.
const WIDTH: usize = 240;

impl World {
    pub fn new(setup: Setup) -> Self {
        let nodes = setup.nodes;
        let mut world = Self {
            rng: Rng(setup.seed),
            at: Duration::ZERO,
            nodes: (0..nodes).map(Node::new).collect(),
            ca: Authority::new(nodes, setup.lifetime),
            proofs: Proofs::new(setup.real_proofs),
            links: BTreeMap::new(),
            faults: Faults::default(),
            liar: None,
            cuts: BTreeSet::new(),
            crash_after: None,
            delivered: BTreeSet::new(),
            dropped: BTreeMap::new(),
            queue: BTreeMap::new(),
            next: 1,
            stores: 0,
            history: VecDeque::new(),
            lines: usize::try_from(super::number("HANDFAST_LINES", LINES)).unwrap(),
            setup,
        };
        for node in 0..nodes {
            world.renew_node(node);
            world.start(node);
        }
        world
    }

    /// A line of the history, made only where it is kept.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if !self.setup.trace {
            return;
        }
        if self.history.len() >= self.lines {
            self.history.pop_front();
        }
        let mut text = text().replace("spiffe://example.org/", "");
        // Keys and serials are mostly noughts.
        text = text.replace(", 0", "").replace("0000", "");
        text.truncate(text.floor_char_boundary(WIDTH));
        self.history
            .push_back(format!("{:>10.3} {text}", self.at.as_secs_f64()));
    }

    /// Ends the history, with what led to it.
    pub fn fail(&self, why: &str) -> ! {
        let lines: Vec<&str> = self.history.iter().map(String::as_str).collect();
        let at = self.at.as_secs_f64();
        let text = format!("{}\nat {at:.3}: {why}", lines.join("\n"));
        resume_unwind(Box::new(Failure(text)))
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn later(&mut self, delay: Duration, action: Action) {
        let number = self.number();
        self.queue
            .insert((self.at + delay, number), Box::new(action));
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1_000 + self.rng.below((to - from).max(1) * 1_000))
    }

    /// Whose address it is.
    pub fn node_of(&self, address: IpAddr) -> Option<usize> {
        // As `Node::prefixes` has them.
        let index = match address {
            IpAddr::V4(v4) => match v4.octets() {
                [10, node, 0, _] => usize::from(node),
                _ => return None,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd00, node, 0, 0, ..] => usize::from(node),
                _ => return None,
            },
        };
        (index < self.nodes.len()).then_some(index)
    }

    /// Which node a peer number of this node stands for.
    pub fn index_of(&self, index: usize, peer: PeerNumber) -> Option<usize> {
        let node = &self.nodes[index];
        let mut others = self.nodes.iter();
        others.position(|other| node.number_of(&other.id) == Some(peer))
    }

    // Nodes and workloads.

    pub fn start(&mut self, index: usize) {
        if self.nodes[index].core.is_some() {
            return;
        }
        self.say(|| format!("node {index}: agent starts"));
        let seed = self.setup.seed ^ ((index as u64) << 8);
        let core = self.nodes[index].new_core(seed, &self.setup.times);
        let node = &mut self.nodes[index];
        node.core = Some(core);
        node.ca_heard = None;
        node.kernel.rules.clone_from(&node.rules);
        let (life, events) = (node.life, node.beginnings());
        for event in events {
            if self.nodes[index].life == life {
                self.feed(index, event);
            }
        }
        // The CA is heard a little later, and SVIDs with it: their keys died with the old agent.
        let delay = self.millis(1, 30);
        self.later(delay, Action::Sync(index));
        let all: Vec<_> = self.nodes[index].workloads.values().cloned().collect();
        for workload in all {
            self.ask(index, workload.identity);
        }
    }

    /// The agent dies; the kernel stays.
    pub fn crash(&mut self, index: usize, down: Duration) {
        if self.nodes[index].core.take().is_none() {
            return;
        }
        self.say(|| format!("node {index}: agent dies"));
        let node = &mut self.nodes[index];
        node.life += 1;
        node.parked.clear();
        node.inbox.clear();
        node.svids.clear();
        node.installing.clear();
        node.unstored = false;
        node.facts.forgets_unstored();
        for link in std::mem::take(&mut node.conns) {
            self.break_link(link.0);
        }
        self.later(down, Action::Start(index));
    }

    /// The whole node dies: kernel and workloads with it.
    pub fn reboot(&mut self, index: usize, down: Duration) {
        self.crash(index, down);
        self.say(|| format!("node {index}: reboots"));
        let (at, node) = (self.at, &mut self.nodes[index]);
        node.kernel = Default::default();
        node.facts = Default::default();
        node.boot += 1;
        node.rotations = 0;
        node.booted = at;
        node.workloads.clear();
        node.next_endpoint = 1;
    }

    /// A workload comes, if the node takes one: without an agent the CNI plugin fails.
    pub fn add_workload(
        &mut self,
        index: usize,
        host: u8,
        identity: Identity,
    ) -> Option<EndpointId> {
        let reused = self.reused_number(index);
        if self.nodes[index].core.is_none() && reused.is_none() {
            return None;
        }
        let node = &mut self.nodes[index];
        let endpoint = reused.unwrap_or(EndpointId(node.next_endpoint));
        node.next_endpoint = node.next_endpoint.max(endpoint.0 + 1);
        let workload = Workload {
            addresses: node.addresses(host),
            host,
            identity: identity.clone(),
        };
        let event = added(endpoint, &workload);
        node.kernel.attached.insert(endpoint);
        node.workloads.insert(endpoint, workload);
        let name = identity.spiffe_id.clone();
        self.say(|| {
            format!(
                "node {index}: host {host} is {name} as endpoint {}",
                endpoint.0
            )
        });
        self.feed(index, event);
        for address in self.nodes[index].addresses(host) {
            self.check_toward_all(index, address);
        }
        self.ask(index, identity);
        Some(endpoint)
    }

    /// With that bug planted: the lowest free number, as the kernel gives interface indices.
    #[cfg(feature = "planted-bugs")]
    fn reused_number(&self, index: usize) -> Option<EndpointId> {
        use handfast_agent::core::{Bug, planted};
        let used = &self.nodes[index].workloads;
        planted(Bug::InterfaceIndexReused)
            .then(|| (1..).map(EndpointId).find(|id| !used.contains_key(id)))
            .flatten()
    }

    #[cfg(not(feature = "planted-bugs"))]
    fn reused_number(&self, _: usize) -> Option<EndpointId> {
        None
    }

    pub fn remove_workload(&mut self, index: usize, endpoint: EndpointId) {
        self.say(|| format!("node {index}: endpoint {} is gone", endpoint.0));
        // What came while it was there is dealt with as such.
        self.feed_waiting(index);
        // The interface and its programs are gone at once, whatever the agent does.
        let node = &mut self.nodes[index];
        let gone = node.workloads.remove(&endpoint);
        node.kernel.attached.remove(&endpoint);
        self.feed(index, Event::EndpointRemoved { endpoint });
        let node = &mut self.nodes[index];
        if let Some(identity) = gone.map(|workload| workload.identity)
            && !node.runs(&identity)
            && node.svids.remove(&identity).is_some()
        {
            self.feed(index, Event::IdentityGone(identity));
        }
    }

    // Time.

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let end = self.at + time;
        loop {
            let next = self.queue.keys().next().map(|(at, _)| *at);
            let ticks = self.nodes.iter().filter_map(|node| {
                let due = node.core.as_ref()?.next_deadline()?;
                Some((node.world_time(due).max(self.at), node.index))
            });
            match (next, ticks.min()) {
                (_, Some((at, index))) if at <= end && next.is_none_or(|next| at <= next) => {
                    self.at = at;
                    self.feed(index, Event::Tick);
                }
                (Some(at), _) if at <= end => {
                    self.at = at;
                    if let Some((_, action)) = self.queue.pop_first() {
                        self.act(*action);
                    }
                }
                _ => break,
            }
        }
        self.at = end;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Input(index, life, event) if self.nodes[index].life == life => {
                self.feed(index, event);
            }
            Action::Input(..) => {}
            Action::Waiting(index, life) => {
                if self.nodes[index].life == life {
                    self.feed_waiting(index);
                }
            }
            Action::Deliver { link, to_dialler } => self.deliver_frame(link, to_dialler),
            Action::Arrive(packet) => self.arrive(packet),
            Action::Established(link) => self.established(link),
            Action::Start(index) => self.start(index),
            Action::Sync(index) => self.sync(index),
            Action::Issue(index, life, identity) => self.issue(index, life, identity),
            Action::Installed(index, order, peer, conn, tunnel) => {
                self.installed(index, order, peer, conn, tunnel);
            }
        }
    }
}

pub fn underlay(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(index).unwrap() + 1], 7250))
}
