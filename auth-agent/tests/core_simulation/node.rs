//! One node: its core, its kernel, its workloads, its clocks, and what its shell keeps in memory and on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    Config, ConnId, Core, DenyList, EndpointId, Event, HoldKey, Identity, Local, LocalIdentity,
    Now, Pairing, PeerNumber, Policy, PolicyView, Snapshot, Times,
};
use handfast_agent::wire::{BootId, TunnelKind};
use ipnet::IpNet;

use super::kernel::Kernel;
use super::truth::Facts;
use super::tunnels::{Handshake, Tunnels};

/// True time when every history begins, unix seconds.
pub const WALL: u64 = 1_800_000_000;
/// A node's boot clock when it has just booted.
const BOOTED: Duration = Duration::from_secs(10);

/// A packet, with the truth about it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub number: u64,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Who made it.
    pub from: Identity,
    pub from_node: usize,
    pub to_node: usize,
    /// Whom the sender's kernel took the destination for, once it has let the packet pass.
    pub meant: Option<Arc<Identity>>,
    /// The sender's tunnel key, and the one it took for the receiver's: a node that has rebooted cannot read it.
    pub keys: Option<([u8; 32], [u8; 32])>,
    pub cover: Cover,
}

/// How a packet goes through a tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Cover {
    /// Encrypted when it was sent.
    Keys(Handshake),
    /// Staged in this peer entry until there is a handshake.
    Staged(u64),
    /// Made by a liar, by whatever keys it has.
    Liar,
}

/// A held packet, and where it was taken.
#[derive(Clone, Debug)]
pub struct Parked {
    pub packet: Packet,
    /// Taken at ingress, from this peer.
    pub peer: Option<PeerNumber>,
    /// Whom the kernel took the other end for at that moment, if for anybody.
    pub believed: Option<Arc<Identity>>,
}

#[derive(Clone, Debug)]
pub struct Workload {
    pub addresses: BTreeSet<IpAddr>,
    pub host: u8,
    pub identity: Identity,
}

/// What policy says: everybody may meet but these, by SPIFFE ID in either order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub forbidden: BTreeSet<(String, String)>,
    pub max_age: Option<Duration>,
}

impl Rules {
    pub fn allow(&self, one: &Identity, two: &Identity) -> bool {
        self.forbidden.is_empty()
            || !self.forbidden.iter().any(|(a, b)| {
                (*a == one.spiffe_id && *b == two.spiffe_id)
                    || (*b == one.spiffe_id && *a == two.spiffe_id)
            })
    }
}

impl PolicyView for Rules {
    fn pairing(&self, local: &Arc<Identity>, remote: &Arc<Identity>) -> Pairing {
        Pairing {
            wanted: self.allow(local, remote),
            max_age: self.max_age,
        }
    }
}

pub fn event_of(rules: &Arc<Rules>) -> Event {
    Event::Policy(Policy(rules.clone()))
}

pub fn identity(name: &str) -> Identity {
    Identity {
        spiffe_id: format!("spiffe://example.org/{name}"),
        labels: BTreeMap::new(),
    }
}

/// The node's own SVID.
#[derive(Clone, Debug)]
pub struct NodeSvid {
    pub serial: u64,
    /// True unix seconds.
    pub not_after: u64,
    pub root: u32,
}

pub struct Node {
    pub index: usize,
    pub id: String,
    pub name: String,
    pub prefixes: Vec<IpNet>,
    pub boot: u64,
    /// How often its tunnel's key has changed in this boot.
    pub rotations: u8,
    /// World time at which this boot began.
    pub booted: Duration,
    /// Seconds by which the wall clock is wrong.
    pub skew: i64,
    pub core: Option<Core>,
    /// Which agent of this node: what was meant for an earlier one is void.
    pub life: u64,
    pub kernel: Kernel,
    pub workloads: BTreeMap<EndpointId, Workload>,
    pub next_endpoint: u32,

    // The shell's memory.
    pub svids: BTreeMap<Identity, LocalIdentity>,
    pub parked: BTreeMap<HoldKey, VecDeque<Parked>>,
    pub conns: BTreeSet<ConnId>,
    /// Who is at the other end of each connection that there ever was.
    pub ends: BTreeMap<ConnId, usize>,
    /// What the CA said the time was, and when on the boot clock.
    pub ca_heard: Option<(u64, Duration)>,
    /// A liar's: contexts that it was granted, beside those that its agent uses.
    pub granted: BTreeMap<ConnId, Vec<[u8; 32]>>,
    /// What waits for an agent that is busy.
    pub inbox: Vec<Event>,
    /// When the kernel last refused what cuts.
    pub refused: Option<Duration>,
    /// Tunnels that are being installed.
    pub installing: BTreeMap<PeerNumber, u64>,
    /// The disk has refused the snapshot that it should have by now.
    pub unstored: bool,
    pub disk_full_until: Duration,

    // The shell's disk.
    pub stored: Option<Snapshot>,
    pub deny: Option<Arc<DenyList>>,
    pub rules: Option<Arc<Rules>>,
    pub bundle: BTreeSet<u32>,
    pub svid: NodeSvid,

    // For the checks.
    pub facts: Facts,
}

impl Node {
    pub fn new(index: usize) -> Self {
        // Names in another order than indexes, so that the leading node is not always the first.
        let name = format!("{}{index}", ["m", "c", "x", "a"][index % 4]);
        let svid = NodeSvid {
            serial: 0,
            not_after: 0,
            root: 0,
        };
        Self {
            index,
            id: format!("spiffe://example.org/handfast/node/{name}"),
            name,
            prefixes: vec![
                format!("10.{index}.0.0/24").parse().unwrap(),
                format!("fd00:{index}::/64").parse().unwrap(),
            ],
            boot: 1,
            rotations: 0,
            booted: Duration::ZERO,
            skew: 0,
            core: None,
            life: 0,
            kernel: Kernel::default(),
            workloads: BTreeMap::new(),
            next_endpoint: 1,
            svids: BTreeMap::new(),
            parked: BTreeMap::new(),
            conns: BTreeSet::new(),
            ends: BTreeMap::new(),
            ca_heard: None,
            granted: BTreeMap::new(),
            inbox: Vec::new(),
            refused: None,
            installing: BTreeMap::new(),
            unstored: false,
            disk_full_until: Duration::ZERO,
            stored: None,
            deny: None,
            rules: None,
            bundle: BTreeSet::from([1]),
            svid,
            facts: Facts::default(),
        }
    }

    pub fn boot_id(&self) -> BootId {
        let mut bytes = [0; 16];
        bytes[0] = u8::try_from(self.index).unwrap();
        bytes[1..9].copy_from_slice(&self.boot.to_be_bytes());
        BootId(bytes)
    }

    /// Every boot of every node has its own, and may change it.
    pub fn tunnel_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key[0] = u8::try_from(self.index).unwrap();
        key[1..9].copy_from_slice(&self.boot.to_be_bytes());
        key[9] = self.rotations;
        key
    }

    /// One of this boot's, now or before.
    pub fn has_had_key(&self, key: [u8; 32]) -> bool {
        key[..9] == self.tunnel_key()[..9]
    }

    /// Whether every peer has come over to the key that it has now, and the one before is gone.
    pub fn has_rotated(&self, at: Duration) -> bool {
        let all = self.kernel.tunnels.values();
        let mut all = all.flat_map(|tunnels| tunnels.standing(at));
        all.all(|tunnel| tunnel.own == self.tunnel_key())
    }

    pub fn boot_clock(&self, at: Duration) -> Duration {
        BOOTED + at.saturating_sub(self.booted)
    }

    /// World time of a moment on this node's boot clock.
    pub fn world_time(&self, boot: Duration) -> Duration {
        boot.saturating_sub(BOOTED).saturating_add(self.booted)
    }

    /// As the shell's clock gives it: never behind what the CA has said.
    pub fn now(&self, at: Duration) -> Now {
        let boot = self.boot_clock(at);
        let local = (WALL + at.as_secs()).saturating_add_signed(self.skew);
        let floor = self
            .ca_heard
            .map_or(0, |(said, when)| said + boot.saturating_sub(when).as_secs());
        Now {
            boot,
            wall: local.max(floor),
        }
    }

    pub fn new_core(&self, seed: u64, times: &Times) -> Core {
        let local = Local {
            id: self.id.clone(),
            name: self.name.clone(),
            boot_id: self.boot_id(),
            prefixes: self.prefixes.clone(),
            tunnel_kind: TunnelKind::WireGuard,
            tunnel_key: self.tunnel_key(),
            tunnel_port: 51872,
        };
        let mut config = Config::new(seed);
        config.times = times.clone();
        // Few, so that they run out now and then.
        config.limits.grants = 16;
        Core::new(config, local, self.stored.clone())
    }

    /// What the shell tells a core that has just begun, from its disk.
    pub fn beginnings(&self) -> Vec<Event> {
        let mut events = Vec::new();
        events.extend(self.deny.clone().map(Event::DenyList));
        for (endpoint, workload) in &self.workloads {
            events.push(added(*endpoint, workload));
        }
        events.push(Event::Settled);
        events.extend(self.rules.as_ref().map(event_of));
        events
    }

    pub fn address(&self, host: u8) -> IpAddr {
        IpAddr::from([10, u8::try_from(self.index).unwrap(), 0, host])
    }

    /// Every second host has IPv6 too.
    pub fn addresses(&self, host: u8) -> BTreeSet<IpAddr> {
        let six = six(self.index, host);
        let six = (host.is_multiple_of(2)).then_some(six);
        six.into_iter().chain([self.address(host)]).collect()
    }

    pub fn has_address(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }

    pub fn workload_at(&self, address: IpAddr) -> Option<(EndpointId, &Workload)> {
        self.workloads
            .iter()
            .find(|(_, workload)| workload.addresses.contains(&address))
            .map(|(endpoint, workload)| (*endpoint, workload))
    }

    /// Whether a workload of this identity is attached here.
    pub fn runs(&self, identity: &Identity) -> bool {
        self.workloads.values().any(|w| w.identity == *identity)
    }

    /// This node's number for another one.
    pub fn number_of(&self, other: &str) -> Option<PeerNumber> {
        let core = self.core.as_ref().and_then(|core| core.peer_number(other));
        let tunnels = self.kernel.tunnels.iter();
        core.or_else(|| {
            let named = |tunnels: &Tunnels| tunnels.all().any(|tunnel| tunnel.id == other);
            let mut of = tunnels.filter(|(_, tunnels)| named(tunnels));
            of.next().map(|(peer, _)| *peer)
        })
    }
}

pub fn six(node: usize, host: u8) -> IpAddr {
    let node = u16::try_from(node).unwrap();
    IpAddr::from([0xfd00, node, 0, 0, 0, 0, 0, u16::from(host)])
}

pub fn added(endpoint: EndpointId, workload: &Workload) -> Event {
    Event::EndpointAdded {
        endpoint,
        addresses: workload.addresses.clone(),
        identity: Some(workload.identity.clone()),
    }
}
