//! What a tunnel device can be told before it is made.

use std::net::IpAddr;
use std::path::PathBuf;

use super::DeviceName;

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
    /// Seconds between keepalives, for nodes behind a stateful firewall or NAT; none by default.
    pub keepalive: Option<u16>,
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
            keepalive: None,
        }
    }

    /// The same on the second device, `hf-wg1`, at the next port: where a new static key lives beside the old one.
    ///
    /// So that nothing is lost while static keys change, both nodes of a pair open their second device, install
    /// each other there (with a preshared key for the new pair of keys), have both devices receive
    /// ([`crate::WireGuard::receive_beside_another`]), and say that they are ready. Then each moves the other's
    /// routes over ([`crate::Routes::set_each`]). When all peers have moved, the first device is detached. The
    /// next change goes the other way.
    pub fn second(&self) -> Self {
        Self {
            name: DeviceName::second(),
            port: self.port.saturating_add(1),
            ..self.clone()
        }
    }
}
