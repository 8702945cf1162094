//! One node: its core, its kernel, its workloads and what its shell would keep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    Config, ConnId, Core, DenyList, EndpointId, Event, HoldKey, Identity, Local, LocalIdentity,
    Now, Pairing, PeerNumber, Policy, PolicyView, Snapshot,
};
use handfast_agent::wire::{BootId, LeafHash};
use ipnet::IpNet;

use super::kernel::Kernel;

/// A packet, with the truth about it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub number: u64,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub from: Identity,
    pub from_node: usize,
    pub to_node: usize,
    /// The sender's tunnel key, and the one it took for the receiver's: a node that has rebooted cannot read it.
    pub keys: Option<([u8; 32], [u8; 32])>,
}

/// A held packet, and where it was taken.
#[derive(Clone, Debug)]
pub struct Parked {
    pub packet: Packet,
    pub peer: Option<PeerNumber>,
}

#[derive(Clone, Debug)]
pub struct Workload {
    pub address: IpAddr,
    pub identity: Identity,
}

pub struct Node {
    pub index: usize,
    pub id: String,
    pub name: String,
    pub prefix: IpNet,
    pub boot: u64,
    /// This node's boot clock when the world began.
    pub boot_offset: Duration,
    pub core: Option<Core>,
    pub kernel: Kernel,
    pub stored: Option<Snapshot>,
    pub workloads: BTreeMap<EndpointId, Workload>,
    pub next_endpoint: u32,
    pub svids: BTreeMap<Identity, LocalIdentity>,
    pub parked: BTreeMap<HoldKey, VecDeque<Parked>>,
    pub conns: BTreeSet<ConnId>,
    pub deny: Option<Arc<DenyList>>,
    pub log: Vec<String>,
}

/// Everybody may meet unless both carry the label `closed`.
pub struct OpenPolicy {
    pub forbidden: BTreeSet<(String, String)>,
    pub max_age: Option<Duration>,
}

impl PolicyView for OpenPolicy {
    fn pairing(&self, local: &Identity, remote: &Identity) -> Pairing {
        let (one, two) = (local.spiffe_id.clone(), remote.spiffe_id.clone());
        let forbidden = self.forbidden.contains(&(one.clone(), two.clone()))
            || self.forbidden.contains(&(two, one));
        Pairing {
            wanted: !forbidden,
            max_age: self.max_age,
        }
    }
}

pub fn identity(name: &str) -> Identity {
    Identity {
        spiffe_id: format!("spiffe://example.org/{name}"),
        labels: BTreeMap::new(),
    }
}

pub fn open_policy() -> Policy {
    Policy(Arc::new(OpenPolicy {
        forbidden: BTreeSet::new(),
        max_age: None,
    }))
}

impl Node {
    pub fn new(index: usize) -> Self {
        // Names in another order than indexes, so that the leading node is not always the first.
        let name = format!("{}{index}", ["m", "c", "x", "a"][index % 4]);
        Self {
            index,
            id: format!("spiffe://example.org/handfast/node/{name}"),
            name,
            prefix: format!("10.{index}.0.0/24").parse().unwrap(),
            boot: 1,
            boot_offset: Duration::from_secs(1_000 * (index as u64 + 1)),
            core: None,
            kernel: Kernel::default(),
            stored: None,
            workloads: BTreeMap::new(),
            next_endpoint: 1,
            svids: BTreeMap::new(),
            parked: BTreeMap::new(),
            conns: BTreeSet::new(),
            deny: None,
            log: Vec::new(),
        }
    }

    pub fn boot_id(&self) -> BootId {
        let mut bytes = [0; 16];
        bytes[0] = u8::try_from(self.index).unwrap();
        bytes[1..9].copy_from_slice(&self.boot.to_be_bytes());
        BootId(bytes)
    }

    /// Every boot of every node has its own.
    pub fn tunnel_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key[0] = u8::try_from(self.index).unwrap();
        key[1..9].copy_from_slice(&self.boot.to_be_bytes());
        key
    }

    pub fn now(&self, at: Duration) -> Now {
        Now {
            boot: self.boot_offset + at,
            wall: 1_800_000_000 + at.as_secs(),
        }
    }

    pub fn new_core(&self, seed: u64) -> Core {
        let local = Local {
            id: self.id.clone(),
            name: self.name.clone(),
            boot_id: self.boot_id(),
            prefixes: vec![self.prefix],
            tunnel_key: self.tunnel_key(),
            tunnel_port: 51872,
        };
        Core::new(Config::new(seed), local, self.stored.clone())
    }

    /// What the shell tells a core that has just begun.
    pub fn beginnings(&self) -> Vec<Event> {
        let mut events = Vec::new();
        events.extend(self.deny.clone().map(Event::DenyList));
        for (endpoint, workload) in &self.workloads {
            events.push(added(*endpoint, workload));
        }
        events.push(Event::Settled);
        events
    }

    pub fn address(&self, host: u8) -> IpAddr {
        IpAddr::from([10, u8::try_from(self.index).unwrap(), 0, host])
    }

    pub fn workload_at(&self, address: IpAddr) -> Option<(EndpointId, &Workload)> {
        self.workloads
            .iter()
            .find(|(_, workload)| workload.address == address)
            .map(|(endpoint, workload)| (*endpoint, workload))
    }
}

pub fn added(endpoint: EndpointId, workload: &Workload) -> Event {
    Event::EndpointAdded {
        endpoint,
        addresses: [workload.address].into(),
        identity: Some(workload.identity.clone()),
    }
}

pub fn leaf(serial: u64) -> LeafHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&serial.to_be_bytes());
    LeafHash(bytes)
}
