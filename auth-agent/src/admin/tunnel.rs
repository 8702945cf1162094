//! What is told of tunnels: how they stand, what a change of keys has begun, what a look at the wire has shown.

use serde::{Deserialize, Serialize};

/// One peer: its session and its tunnel. What only the tunnel knows is absent if it does not say in time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// What its session is doing.
    pub state: String,
    /// The epoch in force.
    pub epoch: u32,
    /// Names the sessions that follow each other without a cut; absent while none stands.
    pub lineage: Option<String>,
    /// Its prefixes, as the CA signed them.
    pub prefixes: Vec<String>,
    /// Seconds until the session must be renewed; absent without one.
    pub expires_in_s: Option<u64>,
    /// `wireguard` or `ipsec`.
    pub kind: String,
    /// The device that its packets go by; absent without a tunnel.
    pub device: Option<String>,
    /// The device that it is about to move to, or has moved from, while keys change.
    pub other_device: Option<String>,
    /// False if the tunnel did not say in time how it stands; what it alone knows is absent then.
    pub tunnel_answers: bool,
    /// Where the tunnel's packets go.
    pub tunnel_endpoint: Option<String>,
    /// This node's public tunnel key toward it (IPsec: its name in this boot), in base64.
    pub own_key: Option<String>,
    /// Its public tunnel key (IPsec: its name in this boot), in base64.
    pub peer_key: Option<String>,
    /// Whether the tunnel's keys come from a session; without, it is bound to none, and something is wrong.
    pub bound: Option<bool>,
    /// Seconds since the session began that the tunnel's keys come from; absent while that is not live.
    pub keys_age_s: Option<u64>,
    /// Seconds since the running keys were agreed upon, if anything was heard under them.
    pub last_handshake_s: Option<u64>,
    /// Bytes received through the tunnel.
    pub received_bytes: Option<u64>,
    /// Bytes sent through the tunnel.
    pub sent_bytes: Option<u64>,
    /// Packets of its that were forged or replayed; absent where the tunnel does not count by peer.
    pub refused_packets: Option<u64>,
    /// What its device could not receive or send, all peers together.
    pub device_errors: Option<u64>,
    /// What its device has dropped, all peers together.
    pub device_drops: Option<u64>,
}

/// What a wish for new keys has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotationInfo {
    /// `wireguard` or `ipsec`.
    pub kind: String,
    /// This node's new public key; absent where keys are changed in place.
    pub new_key: Option<String>,
    /// Peers that take part.
    pub peers: Vec<String>,
    /// Peers that need a new session for it, which is being opened.
    pub by_new_session: Vec<String>,
}

/// What a look at the wire has shown of one peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireInfo {
    /// Its name.
    pub name: String,
    /// `wireguard` or `ipsec`.
    pub kind: String,
    /// How it stands: `ok`, `failed`, or `unknown` where nothing could be sent.
    pub verdict: WireVerdict,
    /// Who sent the probes, to whom.
    pub probe: String,
    /// Probes sent.
    pub probes: u32,
    /// Encrypted packets seen on the way to it.
    pub encrypted_sent: u64,
    /// Encrypted packets seen coming from it.
    pub encrypted_received: u64,
    /// Packets seen with managed addresses of the two nodes, or the probes' content, readable.
    pub readable: u64,
    /// What that means.
    pub detail: String,
}

/// What was seen of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WireVerdict {
    /// What was sent was seen encrypted, and nothing readable.
    Ok,
    /// Something readable was seen, or what was sent was not seen at all.
    Failed,
    /// Nothing could be sent.
    Unknown,
}
