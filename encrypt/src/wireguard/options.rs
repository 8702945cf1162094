//! What a tunnel device can be told before it is made.

use std::net::IpAddr;
use std::path::PathBuf;

use super::DeviceName;
use crate::PrivateKey;

/// Far from the mark bits of kube-proxy (0xC000), Cilium (the low 12) and handfast's own (0x3c).
pub(crate) const DEFAULT_FWMARK: u32 = 0x7250_0000;

/// How the device is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// `hf-wg0` by default.
    pub name: DeviceName,
    /// UDP port, 51872 by default.
    pub port: u16,
    /// Mark of the tunnel's own packets, so that they never enter our routing table; 0x72500000 by default.
    pub fwmark: u32,
    /// The agent's run directory; a daemon's socket and log live in its `wireguard` folder.
    pub run_dir: PathBuf,
    /// Underlay addresses, this node's or its peers', that the MTU is taken from. None: the default route.
    pub underlay: Vec<IpAddr>,
    /// An MTU that overrides the underlay's.
    pub mtu: Option<u32>,
    /// Who is to encrypt.
    pub choice: Choice,
    /// Userspace implementation: a name or a path. None: WG_USERSPACE_IMPLEMENTATION, then wireguard-go.
    pub implementation: Option<PathBuf>,
    /// The port and name of the other device, if this is the second one.
    pub(crate) first: Option<(DeviceName, u16)>,
    /// Seconds between keepalives, for nodes behind a stateful firewall or NAT; none by default.
    pub keepalive: Option<u16>,
    /// The static key of a device that is made; a fresh one by default. One that is there keeps its own.
    pub private_key: Option<PrivateKey>,
}

/// Who is to encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel where it can, else a daemon.
    #[default]
    Auto,
    /// The kernel or an error.
    Kernel,
    /// A daemon.
    Userspace,
}

impl Options {
    /// The defaults, with the agent's run directory.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: DeviceName::first(),
            port: 51872,
            fwmark: DEFAULT_FWMARK,
            run_dir: run_dir.into(),
            underlay: Vec::new(),
            mtu: None,
            choice: Choice::Auto,
            implementation: None,
            first: None,
            keepalive: None,
            private_key: None,
        }
    }

    /// The same on the second device, `hf-wg1`, at the next port: where keys live that are about to take over.
    ///
    /// So that nothing is lost while a static key changes, each node of a pair has a device for the key that leaves
    /// and one for the key that comes, since a device gives a prefix to one peer only. The node whose key changes
    /// makes a new key for its second device; the other one hosts that key on its own second device, under the
    /// static key that it has ([`Self::private_key`]). Both devices receive
    /// ([`crate::WireGuard::receive_beside_another`]); when both nodes are ready, each moves the other's routes over
    /// ([`crate::Routes::set_each`]). A device without peers is detached. The next change goes the other way.
    #[must_use]
    pub fn second(&self) -> Self {
        Self {
            name: self.name.beside(),
            port: self.port.saturating_add(1),
            first: Some((self.name.clone(), self.port)),
            private_key: None,
            ..self.clone()
        }
    }

    /// Those of the other device: the second one's of the first, and the first one's of the second.
    pub(crate) fn beside(&self) -> Self {
        match self.first.clone() {
            None => self.second(),
            Some((name, port)) => Self {
                name,
                port,
                first: None,
                private_key: None,
                ..self.clone()
            },
        }
    }
}
