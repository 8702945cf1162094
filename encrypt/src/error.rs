//! What can go wrong with a tunnel, and what to do about it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::PublicKey;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither the kernel nor a daemon can do WireGuard.
    #[error(
        "no WireGuard: this kernel has none and no {wanted} was found ({looked}). Install one \
         (Debian and Ubuntu: apt-get install wireguard-go), or name it in WG_USERSPACE_IMPLEMENTATION"
    )]
    NoWireGuard {
        /// The program looked for.
        wanted: String,
        /// Where.
        looked: String,
    },
    /// The kernel was asked for by name, and has no WireGuard.
    #[error(
        "this kernel has no WireGuard (module `wireguard`); load or install it, or use a userspace implementation"
    )]
    NoKernelWireGuard,
    /// The kernel lacks a part of IPsec.
    #[error("this kernel lacks {0}, which IPsec needs; load or install it, or use WireGuard")]
    NoIpsec(&'static str),
    /// The association's index is in use; the keys of this session are burned.
    #[error("security parameters index {0:#010x} is in use already; a new session gives others")]
    SpiTaken(u32),
    /// The same secret would give the same keys again.
    #[error("this session's keys were installed before; only a new session gives new ones")]
    SecretSpent,
    /// Every number of a session has been used.
    #[error("this session has no keys left; a new session gives new ones")]
    KeysExhausted,
    /// The cryptographic library refused.
    #[error("keys could not be derived")]
    Derivation,
    /// Two peers cannot have one number: the kernel could not tell their packets apart.
    #[error("peer number {number} belongs to peer {holder} already")]
    NumberTaken {
        /// The number.
        number: u32,
        /// Who has it.
        holder: PublicKey,
    },
    /// An implementation that cannot do what a session needs.
    #[error(
        "{} cannot change a peer in place, which renewing a session needs; use wireguard-go", .0.display()
    )]
    UnfitImplementation(PathBuf),
    /// The daemon needs /dev/net/tun.
    #[error("cannot open /dev/net/tun, which a userspace WireGuard needs: {0}")]
    NoTun(io::Error),
    /// The daemon did not come up.
    #[error("{} did not start: {reason}", program.display())]
    DaemonFailed {
        /// The program.
        program: PathBuf,
        /// Its own last words, or what was seen.
        reason: String,
    },
    /// The device's name is taken by something that is not ours.
    #[error(
        "device {name} exists and is not handfast's ({found}); remove it (ip link del {name}) or choose another name"
    )]
    ForeignDevice {
        /// The interface.
        name: String,
        /// What it is.
        found: String,
    },
    /// A name that the kernel would not take.
    #[error("{0:?} is no interface name: 1 to 15 bytes without `/` and spaces")]
    DeviceName(String),
    /// The UDP port is in use.
    #[error("UDP port {0} is in use by another program; choose another tunnel port")]
    PortInUse(u16),
    /// The underlay is too narrow for IPv6 inside the tunnel.
    #[error(
        "underlay device {device} has an MTU of {mtu}: a tunnel needs {need} (1280 for IPv6 inside, 80 around it); raise it"
    )]
    MtuTooSmall {
        /// The underlay's device.
        device: String,
        /// Its MTU.
        mtu: u32,
        /// What it would have to be.
        need: u32,
    },
    /// The underlay cannot be found.
    #[error(
        "no route to the underlay address {0}: this host needs one (ip route get {0}), or the address is wrong where the CA has it"
    )]
    NoRoute(IpAddr),
    /// Peer not in the device.
    #[error("the tunnel has no peer {0}")]
    UnknownPeer(PublicKey),
    /// Two peers cannot have one prefix: the device would silently move it.
    #[error("prefix {prefix} belongs to peer {holder} already")]
    PrefixTaken {
        /// The prefix.
        prefix: ipnet::IpNet,
        /// Who has it.
        holder: PublicKey,
    },
    /// The device is gone and not back yet.
    #[error("tunnel device {0} is gone; it is being restored")]
    DeviceLost(String),
    /// The device refused a setting.
    #[error("the WireGuard device refused a setting: {0}")]
    Refused(io::Error),
    /// The daemon said something that is not its protocol.
    #[error("WireGuard control socket: {0}")]
    Protocol(String),
    /// A rule or table of the same number that somebody else made.
    #[error(
        "{what} is in use by something else: {found}; remove that (ip route, ip rule), or choose another in the settings"
    )]
    Occupied {
        /// The table or priority.
        what: String,
        /// What is there.
        found: String,
    },
    /// The `nft` program is missing.
    #[error("no nft program found; install nftables (apt-get install nftables)")]
    NoNft,
    /// nftables refused our chain.
    #[error("nft: {0}")]
    Nft(String),
    /// The kernel refused a netlink request.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was asked.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Files, sockets and processes.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn netlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Netlink {
            doing,
            source: netlink_errno(error),
        }
    }
}

/// The system's error number behind a netlink answer.
pub(crate) fn netlink_errno(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
