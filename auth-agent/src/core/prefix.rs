//! Which node an address belongs to: the CA's list as a hint, the session's certificate as the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::event::{NodeInfo, PeerNode};
use super::types::PeerNumber;
use super::{Alarm, CloseReason, Core, Effect};

impl Core {
    pub(super) fn nodes(&mut self, nodes: Vec<NodeInfo>) {
        let now = self.now.boot;
        let mut listed = BTreeSet::new();
        for node in nodes {
            if node.id == self.local.id {
                continue;
            }
            let Some(number) = self.ensure_peer(&node.id, &node.name) else {
                continue;
            };
            listed.insert(number);
            if let Some(peer) = self.peer_mut(number) {
                peer.name.clone_from(&node.name);
                peer.hint = Some(node);
                // Whatever failed before, this may be where it works.
                peer.next_dial = peer.next_dial.min(now);
            }
        }
        let all: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in all {
            if let Some(peer) = self.peer_mut(number).filter(|_| !listed.contains(&number)) {
                peer.hint = None;
            }
            self.maybe_dial(number);
        }
        self.write_prefixes();
    }

    /// The certificate's prefixes are ours, or those of a peer with an assignment at least as new.
    pub(super) fn prefix_conflict(&mut self, node: &PeerNode) -> Result<(), CloseReason> {
        let ours = overlap(&node.prefixes, &self.local.prefixes);
        let holder = self.peers.values().find(|peer| {
            peer.id != node.id
                && peer.standing.is_some()
                && peer.assignment >= node.assignment
                && overlap(&peer.signed, &node.prefixes)
        });
        let holder = match holder {
            _ if ours => self.local.id.clone(),
            Some(holder) => holder.id.clone(),
            None => return Ok(()),
        };
        self.alarm(Alarm::PrefixConflict {
            id: node.id.clone(),
            holder,
        });
        Err(CloseReason::PrefixConflict)
    }

    /// A session begins: its prefixes are the peer's from now on, and nobody else's. What was announced outside
    /// of them goes before any tunnel changes.
    pub(super) fn take_prefixes(&mut self, number: PeerNumber, node: &PeerNode) {
        let losers: Vec<PeerNumber> = self
            .peers
            .values()
            .filter(|peer| {
                peer.number != number
                    && peer.standing.is_some()
                    && overlap(&peer.signed, &node.prefixes)
            })
            .map(|peer| peer.number)
            .collect();
        for loser in losers {
            self.end(loser, CloseReason::PrefixConflict);
        }
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.signed.clone_from(&node.prefixes);
        peer.name.clone_from(&node.name);
        peer.assignment = node.assignment;
        peer.serial.clone_from(&node.serial);
        let outside: Vec<IpAddr> = peer
            .remotes
            .keys()
            .filter(|address| !contains(&node.prefixes, **address))
            .copied()
            .collect();
        for address in outside {
            self.remove_remote(number, address);
        }
        self.write_prefixes_of(Some((number, &node.prefixes)));
    }

    /// Brings the kernel's prefixes in line.
    pub(super) fn write_prefixes(&mut self) {
        self.write_prefixes_of(None);
    }

    fn write_prefixes_of(&mut self, coming: Option<(PeerNumber, &[IpNet])>) {
        let mut desired = BTreeMap::new();
        let (stands, listed): (Vec<_>, Vec<_>) = self
            .peers
            .values()
            .partition(|peer| peer.standing.is_some() || peer.live.is_some());
        for peer in listed.into_iter().chain(stands) {
            desired.extend(peer.prefixes().iter().map(|p| (p.trunc(), peer.number)));
        }
        if let Some((number, prefixes)) = coming {
            desired.extend(prefixes.iter().map(|prefix| (prefix.trunc(), number)));
        }
        let own = self.local.prefixes.iter();
        desired.extend(own.map(|prefix| (prefix.trunc(), PeerNumber::LOCAL)));
        let old = std::mem::replace(&mut self.prefixes, desired.clone());
        for (prefix, peer) in &desired {
            if old.get(prefix) != Some(peer) {
                self.emit(Effect::SetPrefix {
                    prefix: *prefix,
                    peer: *peer,
                });
            }
        }
        for prefix in old.keys().filter(|prefix| !desired.contains_key(*prefix)) {
            self.emit(Effect::RemovePrefix { prefix: *prefix });
        }
    }

    /// Every prefix that the kernel is to have, and whose it is.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpNet, PeerNumber)> {
        self.prefixes.iter().map(|(prefix, peer)| (*prefix, *peer))
    }

    /// The node whose prefix an address lies in; the longest counts.
    pub(super) fn peer_of(&self, address: IpAddr) -> Option<PeerNumber> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (0..=bits).rev().find_map(|length| {
            let prefix = IpNet::new(address, length).ok()?.trunc();
            self.prefixes.get(&prefix).copied()
        })
    }

    /// True for an address that this node may announce.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        contains(&self.local.prefixes, address)
    }
}

/// True if one of the prefixes has the address.
pub(super) fn contains(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&address))
}

fn overlap(some: &[IpNet], others: &[IpNet]) -> bool {
    some.iter().any(|one| {
        others
            .iter()
            .any(|other| one.contains(other) || other.contains(one))
    })
}
