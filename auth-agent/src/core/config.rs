//! What the core is told once: its bounds, its times, and which node it is.

use std::time::Duration;

use ipnet::IpNet;

use crate::wire::{BootId, TunnelKind};

/// Settings. The defaults are those of PROTOCOL.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Jitter is derived from it; two nodes need different ones, nothing needs it secret.
    pub seed: u64,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub times: Times,
}

impl Config {
    /// The defaults, with this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            limits: Limits::default(),
            times: Times::default(),
        }
    }
}

/// Bounds on everything that others can make grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Peers known at a time.
    pub peers: usize,
    /// Connections of one peer at a time, live or not.
    pub conns_per_peer: usize,
    /// Connections that one peer may dial in a second: each that becomes a session is stored, written to the kernel and
    /// given a tunnel.
    pub conns_per_second: u32,
    /// Addresses one peer may announce, and withdrawn ones remembered.
    pub remotes_per_peer: usize,
    /// Proofs one peer may have accepted in one session.
    pub proofs_per_session: usize,
    /// Proofs under verification, and frames that wait for them, in one session.
    pub waiting_per_session: usize,
    /// Contexts granted ahead, and accepted from a server.
    pub grants: usize,
    /// Endpoints on this node.
    pub endpoints: usize,
    /// Hold keys at a time; each peer may have an eighth, each endpoint a sixteenth.
    pub holds: usize,
    /// Identities known at a time.
    pub identities: usize,
    /// Proofs, announcements and withdrawals of a peer's that may be refused in one session.
    pub refusals_per_session: u32,
    /// Resolves a second of one endpoint, with as large a burst; toward one peer eight times as many, from one peer
    /// sixteen times: one endpoint does not keep the others from asking.
    pub resolves_per_second: u32,
    /// Questions about flows that a peer may ask in a second.
    pub questions_per_second: u32,
    /// Questions to one peer that wait for an answer.
    pub questions_open: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: 8_192,
            conns_per_peer: 4,
            conns_per_second: 4,
            remotes_per_peer: 8_192,
            proofs_per_session: 8_192,
            waiting_per_session: 1_024,
            grants: 256,
            endpoints: 4_096,
            holds: 16_384,
            // As many as the kernel's map has room for.
            identities: 65_536,
            refusals_per_session: 64,
            resolves_per_second: 128,
            questions_per_second: 20,
            questions_open: 64,
        }
    }
}

/// Times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// Hard expiry of a session.
    pub session: Duration,
    /// When a successor takes over.
    pub renew: Duration,
    /// From dial to `Connected`.
    pub dial: Duration,
    /// From `Connected` to the peer's Hello.
    pub hello: Duration,
    /// Between pings on a quiet connection; three without an answer end it.
    pub ping: Duration,
    /// Of a hold without a decision.
    pub hold: Duration,
    /// Of an address between two identities.
    pub rest: Duration,
    /// Of a refusal to say who an address is.
    pub negative: Duration,
    /// Before something that was refused or has failed is tried again.
    pub retry: Duration,
    /// First step of the backoff between dials.
    pub backoff_first: Duration,
    /// Its last step.
    pub backoff_last: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            session: Duration::from_secs(4 * 3600),
            renew: Duration::from_secs(30 * 60),
            dial: Duration::from_secs(10),
            hello: Duration::from_secs(10),
            ping: Duration::from_secs(10),
            hold: Duration::from_secs(3),
            rest: Duration::from_secs(5),
            negative: Duration::from_secs(5),
            retry: Duration::from_secs(5),
            backoff_first: Duration::from_millis(100),
            backoff_last: Duration::from_secs(30),
        }
    }
}

/// Which node this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Full SPIFFE ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// This boot of the kernel.
    pub boot_id: BootId,
    /// Prefixes that the CA signed for it.
    pub prefixes: Vec<IpNet>,
    /// What carries its packets.
    pub tunnel_kind: TunnelKind,
    /// WireGuard public key, or IPsec's name of the node in this boot.
    pub tunnel_key: [u8; 32],
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
}
