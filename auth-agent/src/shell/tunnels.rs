//! Which tunnel key belongs to which peer, over restarts of the agent: the running tunnel goes on meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handfast_encrypt::PublicKey;

use crate::core::PeerNumber;
use crate::files::{self, FileError};

/// Keys by peer, kept in the run directory. Public keys only.
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

    pub(super) fn set(&mut self, peer: PeerNumber, key: PublicKey) -> Result<(), FileError> {
        if self.keys.insert(peer, key) == Some(key) {
            return Ok(());
        }
        self.save()
    }

    pub(super) fn remove(&mut self, peer: PeerNumber) -> Result<Option<PublicKey>, FileError> {
        let key = self.keys.remove(&peer);
        if key.is_some() {
            self.save()?;
        }
        Ok(key)
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
