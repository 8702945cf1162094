//! Which tunnel key belongs to which peer, over restarts of the agent: the running tunnel goes on meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handfast_encrypt::PublicKey;

use crate::core::PeerNumber;
use crate::files::{self, FileError};

/// Keys by peer, kept in the run directory. Public keys only. A key is written here before the device has it and
/// removed after the device has lost it: what is not in here is not in the device.
#[derive(Debug)]
pub(super) struct TunnelKeys {
    path: PathBuf,
    keys: BTreeMap<PeerNumber, PublicKey>,
}

impl TunnelKeys {
    pub(super) fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("tunnels.json")
    }

    /// Reads what an earlier run of this boot has kept.
    pub(super) fn open(run_dir: &Path) -> Result<Self, FileError> {
        let path = Self::path(run_dir);
        let kept: Vec<(PeerNumber, [u8; 32])> = files::read_json(&path)?.unwrap_or_default();
        let keys = kept
            .into_iter()
            .map(|(peer, key)| (peer, PublicKey::new(key)))
            .collect();
        Ok(Self { path, keys })
    }

    pub(super) fn get(&self, peer: PeerNumber) -> Option<PublicKey> {
        self.keys.get(&peer).copied()
    }

    /// All of them.
    pub(super) fn all(&self) -> &BTreeMap<PeerNumber, PublicKey> {
        &self.keys
    }

    /// Another peer with this key.
    pub(super) fn holder(&self, key: PublicKey, but: PeerNumber) -> Option<PeerNumber> {
        let mut holders = self.keys.iter().filter(|(peer, _)| **peer != but);
        holders
            .find(|(_, held)| **held == key)
            .map(|(peer, _)| *peer)
    }

    pub(super) fn set(&mut self, peer: PeerNumber, key: PublicKey) -> Result<(), FileError> {
        if self.get(peer) == Some(key) {
            return Ok(());
        }
        self.keys.insert(peer, key);
        self.save().inspect_err(|_| {
            self.keys.remove(&peer);
        })
    }

    pub(super) fn remove(&mut self, peer: PeerNumber) -> Result<(), FileError> {
        if self.keys.remove(&peer).is_none() {
            return Ok(());
        }
        self.save()
    }

    fn save(&self) -> Result<(), FileError> {
        let kept: Vec<(PeerNumber, [u8; 32])> = self
            .keys
            .iter()
            .map(|(peer, key)| (*peer, *key.as_bytes()))
            .collect();
        files::write_volatile_json(&self.path, &kept)
    }
}
