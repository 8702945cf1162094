//! One way to read and change a device, in the kernel or in a daemon.

use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::DeviceName;
use super::daemon::Daemon;
use super::kernel;
use crate::{Backend, Error, Peer, PresharedKey, PrivateKey, PublicKey};

/// A device that can be told things.
pub(super) enum Control {
    Kernel(DeviceName),
    Userspace(Daemon),
}

/// What to change; what is not named stays.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) port: Option<u16>,
    pub(super) fwmark: Option<u32>,
    pub(super) replace_peers: bool,
    pub(super) peers: Vec<PeerChange>,
}

#[derive(Debug)]
pub(super) enum PeerChange {
    Set {
        peer: Peer,
        keepalive: Option<u16>,
        allowed: Allowed,
    },
    Remove(PublicKey),
}

/// How allowed prefixes are brought to what is wanted. Replacing empties them for a moment, in which packets
/// are lost: done only when one has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    Keep,
    Add,
    Replace,
}

impl PeerChange {
    pub(super) fn prefix_count(&self) -> usize {
        match self {
            Self::Set { peer, .. } => peer.prefixes.len(),
            Self::Remove(_) => 0,
        }
    }
}

/// A device as it reports itself.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) private_key: Option<PrivateKey>,
    pub(super) port: u16,
    pub(super) fwmark: u32,
    pub(super) peers: Vec<PeerReading>,
}

#[derive(Debug)]
pub(super) struct PeerReading {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) prefixes: Vec<IpNet>,
    pub(super) last_handshake: Option<SystemTime>,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl PeerReading {
    pub(super) fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            prefixes: Vec::new(),
            last_handshake: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }
}

impl Control {
    pub(super) fn backend(&self) -> Backend {
        match self {
            Self::Kernel(_) => Backend::Kernel,
            Self::Userspace(_) => Backend::Userspace,
        }
    }

    pub(super) async fn read(&self) -> Result<Reading, Error> {
        match self {
            // Netlink answers at once; a thread of its own could be in another network namespace.
            Self::Kernel(name) => kernel::read(name),
            Self::Userspace(daemon) => daemon.read().await,
        }
    }

    pub(super) async fn apply(&self, change: &Change) -> Result<(), Error> {
        match self {
            Self::Kernel(name) => kernel::apply(name, change),
            Self::Userspace(daemon) => daemon.apply(change).await,
        }
    }
}
