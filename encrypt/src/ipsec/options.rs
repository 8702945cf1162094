//! What IPsec can be told before it is set up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::DeviceName;
use crate::nat::Marks;

/// How IPsec is to be.
#[derive(Debug, Clone)]
pub struct IpsecOptions {
    /// `hf-xfrm0` by default.
    pub name: DeviceName,
    /// XFRM interface id of the device, and of everything of ours in the kernel's tables; 7250 by default.
    pub interface: u32,
    /// Mark of the tunnel's own packets, as in [`crate::Options::fwmark`].
    pub fwmark: u32,
    /// The agent's run directory: what has to outlive the agent, and not the boot, is kept there.
    pub run_dir: PathBuf,
    /// Underlay addresses, this node's or its peers', that the MTU is taken from. None: the default route.
    pub underlay: Vec<IpAddr>,
    /// An MTU that overrides the underlay's.
    pub mtu: Option<u32>,
    /// The gates' mark bits: packets that were held are known by them.
    pub marks: Marks,
    /// What a key may carry, and how long.
    pub life: Lifetime,
    /// How often the kernel is asked how keys are used; every ten seconds by default.
    pub look: Duration,
}

/// The end of a key's life. The kernel enforces it; keys change before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Age at which keys change, if the peer takes part. One hour by default.
    pub rekey: Duration,
    /// Age at which the kernel drops a key, in seconds: longer than a session can be. Six hours by default.
    pub seconds: u64,
    /// Packets after which the kernel drops a key; keys change at half of it. 2^36 by default: far below the end
    /// of sequence numbers (2^64).
    pub packets: u64,
    /// Bytes likewise; 2^44 by default: 2^40 blocks leave an attacker who tells AES-GCM from noise a chance
    /// below 2^-47.
    pub bytes: u64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self {
            rekey: Duration::from_secs(3600),
            seconds: 6 * 3600,
            packets: 1 << 36,
            bytes: 1 << 44,
        }
    }
}

impl IpsecOptions {
    /// The defaults, with the agent's run directory.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: DeviceName::ipsec(),
            interface: 7250,
            fwmark: crate::wireguard::DEFAULT_FWMARK,
            run_dir: run_dir.into(),
            underlay: Vec::new(),
            mtu: None,
            marks: Marks::default(),
            life: Lifetime::default(),
            look: Duration::from_secs(10),
        }
    }
}
