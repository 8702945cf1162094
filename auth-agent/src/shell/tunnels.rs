//! Which peer's tunnel key is on which tunnel device, over restarts of the agent: the running tunnel goes on
//! meanwhile.
//!
//! There are two places for tunnel devices. At rest one of them has a device; while static keys change, both have,
//! and a peer may be on both: by one its packets go, the other is about to take over or to leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handfast_encrypt::PublicKey;
use serde::{Deserialize, Serialize};

use crate::core::PeerNumber;
use crate::files::{self, FileError};

/// One of the two places for tunnel devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Slot {
    #[default]
    First,
    Second,
}

impl Slot {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// A peer's key on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) slot: Slot,
    key: [u8; 32],
}

impl Place {
    pub(super) const fn new(slot: Slot, key: PublicKey) -> Self {
        let key = *key.as_bytes();
        Self { slot, key }
    }

    pub(super) const fn key(&self) -> PublicKey {
        PublicKey::new(self.key)
    }
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Places {
    /// Where its packets go.
    pub(super) active: Place,
    /// Where they are to go, or went before.
    pub(super) other: Option<Place>,
    /// Whether they are to go there: the newest session's tunnel is the other one, and has yet to take over.
    #[serde(default)]
    pub(super) coming: bool,
}

impl Places {
    /// On one device.
    pub(super) const fn only(active: Place) -> Self {
        Self {
            active,
            other: None,
            coming: false,
        }
    }

    /// Packets go by one; the former one has yet to leave.
    pub(super) const fn moved(active: Place, former: Option<Place>) -> Self {
        Self {
            active,
            other: former,
            coming: false,
        }
    }

    /// The same with another place that is about to take over.
    pub(super) const fn toward(self, next: Place) -> Self {
        Self {
            other: Some(next),
            coming: true,
            ..self
        }
    }

    /// Where what the newest session gave is.
    pub(super) fn newest(&self) -> Place {
        let coming = self.other.filter(|_| self.coming);
        coming.unwrap_or(self.active)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Place> + use<> {
        [Some(self.active), self.other].into_iter().flatten()
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Where new peers go; its device's key is the one that Hello says.
    current: Slot,
    peers: Vec<(PeerNumber, Places)>,
}

/// Places by peer, kept in the run directory. Public keys only. A place is written here before the device has it and
/// removed after the device has lost it: what is not in here is not in a device.
#[derive(Debug)]
pub(super) struct TunnelKeys {
    path: PathBuf,
    current: Slot,
    peers: BTreeMap<PeerNumber, Places>,
}

impl TunnelKeys {
    pub(super) fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("tunnels.json")
    }

    /// Reads what an earlier run of this boot has kept.
    pub(super) fn open(run_dir: &Path) -> Result<Self, FileError> {
        let path = Self::path(run_dir);
        let kept: Kept = files::read_json(&path)?.unwrap_or_default();
        Ok(Self {
            path,
            current: kept.current,
            peers: kept.peers.into_iter().collect(),
        })
    }

    pub(super) const fn current(&self) -> Slot {
        self.current
    }

    pub(super) fn set_current(&mut self, slot: Slot) -> Result<(), FileError> {
        self.current = slot;
        self.save()
    }

    pub(super) fn get(&self, peer: PeerNumber) -> Option<Places> {
        self.peers.get(&peer).copied()
    }

    /// All of them.
    pub(super) const fn all(&self) -> &BTreeMap<PeerNumber, Places> {
        &self.peers
    }

    /// Another peer with this key.
    pub(super) fn holder(&self, key: PublicKey, but: PeerNumber) -> Option<PeerNumber> {
        let mut others = self.peers.iter().filter(|(peer, _)| **peer != but);
        others
            .find(|(_, places)| places.all().any(|place| place.key() == key))
            .map(|(peer, _)| *peer)
    }

    /// Whether any peer is on this device.
    pub(super) fn in_use(&self, slot: Slot) -> bool {
        let mut places = self.peers.values().flat_map(Places::all);
        places.any(|place| place.slot == slot)
    }

    pub(super) fn set(&mut self, peer: PeerNumber, places: Places) -> Result<(), FileError> {
        if self.get(peer) == Some(places) {
            return Ok(());
        }
        let former = self.peers.insert(peer, places);
        self.save().inspect_err(|_| {
            match former {
                Some(former) => self.peers.insert(peer, former),
                None => self.peers.remove(&peer),
            };
        })
    }

    pub(super) fn remove(&mut self, peer: PeerNumber) -> Result<(), FileError> {
        if self.peers.remove(&peer).is_none() {
            return Ok(());
        }
        self.save()
    }

    fn save(&self) -> Result<(), FileError> {
        let kept = Kept {
            current: self.current,
            peers: self.peers.iter().map(|(peer, at)| (*peer, *at)).collect(),
        };
        files::write_volatile_json(&self.path, &kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_every_peer_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (PublicKey::new([1; 32]), PublicKey::new([2; 32]));
        let former = Place::new(Slot::First, old);
        let places = Places::moved(Place::new(Slot::Second, new), Some(former));
        let mut keys = TunnelKeys::open(dir.path()).unwrap();
        keys.set(PeerNumber(7), places).unwrap();
        keys.set_current(Slot::Second).unwrap();
        let again = TunnelKeys::open(dir.path()).unwrap();
        assert_eq!(again.get(PeerNumber(7)), Some(places));
        assert_eq!(again.current(), Slot::Second);
        assert!(again.in_use(Slot::First), "until it has left");
        assert_eq!(again.holder(old, PeerNumber(8)), Some(PeerNumber(7)));
        assert_eq!(again.holder(old, PeerNumber(7)), None);
    }
}
