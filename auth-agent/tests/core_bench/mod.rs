//! One core on a bench: the test plays the shell, the peers and the clock.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    CloseReason, Config, ConnId, Connected, Core, DenyList, Direction, Effect, EndpointId, Event,
    HoldKey, Identity, Journal, Local, LocalIdentity, NodeInfo, Now, PairView, Pairing, PeerNode,
    PeerNumber, Policy, PolicyView, RemoteProof, SessionEntry, SessionState, Snapshot,
};
use handfast_agent::wire::{BootId, Frame, Hello, LeafHash, OLDEST_VERSION, TunnelKind, VERSION};
use ipnet::IpNet;

pub const SECOND: Duration = Duration::from_secs(1);
pub const WALL: u64 = 1_800_000_000;
pub const DAY: u64 = 24 * 3_600;

/// This node is `m`; `a` is lower and so decides between connections, `z` is higher and leaves it to us.
pub const LOWER: &str = "a";
pub const HIGHER: &str = "z";

/// Says the same of every two identities.
pub struct Always(pub Pairing);

impl PolicyView for Always {
    fn pairing(&self, _: &Arc<Identity>, _: &Arc<Identity>) -> Pairing {
        self.0
    }
}

pub fn policy(wanted: bool, max_age: Option<Duration>) -> Event {
    Event::Policy(Policy(Arc::new(Always(Pairing { wanted, max_age }))))
}

pub fn identity(name: &str) -> Identity {
    Identity {
        spiffe_id: format!("spiffe://example.org/{name}"),
        labels: BTreeMap::new(),
    }
}

pub fn node_id(name: &str) -> String {
    format!("spiffe://example.org/handfast/node/{name}")
}

pub fn leaf(number: u8) -> LeafHash {
    LeafHash([number; 32])
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn boot(number: u8) -> BootId {
    BootId([number; 16])
}

/// `10.<first letter>.0.0/24`: `a` has 10.97, `m` 10.109, `z` 10.122.
pub fn prefix(name: &str) -> IpNet {
    format!("10.{}.0.0/24", name.as_bytes()[0]).parse().unwrap()
}

pub fn peer_node(name: &str) -> PeerNode {
    PeerNode {
        id: node_id(name),
        name: name.to_owned(),
        prefixes: vec![prefix(name)],
        assignment: 1,
        not_after: WALL + DAY,
        serial: name.as_bytes().to_vec(),
    }
}

pub fn hello(name: &str, boot_number: u8) -> Frame {
    Frame::Hello(Hello {
        version: VERSION,
        oldest_version: OLDEST_VERSION,
        features: 0,
        node_id: node_id(name),
        boot_id: boot(boot_number),
        tunnel_kind: TunnelKind::WireGuard,
        tunnel_key: [name.as_bytes()[0]; 32],
        tunnel_port: 51872,
        deny_number: 0,
        endpoints: 1,
        lineage: 0,
    })
}

pub fn local() -> Local {
    Local {
        id: node_id("m"),
        name: "m".to_owned(),
        boot_id: boot(1),
        prefixes: vec![prefix("m")],
        tunnel_kind: TunnelKind::WireGuard,
        tunnel_key: [1; 32],
        tunnel_port: 51872,
    }
}

pub struct Bench {
    pub core: Core,
    pub at: Duration,
    /// What the shell has stored last.
    pub stored: Option<Snapshot>,
    /// The file that it is in.
    pub journal: Vec<u8>,
}

impl Bench {
    /// A node with nothing yet but policy: everybody pairs.
    pub fn new() -> Self {
        Self::begin(Self::blank(None, 1))
    }

    /// The same with other settings.
    pub fn with(config: Config) -> Self {
        let mut bench = Self::blank(None, 1);
        bench.core = Core::new(config, local(), None);
        Self::begin(bench)
    }

    fn begin(mut bench: Self) -> Self {
        bench.feed(Event::Settled);
        bench.feed(policy(true, None));
        let nodes = [LOWER, HIGHER].map(|name| NodeInfo {
            id: node_id(name),
            name: name.to_owned(),
            addresses: vec![SocketAddr::from(([192, 0, 2, name.as_bytes()[0]], 7250))],
            prefixes: vec![prefix(name)],
        });
        bench.feed(Event::Nodes(nodes.to_vec()));
        bench
    }

    /// A core that has been told nothing.
    pub fn blank(snapshot: Option<Snapshot>, seed: u64) -> Self {
        Self {
            core: Core::new(Config::new(seed), local(), snapshot),
            at: Duration::from_secs(1_000),
            stored: None,
            journal: Vec::new(),
        }
    }

    pub fn now(&self) -> Now {
        Now {
            boot: self.at,
            wall: WALL + self.at.as_secs() - 1_000,
        }
    }

    pub fn feed(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.core.handle(self.now(), event);
        if effects.contains(&Effect::Persist) {
            assert_eq!(effects.iter().position(|e| *e == Effect::Persist), Some(0));
            self.store();
        }
        effects
    }

    /// What was stored last.
    pub fn last_line(&self) -> &[u8] {
        let mut lines = self.journal.split_inclusive(|byte| *byte == b'\n');
        lines.next_back().unwrap()
    }

    /// As the agent does it; what is read again is what was stored.
    fn store(&mut self) {
        let now = self.core.snapshot();
        match &self.stored {
            None => self.journal = Journal::whole(&now).unwrap(),
            Some(before) => {
                let next = Journal::next(before, &now).unwrap();
                self.journal.extend(next.expect("a later snapshot"));
            }
        }
        let read = Journal::read(&self.journal).unwrap();
        assert_eq!((&read.snapshot, read.torn), (&now, false));
        self.stored = Some(now);
    }

    /// A frame of a peer's; its Hello goes on with the session that stands.
    pub fn frame(&mut self, conn: u64, mut frame: Frame) -> Vec<Effect> {
        let conn = ConnId(conn);
        if let Frame::Hello(hello) = &mut frame
            && hello.lineage == 0
        {
            let peers = self.core.snapshot().peers;
            let known = peers.iter().find(|peer| peer.id == hello.node_id);
            hello.lineage = known.map_or(7, |peer| peer.lineage.max(7));
        }
        self.feed(Event::Frame { conn, frame })
    }

    /// Lets time pass, tick by tick.
    pub fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.at + time;
        let mut effects = Vec::new();
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= end) {
            self.at = self.at.max(due);
            effects.extend(self.feed(Event::Tick));
        }
        self.at = end;
        effects.extend(self.feed(Event::Tick));
        effects
    }

    /// As `pass`, with a peer that answers on this connection.
    pub fn pass_alive(&mut self, conn: u64, time: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..time.as_secs() / 5 {
            effects.extend(self.pass(SECOND * 5));
            effects.extend(self.frame(conn, Frame::Pong));
        }
        effects
    }

    pub fn connected(&mut self, conn: u64, node: PeerNode, dialled: bool) -> Vec<Effect> {
        let address = IpAddr::from([192, 0, 2, node.name.as_bytes()[0]]);
        self.feed(Event::Connected(Connected {
            conn: ConnId(conn),
            node,
            dialled,
            address,
            local_not_after: WALL + DAY,
        }))
    }

    /// Hello both ways; no tunnel yet.
    pub fn greet(&mut self, conn: u64, name: &str, dialled: bool) -> Vec<Effect> {
        let mut effects = self.connected(conn, peer_node(name), dialled);
        effects.extend(self.frame(conn, hello(name, 1)));
        effects
    }

    /// The peer shows that it holds its tunnel key.
    pub fn show_key(&mut self, conn: u64) -> Vec<Effect> {
        let mut effects = self.frame(conn, Frame::TunnelKey { tag: [1; 32] });
        let conn = ConnId(conn);
        effects.extend(self.feed(Event::TunnelKeyChecked { conn, held: true }));
        effects
    }

    /// A session whose tunnel stands on both sides, the client with contexts.
    pub fn live(&mut self, conn: u64, name: &str, dialled: bool) -> Vec<Effect> {
        let mut effects = self.greet(conn, name, dialled);
        effects.extend(self.show_key(conn));
        effects.extend(self.feed(Event::TunnelInstalled { conn: ConnId(conn) }));
        effects.extend(self.frame(conn, Frame::TunnelReady));
        if dialled {
            let requests = (1..=8).map(|n| [n; 32]).collect();
            effects.extend(self.frame(conn, Frame::Grant { requests }));
        } else {
            let requests = (1..=8).map(|n| [n; 32]).collect();
            let conn = ConnId(conn);
            effects.extend(self.feed(Event::GrantMade { conn, requests }));
        }
        effects
    }

    /// A workload with its SVID; the leaf hash is the endpoint's number.
    pub fn workload(&mut self, endpoint: u32, address: &str, name: &str) -> Vec<Effect> {
        let mut effects = self.feed(Event::EndpointAdded {
            endpoint: EndpointId(endpoint),
            addresses: BTreeSet::from([ip(address)]),
            identity: Some(identity(name)),
        });
        effects.extend(self.svid(name, u8::try_from(endpoint).unwrap(), WALL + DAY));
        effects
    }

    /// The same workload by other labels, with the SVID that names them.
    pub fn relabel(
        &mut self,
        endpoint: u32,
        address: &str,
        name: &str,
        label: &str,
        leaf_number: u8,
    ) -> Vec<Effect> {
        let mut identity = identity(name);
        identity.labels.insert("label".to_owned(), label.to_owned());
        let mut effects = self.feed(Event::EndpointAdded {
            endpoint: EndpointId(endpoint),
            addresses: BTreeSet::from([ip(address)]),
            identity: Some(identity.clone()),
        });
        effects.extend(self.svid_of(identity, leaf_number, WALL + DAY));
        effects
    }

    pub fn svid(&mut self, name: &str, leaf_number: u8, not_after: u64) -> Vec<Effect> {
        self.svid_of(identity(name), leaf_number, not_after)
    }

    fn svid_of(&mut self, identity: Identity, leaf_number: u8, not_after: u64) -> Vec<Effect> {
        self.feed(Event::IdentityReady(LocalIdentity {
            identity,
            leaf_hash: leaf(leaf_number),
            not_after,
            serial: vec![leaf_number],
        }))
    }

    pub fn hold(&mut self, endpoint: u32, remote: &str) -> Vec<Effect> {
        self.feed(Event::Held(egress(endpoint, remote)))
    }

    /// The peer proves an identity; as a client it answers context `leaf_number`.
    pub fn proven(
        &mut self,
        conn: u64,
        node: &str,
        name: &str,
        leaf_number: u8,
        client: bool,
    ) -> Vec<Effect> {
        let request = client.then_some([leaf_number; 32]);
        let mut effects = self.frame(
            conn,
            Frame::Proof {
                authenticator: vec![leaf_number],
                request,
            },
        );
        effects.extend(self.verdict(conn, node, name, leaf_number, WALL + DAY));
        effects
    }

    pub fn verdict(
        &mut self,
        conn: u64,
        node: &str,
        name: &str,
        leaf_number: u8,
        not_after: u64,
    ) -> Vec<Effect> {
        self.feed(Event::ProofVerified {
            conn: ConnId(conn),
            proof: RemoteProof {
                identity: identity(name),
                node: node.to_owned(),
                leaf_hash: leaf(leaf_number),
                not_after,
                serial: vec![leaf_number],
            },
        })
    }

    pub fn announce(
        &mut self,
        conn: u64,
        address: &str,
        leaf_number: u8,
        generation: u64,
    ) -> Vec<Effect> {
        self.frame(
            conn,
            Frame::Announce {
                address: ip(address),
                leaf_hash: leaf(leaf_number),
                generation,
                boot_id: boot(1),
            },
        )
    }

    /// Endpoint 1 at 10.109.0.1, session with the higher node dialled by us, its 10.122.0.1 proven as `db` and
    /// announced, everything confirmed: the pair stands.
    pub fn paired() -> Self {
        let mut bench = Self::new();
        bench.workload(1, "10.109.0.1", "web");
        bench.hold(1, "10.122.0.1");
        let mut effects = bench.live(1, HIGHER, true);
        effects.extend(bench.frame(1, accepted(1)));
        let generation = announced_generation(&effects, "10.109.0.1");
        bench.frame(1, confirmed("10.109.0.1", generation));
        bench.proven(1, HIGHER, "db", 101, false);
        bench.announce(1, "10.122.0.1", 101, 5);
        bench
    }

    /// The pairs recorded with peers; those within the node are left out.
    pub fn pairs(&self) -> Vec<PairView> {
        let pairs = self.core.view().pairs.into_iter();
        pairs
            .filter(|pair| pair.pair.peer != PeerNumber::LOCAL)
            .collect()
    }

    pub fn peer(&self, name: &str) -> PeerNumber {
        self.core.peer_number(&node_id(name)).unwrap()
    }
}

pub fn egress(endpoint: u32, remote: &str) -> HoldKey {
    HoldKey {
        endpoint: EndpointId(endpoint),
        direction: Direction::Egress,
        remote: ip(remote),
    }
}

pub fn accepted(leaf_number: u8) -> Frame {
    Frame::ProofAccepted {
        leaf_hash: leaf(leaf_number),
    }
}

pub fn confirmed(address: &str, generation: u64) -> Frame {
    Frame::Announced {
        address: ip(address),
        generation,
    }
}

pub fn deny(number: u64, identities: &[&str], nodes: &[&str], serials: &[&[u8]]) -> Event {
    Event::DenyList(Arc::new(DenyList {
        number,
        identities: identities.iter().map(|n| identity(n).spiffe_id).collect(),
        nodes: nodes.iter().map(|n| node_id(n)).collect(),
        serials: serials.iter().map(|s| s.to_vec()).collect(),
        signed: vec![u8::try_from(number).unwrap()],
    }))
}

// Reading effects.

pub fn sent(effects: &[Effect], conn: u64) -> Vec<Frame> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { conn: to, frame } if *to == ConnId(conn) => Some(frame.clone()),
        _ => None,
    });
    sends.collect()
}

pub fn closed(effects: &[Effect]) -> Vec<(u64, CloseReason)> {
    let closes = effects.iter().filter_map(|effect| match effect {
        Effect::Close { conn, reason } => Some((conn.0, *reason)),
        _ => None,
    });
    closes.collect()
}

pub fn session(effects: &[Effect], peer: PeerNumber) -> Option<SessionEntry> {
    let entries = effects.iter().rev().filter_map(|effect| match effect {
        Effect::SetSession { peer: of, session } if *of == peer => Some(*session),
        _ => None,
    });
    entries.take(1).next()
}

pub fn announced_generation(effects: &[Effect], address: &str) -> u64 {
    effects
        .iter()
        .rev()
        .find_map(|effect| match effect {
            Effect::Send {
                frame:
                    Frame::Announce {
                        address: at,
                        generation,
                        ..
                    },
                ..
            } if *at == ip(address) => Some(*generation),
            _ => None,
        })
        .unwrap()
}

pub fn withdrawn_generation(effects: &[Effect], address: &str) -> u64 {
    effects
        .iter()
        .find_map(|effect| match effect {
            Effect::Send {
                frame:
                    Frame::Withdraw {
                        address: at,
                        generation,
                    },
                ..
            } if *at == ip(address) => Some(*generation),
            _ => None,
        })
        .unwrap()
}

/// Where the first effect that fits stands.
pub fn place(effects: &[Effect], fits: impl Fn(&Effect) -> bool) -> usize {
    let at = effects.iter().position(fits);
    at.unwrap_or_else(|| panic!("not among {effects:#?}"))
}

pub fn has(effects: &[Effect], fits: impl Fn(&Effect) -> bool) -> bool {
    effects.iter().any(fits)
}

pub fn dials(effects: &[Effect]) -> usize {
    let dials = effects.iter();
    dials
        .filter(|effect| matches!(effect, Effect::Dial { .. }))
        .count()
}

pub fn is_ready(entry: Option<SessionEntry>) -> bool {
    entry.is_some_and(|entry| entry.state == SessionState::Ready)
}
