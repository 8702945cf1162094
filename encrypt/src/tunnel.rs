//! What the agent knows of a tunnel, whichever kind it is.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{Error, PresharedKey, PublicKey};

/// One tunnel device with its peers. All calls may be repeated: they set, they do not add.
pub trait Tunnel: Send + Sync {
    /// This node's key, for Hello and for the exporter's context. Read back from an adopted device.
    fn public_key(&self) -> PublicKey;

    /// What our tunnel key and another's give together, for both nodes to show that they hold theirs. `None` for a
    /// key that cannot be anybody's.
    fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>>;

    /// The UDP port the device listens on, for Hello.
    fn port(&self) -> u16;

    /// The device as it is now; another one (same name, other index) after [`Health::Replaced`].
    fn device(&self) -> Device;

    /// Brings the device up. Call it when the gates are attached: before, nothing may pass.
    fn up(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes the peer exactly what is given. A peer that is there keeps its running keys: the preshared key is
    /// set in place, and allowed prefixes that do not change are not touched.
    fn install(&self, peer: Peer) -> BoxFuture<'_, Result<(), Error>>;

    /// Both nodes have installed what this session gave them: from now on packets leave under its keys. To be
    /// called when the session has taken over; before, a peer that was there goes on under the keys of the
    /// session before. WireGuard's handshake sees to it by itself.
    fn activate(&self, _peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Opens the device beside this one, as [`crate::Options::second`] explains; it is down, like every new one.
    /// `None` from a kind that changes its keys in place ([`Self::rotate`]).
    fn beside(&self, _key: StaticKey) -> BoxFuture<'_, Result<Option<Arc<dyn Tunnel>>, Error>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// A peer as it was installed, to be installed on the device beside this one; `None` where nothing moves.
    fn installed(&self, _peer: PublicKey) -> BoxFuture<'_, Option<Peer>> {
        Box::pin(std::future::ready(None))
    }

    /// Whether the two devices agree upon keys by themselves, in a handshake that one of them begins (WireGuard). Where
    /// both begin at once, each undoes what the other did, and both try again only five seconds later.
    fn shakes_hands(&self) -> bool {
        false
    }

    /// Has the device speak to a peer at once, instead of with the first packet: it says where it can be reached.
    fn rouse(&self, _peer: PublicKey) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Changes the keys of all peers within their sessions, make before break, where the kind can. Says which peers
    /// cannot follow: they need new sessions.
    fn rotate(&self) -> BoxFuture<'_, Result<Vec<PublicKey>, Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Peers whose keys only a new session can change. To be asked every minute or so.
    fn stuck(&self) -> BoxFuture<'_, Result<Vec<PublicKey>, Error>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Removes the peer and its running keys. Cut the peer's epoch first (PROTOCOL.md, Tunnel keys 4).
    fn remove(&self, peer: PublicKey) -> BoxFuture<'_, Result<(), Error>>;

    /// The device and its peers, read from the device.
    fn status(&self) -> BoxFuture<'_, Result<Status, Error>>;

    /// What happens to the device; the first value is the state at open.
    fn watch(&self) -> watch::Receiver<Health>;

    /// Takes the device and its daemon away. The tunnel is of no use afterwards.
    fn detach(&self) -> BoxFuture<'_, Result<(), Error>>;
}

/// The static key of a second device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaticKey {
    /// A new one: this node's key changes.
    Fresh,
    /// The first device's: a peer's key changes, and this one is to be reached by both.
    Same,
}

/// A peer node as the session and its node SVID describe it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The number by which this node's gates know the peer; not 0, and never another's in this boot.
    pub number: u32,
    /// The peer's tunnel key, from its Hello.
    pub public_key: PublicKey,
    /// From the session's exporter.
    pub preshared_key: PresharedKey,
    /// Where its tunnel listens: a signed underlay address and the port of its Hello.
    pub endpoint: SocketAddr,
    /// Exactly the prefixes that the peer's node SVID carries.
    pub prefixes: Vec<IpNet>,
}

/// A tunnel device of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Name of the interface, such as `hf-wg0`.
    pub name: String,
    /// Interface index, what gates are attached to.
    pub index: u32,
    /// Largest packet it takes, in bytes; give it to workloads' routes too.
    pub mtu: u32,
    /// Who does the work.
    pub backend: Backend,
    /// Whether it was there already when this agent started.
    pub adopted: bool,
}

/// Who encrypts, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's own WireGuard.
    Kernel,
    /// A daemon, such as wireguard-go.
    Userspace,
    /// The kernel's ESP.
    Ipsec,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
            Self::Ipsec => "ipsec",
        })
    }
}

/// State of the device, as [`Tunnel::watch`] reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Everything is as it was set.
    Good,
    /// The device or its daemon is gone; it is being restored. Fallback routes drop what would have used it.
    Lost {
        /// What was noticed.
        reason: String,
    },
    /// Somebody had changed the device; it is again what it is to be.
    Mended {
        /// What was found.
        what: String,
    },
    /// The device is there again with the same key and the same peers, but it is a new device and down: attach
    /// the gates, bring it up, set the routes.
    Replaced {
        /// The new device.
        device: Device,
    },
}

impl Health {
    /// Tells what was found on a device and set back, if anything was. What the agent has yet to hear is not told over.
    pub(crate) fn mended(health: &watch::Sender<Self>, device: &str, found: &[String]) {
        if found.is_empty() {
            return;
        }
        let what = format!("device {device}: {}", found.join("; "));
        health.send_if_modified(|health| {
            let heard = matches!(health, Self::Good | Self::Mended { .. });
            if heard {
                *health = Self::Mended { what };
            }
            heard
        });
    }
}

/// A tunnel as its device reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The device.
    pub device: Device,
    /// This node's key, in base64.
    #[serde(serialize_with = "as_text")]
    pub public_key: PublicKey,
    /// UDP port.
    pub port: u16,
    /// Mark of the tunnel's own packets.
    pub fwmark: u32,
    /// What the device could not take or give.
    pub losses: Losses,
    /// By public key.
    pub peers: Vec<PeerStatus>,
}

/// Packets that a device refused, as the kernel counts them since the device was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// Received and wrong: forged, replayed, of no peer.
    pub received_errors: u64,
    /// To be sent and impossible: no peer, no key, no way.
    pub sent_errors: u64,
    /// Received and dropped for want of room.
    pub received_dropped: u64,
    /// To be sent and dropped for want of room, or of an answer.
    pub sent_dropped: u64,
}

/// A peer as the device reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The peer's key, in base64.
    #[serde(serialize_with = "as_text")]
    pub public_key: PublicKey,
    /// Where its packets go and last came from.
    pub endpoint: Option<SocketAddr>,
    /// Allowed prefixes, sorted.
    pub prefixes: Vec<IpNet>,
    /// Whether a preshared key is set; without one the tunnel is bound to no session.
    pub preshared: bool,
    /// When the running keys were agreed upon, and something was heard under them.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received through the tunnel.
    pub received_bytes: u64,
    /// Bytes sent through the tunnel.
    pub sent_bytes: u64,
    /// Packets refused because they were replayed, or forged; none where the device does not say.
    pub refused_packets: Option<u64>,
}

fn as_text<S: serde::Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}
