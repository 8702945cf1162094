//! The CA: what it has issued, what it has revoked, which roots there are, and what of that has reached whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{DenyList, Event, Identity, LocalIdentity, NodeInfo};
use handfast_agent::wire::LeafHash;

use super::node::{NodeSvid, Rules, WALL, event_of};
use super::world::{Action, World, underlay};

/// One proof SVID.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub serial: u64,
    /// Who has its key.
    pub owner: usize,
    pub identity: Identity,
    /// True unix seconds.
    pub not_after: u64,
    pub root: u32,
}

pub struct Authority {
    pub certificates: BTreeMap<u64, Certificate>,
    pub deny: Arc<DenyList>,
    /// Every list ever signed, by number.
    pub lists: BTreeMap<u64, Arc<DenyList>>,
    pub rules: Arc<Rules>,
    pub bundle: BTreeSet<u32>,
    pub signing: u32,
    /// False while the CA is not in reach of a node.
    pub reach: Vec<bool>,
    /// Lifetime of SVIDs of both kinds, seconds.
    pub lifetime: u64,
    next_serial: u64,
}

impl Authority {
    pub fn new(nodes: usize, lifetime: u64) -> Self {
        Self {
            certificates: BTreeMap::new(),
            deny: Arc::default(),
            lists: BTreeMap::new(),
            rules: Arc::default(),
            bundle: BTreeSet::from([1]),
            signing: 1,
            reach: vec![true; nodes],
            lifetime,
            next_serial: 0,
        }
    }

    /// Whether a node has ever been given a key for this identity.
    pub fn holds(&self, node: usize, identity: &Identity) -> bool {
        let mut all = self.certificates.values();
        all.any(|of| of.owner == node && of.identity == *identity)
    }

    pub fn revoked(&self, identity: &Identity) -> bool {
        self.deny.identities.contains(&identity.spiffe_id)
    }

    fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }
}

/// Names a certificate in every run of a seed alike, whatever its bytes are.
pub fn leaf(serial: u64) -> LeafHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&serial.to_be_bytes());
    LeafHash(bytes)
}

pub fn serial_of(leaf: LeafHash) -> u64 {
    u64::from_be_bytes(leaf.0[..8].try_into().unwrap())
}

impl World {
    fn true_wall(&self) -> u64 {
        WALL + self.at.as_secs()
    }

    /// All that the CA has for a node, in the order in which the agent takes it in.
    pub fn sync(&mut self, index: usize) {
        if !self.ca.reach[index] || self.nodes[index].core.is_none() {
            return;
        }
        let life = self.nodes[index].life;
        let node = &mut self.nodes[index];
        let boot = node.boot_clock(self.at);
        node.ca_heard = Some((WALL + self.at.as_secs(), boot));
        node.bundle.clone_from(&self.ca.bundle);
        self.take_list(index, self.ca.deny.clone());
        let rules = self.ca.rules.clone();
        let node = &mut self.nodes[index];
        if node.life == life && node.rules.as_ref() != Some(&rules) {
            node.rules = Some(rules.clone());
            node.kernel.rules = Some(rules.clone());
            self.feed(index, event_of(&rules));
        }
        if self.nodes[index].life == life {
            let nodes = Event::Nodes(self.node_list());
            self.feed(index, nodes);
        }
        self.renew_node(index);
    }

    /// Tells every node that the CA reaches, each after its own delay.
    pub fn publish(&mut self) {
        for index in 0..self.nodes.len() {
            let delay = self.millis(0, 100);
            self.later(delay, Action::Sync(index));
        }
    }

    /// A signed list, from the CA or from a peer.
    pub fn take_list(&mut self, index: usize, list: Arc<DenyList>) {
        let node = &mut self.nodes[index];
        let known = node.deny.as_ref().map_or(0, |list| list.number);
        if list.number > known {
            node.deny = Some(list.clone());
            self.feed(index, Event::DenyList(list));
        }
    }

    /// An agent asks anew where the deny list has the serial of its own SVID.
    pub fn drop_revoked(&mut self, index: usize, list: &DenyList) {
        let node = &mut self.nodes[index];
        let revoked = |_: &Identity, svid: &mut LocalIdentity| list.serials.contains(&svid.serial);
        let lost: Vec<Identity> = node
            .svids
            .extract_if(.., revoked)
            .map(|(id, _)| id)
            .collect();
        for identity in lost {
            self.ask(index, identity);
        }
    }

    /// What is revoked from now on, in place of what was.
    pub fn revoke(&mut self, change: impl FnOnce(&mut DenyList)) {
        let mut list = DenyList::clone(&self.ca.deny);
        change(&mut list);
        list.number = self.ca.deny.number + 1;
        list.signed = list.number.to_be_bytes().to_vec();
        let said = format!(
            "CA: deny list {}: {:?} {:?} {:?}",
            list.number, list.identities, list.nodes, list.serials
        );
        self.say(|| said);
        let list = Arc::new(list);
        self.ca.deny = list.clone();
        self.ca.lists.insert(list.number, list);
        self.publish();
    }

    pub fn set_rules(&mut self, rules: Rules) {
        let said = format!("CA: policy {rules:?}");
        self.say(|| said);
        self.ca.rules = Arc::new(rules);
        self.publish();
    }

    pub fn node_list(&self) -> Vec<NodeInfo> {
        self.nodes
            .iter()
            .map(|node| NodeInfo {
                id: node.id.clone(),
                name: node.name.clone(),
                addresses: vec![underlay(node.index)],
                prefixes: node.prefixes.clone(),
            })
            .collect()
    }

    /// An agent asks for a proof SVID, now or at its half life, until it has one.
    pub fn issue(&mut self, index: usize, life: u64, identity: Identity) {
        let (at, lifetime) = (self.true_wall(), self.ca.lifetime);
        let node = &self.nodes[index];
        if node.life != life || node.core.is_none() || !node.runs(&identity) {
            return;
        }
        let again = |identity| Action::Issue(index, life, identity);
        if !self.ca.reach[index] || self.ca.revoked(&identity) {
            return self.later(Duration::from_secs(5), again(identity));
        }
        let fresh = node.svids.get(&identity).is_some_and(|svid| {
            let certificate = &self.ca.certificates[&serial_of(svid.leaf_hash)];
            certificate.not_after > at + lifetime * 6 / 10
                && certificate.root == self.ca.signing
                && !self.ca.deny.serials.contains(&svid.serial)
        });
        if fresh {
            return;
        }
        let certificate = Certificate {
            serial: self.ca.serial(),
            owner: index,
            identity: identity.clone(),
            not_after: at + lifetime,
            root: self.ca.signing,
        };
        let serial = certificate.serial;
        let ready = LocalIdentity {
            identity: identity.clone(),
            leaf_hash: leaf(serial),
            not_after: certificate.not_after,
            serial: serial.to_be_bytes().to_vec(),
        };
        self.ca.certificates.insert(serial, certificate);
        let node = &mut self.nodes[index];
        node.svids.insert(identity.clone(), ready.clone());
        self.check_keys(index);
        let jitter = self.rng.below(lifetime / 10);
        let half = Duration::from_secs(lifetime / 2 + jitter);
        self.later(half, again(identity));
        self.feed(index, Event::IdentityReady(ready));
    }

    /// Asks soon, as an agent does for a workload that has come.
    pub fn ask(&mut self, index: usize, identity: Identity) {
        let (delay, life) = (self.millis(1, 50), self.nodes[index].life);
        self.later(delay, Action::Issue(index, life, identity));
    }

    /// Every identity again, whatever their SVIDs: whoever has a fresh one gets none.
    pub fn ask_all(&mut self) {
        for index in 0..self.nodes.len() {
            let all: Vec<Identity> = self.nodes[index].svids.keys().cloned().collect();
            for identity in all {
                self.ask(index, identity);
            }
            self.renew_node(index);
        }
    }

    pub fn renew_node(&mut self, index: usize) {
        let (at, lifetime) = (self.true_wall(), self.ca.lifetime);
        let node = &self.nodes[index];
        let fresh = node.svid.not_after > at + lifetime / 2 && node.svid.root == self.ca.signing;
        if fresh || !self.ca.reach[index] || self.ca.deny.nodes.contains(&node.id) {
            return;
        }
        let svid = NodeSvid {
            serial: self.ca.serial(),
            not_after: at + lifetime,
            root: self.ca.signing,
        };
        self.nodes[index].svid = svid;
        let half = Duration::from_secs(lifetime / 2 + 1);
        self.later(half, Action::Sync(index));
    }

    /// The next step of a rotation, if every agent has confirmed the one before.
    pub fn rotate(&mut self) {
        let everybody = |of: &dyn Fn(&super::node::Node) -> bool| self.nodes.iter().all(of);
        let newest = *self.ca.bundle.last().unwrap();
        if self.ca.bundle.len() == 1 {
            self.say(|| format!("CA: root {} is in the bundle", newest + 1));
            self.ca.bundle.insert(newest + 1);
            return self.publish();
        }
        let confirmed = everybody(&|node| node.bundle == self.ca.bundle);
        if self.ca.signing != newest && confirmed {
            self.say(|| format!("CA: root {newest} signs"));
            self.ca.signing = newest;
            return self.ask_all();
        }
        let certificates = &self.ca.certificates;
        let reissued = everybody(&|node| {
            let of_new =
                |svid: &LocalIdentity| certificates[&serial_of(svid.leaf_hash)].root == newest;
            node.svid.root == newest && node.svids.values().all(of_new)
        });
        if self.ca.signing == newest && reissued {
            self.say(|| "CA: the old root is out of the bundle".to_owned());
            self.ca.bundle.retain(|root| *root == newest);
            self.publish();
        }
    }
}
