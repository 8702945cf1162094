//! The small values inside frames, and the bounds on all of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Largest frame on the wire, in bytes, without its four bytes of length.
pub const MAX_FRAME: usize = 64 * 1024;
/// Largest exported authenticator, in bytes: a chain of three certificates with 4 KiB of labels fits twice.
pub const MAX_AUTHENTICATOR: usize = 32 * 1024;
/// Largest piece of a signed deny list that one frame carries, in bytes.
pub const MAX_DENY_LIST: usize = 60 * 1024;
/// Largest signed deny list that is relayed, in bytes: some fifty thousand revocations.
pub const MAX_WHOLE_DENY_LIST: usize = 4 * 1024 * 1024;
/// Longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const MAX_NODE_ID: usize = 2048;
/// Most requests that one `Grant` carries.
pub const MAX_REQUESTS: usize = 256;
/// Longest reason in a refusal or a goodbye, in bytes.
pub const MAX_REASON: usize = 256;

/// Largest question about a flow, in bytes.
pub const MAX_QUESTION: usize = 1024;
/// Largest answer to one, in bytes.
pub const MAX_ANSWER: usize = 8 * 1024;

/// The version of the protocol that this program speaks.
pub const VERSION: u32 = 1;
/// The oldest version that it still understands. Two programs understand each other if neither speaks a version that
/// is older than the other's oldest.
pub const OLDEST_VERSION: u32 = 1;

/// What carries a node's packets. Both ends of a session must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TunnelKind {
    /// WireGuard: 1 on the wire.
    WireGuard,
    /// IPsec, ESP in tunnel mode: 2 on the wire.
    Ipsec,
    /// One that a newer program has. Never 0.
    Other(u32),
}

impl TunnelKind {
    pub(super) fn from_wire(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::WireGuard),
            2 => Some(Self::Ipsec),
            other => Some(Self::Other(other)),
        }
    }

    pub(super) fn on_wire(self) -> u32 {
        match self {
            Self::WireGuard => 1,
            Self::Ipsec => 2,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for TunnelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WireGuard => f.write_str("WireGuard"),
            Self::Ipsec => f.write_str("IPsec"),
            Self::Other(number) => write!(f, "of unknown kind {number}"),
        }
    }
}

/// SHA-256 of an end-entity certificate in DER: what an announcement names a proof by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeafHash(pub [u8; 32]);

/// Random for each boot of a node's kernel: a new one means that the node inherits nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// Why something was refused, for people: printable, at most [`MAX_REASON`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reason(String);

impl Reason {
    /// Makes any text fit: control characters become `?`, what is too long is cut at a character.
    pub fn new(text: &str) -> Self {
        let mut reason = String::with_capacity(text.len().min(MAX_REASON));
        for c in text.chars() {
            let c = if c.is_control() { '?' } else { c };
            if reason.len() + c.len_utf8() > MAX_REASON {
                break;
            }
            reason.push(c);
        }
        Self(reason)
    }

    /// Takes a peer's text as it is, or not at all.
    pub(super) fn parse(text: String) -> Option<Self> {
        let legal = text.len() <= MAX_REASON && !text.chars().any(char::is_control);
        legal.then_some(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LeafHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for LeafHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafHash({self})")
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
