//! What changes from one snapshot to the next: a step changes little of all that a node with thousands of workloads has
//! to remember.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::snapshot::{
    AnnouncedSnapshot, FootingSnapshot, IdentitySnapshot, PeerSnapshot, RemoteSnapshot, Removals,
    Snapshot,
};
use super::types::{IdentityNumber, PeerNumber};

/// From one snapshot of a run to a later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    next_identity: u32,
    next_peer: u32,
    generation: u64,
    /// Those of the later snapshot: they are of one step.
    removals: Removals,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rests: Option<Vec<(IpAddr, Duration, Option<IdentityNumber>)>>,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    identities: Changes<IdentitySnapshot>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<PeerDelta>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers_gone: Vec<PeerNumber>,
}

/// A change of a peer that the snapshot does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it changes peer {0}, which is not there")]
pub struct UnknownPeer(PeerNumber);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PeerDelta {
    number: PeerNumber,
    /// Everything but the lists, if anything of it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Box<PeerSnapshot>>,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    announced: Changes<AnnouncedSnapshot>,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    remotes: Changes<RemoteSnapshot>,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    rests_on: Changes<FootingSnapshot>,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    seen: Changes<(IpAddr, u64)>,
}

/// Of a list in the order of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changes<T> {
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    set: Vec<T>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    gone: Vec<T>,
}

/// An item of a list that has each key once.
trait Keyed: Clone + PartialEq {
    type Key<'a>: Ord
    where
        Self: 'a;

    fn key(&self) -> Self::Key<'_>;

    fn order(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self {
            set: Vec::new(),
            gone: Vec::new(),
        }
    }
}

impl<T> Changes<T> {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }
}

impl<T: Keyed> Changes<T> {
    fn between(old: &Arc<Vec<T>>, new: &Arc<Vec<T>>) -> Self {
        let mut changes = Self::default();
        // Made anew only if something has touched it.
        if Arc::ptr_eq(old, new) {
            return changes;
        }
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        while let Some((was, is)) = next_pair(&mut old, &mut new, T::order) {
            match (was, is) {
                (Some(was), None) => changes.gone.push(was.clone()),
                (was, Some(is)) if was != Some(is) => changes.set.push(is.clone()),
                _ => {}
            }
        }
        changes
    }

    fn apply(self, list: &mut Arc<Vec<T>>) {
        if self.is_empty() {
            return;
        }
        let list = Arc::make_mut(list);
        for gone in self.gone {
            if let Ok(at) = list.binary_search_by(|item| item.order(&gone)) {
                list.remove(at);
            }
        }
        for item in self.set {
            let found = list.binary_search_by(|there| there.order(&item));
            match found.map(|at| list.get_mut(at)) {
                Ok(Some(there)) => *there = item,
                Ok(None) => {}
                Err(at) => list.insert(at, item),
            }
        }
    }
}

/// The next item of either list, or of both if they have the same key.
fn next_pair<'a, T>(
    old: &mut std::iter::Peekable<std::slice::Iter<'a, T>>,
    new: &mut std::iter::Peekable<std::slice::Iter<'a, T>>,
    order: impl Fn(&T, &T) -> Ordering,
) -> Option<(Option<&'a T>, Option<&'a T>)> {
    let first = match (old.peek(), new.peek()) {
        (None, None) => return None,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(was), Some(is)) => order(was, is),
    };
    Some(match first {
        Ordering::Less => (old.next(), None),
        Ordering::Greater => (None, new.next()),
        Ordering::Equal => (old.next(), new.next()),
    })
}

impl Snapshot {
    /// What has changed since an earlier one; `None` if that is of another node, boot or format.
    #[must_use]
    pub fn since(&self, old: &Self) -> Option<Delta> {
        let whose = |of: &Self| (of.version, of.boot_id);
        if whose(self) != whose(old) || self.node != old.node {
            return None;
        }
        let mut peers = Vec::new();
        let mut peers_gone = Vec::new();
        let order = |one: &Arc<PeerSnapshot>, two: &Arc<PeerSnapshot>| one.number.cmp(&two.number);
        let (mut before, mut now) = (old.peers.iter().peekable(), self.peers.iter().peekable());
        while let Some((was, is)) = next_pair(&mut before, &mut now, order) {
            match (was, is) {
                (Some(was), None) => peers_gone.push(was.number),
                // Made anew only if something has touched it.
                (Some(was), Some(is)) if Arc::ptr_eq(was, is) => {}
                (was, Some(is)) => peers.extend(PeerDelta::between(was.map(Arc::as_ref), is)),
                (None, None) => {}
            }
        }
        Some(Delta {
            next_identity: self.next_identity,
            next_peer: self.next_peer,
            generation: self.generation,
            removals: self.removals.clone(),
            rests: (self.rests != old.rests).then(|| self.rests.clone()),
            identities: Changes::between(&old.identities, &self.identities),
            peers,
            peers_gone,
        })
    }

    /// Makes it the later one.
    ///
    /// # Errors
    /// [`UnknownPeer`] if the change is not of this snapshot.
    pub fn apply(&mut self, delta: Delta) -> Result<(), UnknownPeer> {
        self.next_identity = delta.next_identity;
        self.next_peer = delta.next_peer;
        self.generation = delta.generation;
        self.removals = delta.removals;
        if let Some(rests) = delta.rests {
            self.rests = rests;
        }
        delta.identities.apply(&mut self.identities);
        self.peers
            .retain(|peer| !delta.peers_gone.contains(&peer.number));
        for change in delta.peers {
            let number = change.number;
            let found = self.peers.binary_search_by_key(&number, |peer| peer.number);
            if let Err(at) = found {
                let head = change.head.as_deref().ok_or(UnknownPeer(number))?;
                self.peers.insert(at, Arc::new(head.clone()));
            }
            if let Some(peer) = self.peers.get_mut(found.unwrap_or_else(|at| at)) {
                change.apply(Arc::make_mut(peer));
            }
        }
        Ok(())
    }
}

impl PeerDelta {
    fn between(old: Option<&PeerSnapshot>, new: &PeerSnapshot) -> Option<Self> {
        let is = head(new);
        let same = old.is_some_and(|old| head(old) == is);
        // One that is new had nothing in its lists, as a head has.
        let was = old.unwrap_or(&is);
        let delta = Self {
            number: new.number,
            announced: Changes::between(&was.announced, &new.announced),
            remotes: Changes::between(&was.remotes, &new.remotes),
            rests_on: Changes::between(&was.rests_on, &new.rests_on),
            seen: Changes::between(&was.seen, &new.seen),
            head: (!same).then(|| Box::new(is)),
        };
        let nothing = delta.head.is_none()
            && delta.announced.is_empty()
            && delta.remotes.is_empty()
            && delta.rests_on.is_empty()
            && delta.seen.is_empty();
        (!nothing).then_some(delta)
    }

    fn apply(self, peer: &mut PeerSnapshot) {
        if let Some(head) = self.head {
            *peer = PeerSnapshot {
                announced: std::mem::take(&mut peer.announced),
                remotes: std::mem::take(&mut peer.remotes),
                rests_on: std::mem::take(&mut peer.rests_on),
                seen: std::mem::take(&mut peer.seen),
                ..*head
            };
            peer.number = self.number;
        }
        self.announced.apply(&mut peer.announced);
        self.remotes.apply(&mut peer.remotes);
        self.rests_on.apply(&mut peer.rests_on);
        self.seen.apply(&mut peer.seen);
    }
}

/// Everything but the lists.
fn head(of: &PeerSnapshot) -> PeerSnapshot {
    PeerSnapshot {
        number: of.number,
        id: of.id.clone(),
        name: of.name.clone(),
        prefixes: of.prefixes.clone(),
        assignment: of.assignment,
        serial: of.serial.clone(),
        tunnel_key: of.tunnel_key,
        boot_ids: of.boot_ids.clone(),
        last_epoch: of.last_epoch,
        lineage: of.lineage,
        session: of.session,
        announced: Arc::default(),
        remotes: Arc::default(),
        rests_on: Arc::default(),
        seen: Arc::default(),
        seen_floor: of.seen_floor,
    }
}

impl Keyed for IdentitySnapshot {
    type Key<'a> = IdentityNumber;

    fn key(&self) -> IdentityNumber {
        self.number
    }
}

impl Keyed for AnnouncedSnapshot {
    type Key<'a> = IpAddr;

    fn key(&self) -> IpAddr {
        self.address
    }
}

impl Keyed for RemoteSnapshot {
    type Key<'a> = IpAddr;

    fn key(&self) -> IpAddr {
        self.address
    }
}

impl Keyed for FootingSnapshot {
    type Key<'a> = (IdentityNumber, &'a [u8], bool);

    fn key(&self) -> Self::Key<'_> {
        (self.identity, &self.serial, self.ours)
    }
}

/// An address and the highest generation of it.
impl Keyed for (IpAddr, u64) {
    type Key<'a> = IpAddr;

    fn key(&self) -> IpAddr {
        self.0
    }
}
