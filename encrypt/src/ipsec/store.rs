//! What has to outlive the agent, and not the boot: this node's name toward its peers, and which of the
//! kernel's entries are whose. The name's private half encrypts nothing: whoever reads it could claim the name.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::kernel;
use crate::{Error, PrivateKey, PublicKey};

/// The most that is read: some thousand peers with some dozen prefixes each.
const LARGEST: u64 = 16 << 20;

/// The file, and what is in it.
pub(super) struct Store {
    path: PathBuf,
    pub(super) kept: Kept,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Its public half is told to peers in Hello, and part of every key's derivation. New in every boot.
    #[serde(with = "crate::keys::kept")]
    pub(super) name: PrivateKey,
    pub(super) peers: Vec<KeptPeer>,
}

/// A peer that has entries in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptPeer {
    pub(super) key: [u8; 32],
    pub(super) number: u32,
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) prefixes: Vec<IpNet>,
}

impl KeptPeer {
    pub(super) const fn public_key(&self) -> PublicKey {
        PublicKey::new(self.key)
    }

    pub(super) const fn path(&self) -> kernel::Path {
        kernel::Path {
            local: self.local,
            remote: self.remote,
            number: self.number,
        }
    }
}

impl Store {
    /// Reads what an earlier agent of this boot has kept, or begins anew.
    pub(super) fn open(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join("ipsec.json");
        let kept = match read(&path)? {
            Some(kept) => kept,
            None => Kept {
                name: PrivateKey::generate(),
                peers: Vec::new(),
            },
        };
        Ok(Self { path, kept })
    }

    /// Keeps a peer, before anything of it is in the kernel.
    pub(super) fn set(&mut self, peer: KeptPeer) -> Result<(), Error> {
        if self.kept.peers.contains(&peer) {
            return Ok(());
        }
        self.kept.peers.retain(|kept| kept.key != peer.key);
        self.kept.peers.push(peer);
        self.save()
    }

    /// Forgets a peer, when nothing of it is in the kernel any more.
    pub(super) fn remove(&mut self, key: PublicKey) -> Result<(), Error> {
        self.kept.peers.retain(|kept| kept.public_key() != key);
        self.save()
    }

    /// Takes the file away.
    pub(super) fn delete(run_dir: &Path) -> Result<(), Error> {
        match fs::remove_file(run_dir.join("ipsec.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("removing ipsec.json")(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        let doing = || Error::io(format!("writing {}", self.path.display()));
        let text = serde_json::to_vec(&self.kept).map_err(|error| doing()(error.into()))?;
        let text = Zeroizing::new(text);
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(doing())?;
        }
        let new = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&new, &self.path));
        written.map_err(doing())
    }
}

fn read(path: &Path) -> Result<Option<Kept>, Error> {
    let doing = || Error::io(format!("reading {}", path.display()));
    let length = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(doing()(error)),
    };
    if length > LARGEST {
        return Err(doing()(io::Error::other("too large to be ours")));
    }
    let text = Zeroizing::new(fs::read(path).map_err(doing())?);
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| doing()(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: u8, number: u32) -> KeptPeer {
        KeptPeer {
            key: [key; 32],
            number,
            local: "192.0.2.1".parse().unwrap(),
            remote: "192.0.2.2".parse().unwrap(),
            prefixes: vec!["10.2.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn a_successor_finds_the_name_and_the_peers() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.set(peer(1, 5)).unwrap();
        store.set(peer(2, 6)).unwrap();
        store.set(peer(1, 7)).unwrap();
        store.remove(PublicKey::new([2; 32])).unwrap();
        let again = Store::open(folder.path()).unwrap();
        assert_eq!(again.kept.name.public_key(), store.kept.name.public_key());
        assert_eq!(again.kept.peers, [peer(1, 7)]);
        Store::delete(folder.path()).unwrap();
        Store::delete(folder.path()).unwrap();
        let anew = Store::open(folder.path()).unwrap();
        assert_ne!(anew.kept.name.public_key(), store.kept.name.public_key());
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipsec.json");
        fs::write(&path, "{\"name\": []}").unwrap();
        assert!(Store::open(folder.path()).is_err());
        assert!(path.exists());
    }
}
