//! What must outlive the agent, but not the kernel: the numbers that stand in the kernel's maps.
//!
//! Identity numbers, peer numbers, epochs and generations only rise in a boot; a restarted agent goes on where
//! the old one stopped, because the kernel does too. Pairs are not in here: those in the kernel stay valid by
//! their epoch until the successor session has proven them anew. A snapshot of another boot or another node is
//! void, since the kernel it describes is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::effect::{AnnouncedState, PairKey};
use super::types::{EndpointId, Identity, IdentityNumber, PeerNumber};
use crate::wire::BootId;

/// Everything a successor needs to know about the kernel that it adopts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Format, 1.
    pub version: u32,
    /// Which node.
    pub node: String,
    /// Which boot of it.
    pub boot_id: BootId,
    /// Next free identity number.
    pub next_identity: u32,
    /// Next free peer number.
    pub next_peer: u32,
    /// Highest generation sent so far, for any address.
    pub generation: u64,
    /// Identity numbers in use.
    pub identities: Arc<Vec<IdentitySnapshot>>,
    /// Peers with something in the kernel.
    pub peers: Vec<Arc<PeerSnapshot>>,
    /// What the step that was stored last takes out of the kernel: done again, since it may not have been done.
    #[serde(default)]
    pub removals: Removals,
    /// Addresses that rest: until when (boot clock), and the identity that had them.
    pub rests: Vec<(IpAddr, Duration, Option<IdentityNumber>)>,
}

/// Entries on their way out of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removals {
    /// Of `auth`.
    pub pairs: BTreeSet<PairKey>,
    /// Of `remotes`.
    pub remotes: BTreeSet<IpAddr>,
    /// Tunnels toward peers, which are no entries, but go with them.
    #[serde(default)]
    pub tunnels: BTreeSet<PeerNumber>,
}

/// One identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySnapshot {
    /// Its number.
    pub number: IdentityNumber,
    /// Who.
    pub identity: Arc<Identity>,
    /// Until when the kernel lets it count: unix seconds.
    pub not_after: u64,
    /// The kernel has it as cut.
    pub revoked: bool,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Its number.
    pub number: PeerNumber,
    /// Its full SPIFFE ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its signed prefixes in the session that stands.
    pub prefixes: Vec<IpNet>,
    /// The prefix assignment.
    pub assignment: u64,
    /// Serial of the SVID that the session that stands was opened with.
    pub serial: Vec<u8>,
    /// Its WireGuard public key, when last heard.
    pub tunnel_key: Option<[u8; 32]>,
    /// Boot IDs, newest last.
    pub boot_ids: Vec<BootId>,
    /// Highest epoch given so far.
    pub last_epoch: u32,
    /// The lineage of the session in the kernel.
    #[serde(default)]
    pub lineage: u64,
    /// The session in the kernel, if there is one.
    pub session: Option<SessionSnapshot>,
    /// What this node announced to it.
    pub announced: Arc<Vec<AnnouncedSnapshot>>,
    /// What it announced to this node.
    pub remotes: Arc<Vec<RemoteSnapshot>>,
    /// Proofs that the session in the kernel rests on.
    #[serde(default)]
    pub rests_on: Arc<Vec<FootingSnapshot>>,
    /// Highest generations seen, for addresses that it announced.
    pub seen: Arc<Vec<(IpAddr, u64)>>,
    /// An address that is not in `seen` must come with a higher one.
    pub seen_floor: u64,
}

/// A session in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSnapshot {
    /// Oldest epoch that counts.
    pub oldest: u32,
    /// Newest epoch.
    pub current: u32,
    /// When its age ends it: boot clock.
    pub age: Duration,
    /// When a certificate ends it: unix seconds.
    pub not_after: u64,
    /// As the kernel has it: boot clock.
    pub expires: Duration,
    /// Whether the tunnel stands on both sides.
    pub ready: bool,
}

/// A proof, of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FootingSnapshot {
    /// Whose.
    pub identity: IdentityNumber,
    /// Serial number of the SVID.
    pub serial: Vec<u8>,
    /// Given by this node, not by the peer.
    pub ours: bool,
    /// The newest epoch it was given in.
    pub epoch: u32,
}

/// A local address toward one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedSnapshot {
    /// The address.
    pub address: IpAddr,
    /// Whose it is toward this peer.
    pub endpoint: EndpointId,
    /// Who that is.
    pub identity: IdentityNumber,
    /// Epoch.
    pub epoch: u32,
    /// Generation.
    pub generation: u64,
    /// How far.
    pub state: AnnouncedState,
}

/// A remote address of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteSnapshot {
    /// The address.
    pub address: IpAddr,
    /// Who.
    pub identity: IdentityNumber,
    /// Epoch.
    pub epoch: u32,
    /// Generation.
    pub generation: u64,
}
