//! Everything that can end a session at its sockets, each with a name to count it by.

use std::io;

use handfast_ca::verify::Rejection;

use crate::proof::ProofError;
use crate::wire::FrameError;

/// Why there is no session, or no longer one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// This node cannot hold sessions yet.
    #[error("no {0} yet")]
    NotReady(&'static str),
    /// Our own certificate and key cannot be used.
    #[error("node SVID cannot be used: {0}")]
    Credentials(String),
    /// TCP did not get through.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Not done within [`HANDSHAKE_TIMEOUT`](super::HANDSHAKE_TIMEOUT).
    #[error("handshake was not finished in time")]
    HandshakeTimeout,
    /// So many strangers are being judged that this one is not even listened to.
    #[error("too many handshakes at once")]
    Busy,
    /// So many strangers from this address.
    #[error("too many handshakes at once from one address")]
    BusyAddress,
    /// Not TLS at all.
    #[error("peer does not speak TLS: {0}")]
    Garbage(String),
    /// TLS, but not as we want it: version, key exchange, application protocol, no certificate.
    #[error("handshake failed: {0}")]
    Handshake(String),
    /// The other side did not want us.
    #[error("peer refused the handshake: {0}")]
    Refused(String),
    /// The peer's certificate is not that of a node of ours.
    #[error("peer's certificate: {0}")]
    Peer(#[from] Rejection),
    /// A good node, but not the one that was dialled.
    #[error("dialled {expected}, but {found} answered")]
    WrongNode {
        /// Who was dialled.
        expected: String,
        /// Who answered.
        found: String,
    },
    /// The session cannot carry proofs.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The peer sent what is not a frame, or we were about to.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame was begun and not finished in time.
    #[error("a frame was not finished in time")]
    SlowFrame,
    /// The peer does not read what we send: the queue is full, or the socket has not moved for long.
    #[error("peer is too slow: {0}")]
    SlowPeer(&'static str),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer closed the connection.
    #[error("peer closed the connection")]
    Closed,
    /// We closed the connection.
    #[error("connection closed by this node")]
    Ended,
}

impl TlsError {
    /// A fixed name, for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "not-ready",
            Self::Credentials(_) => "own-credentials",
            Self::Connect(_) => "connect",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::Busy => "busy",
            Self::BusyAddress => "busy-address",
            Self::Garbage(_) => "garbage",
            Self::Handshake(_) => "handshake",
            Self::Refused(_) => "refused-by-peer",
            Self::Peer(Rejection::Time { .. }) => "certificate-time",
            Self::Peer(Rejection::Denied(_)) => "certificate-revoked",
            Self::Peer(_) => "certificate",
            Self::WrongNode { .. } => "wrong-node",
            Self::Proof(_) => "proof",
            Self::Frame(_) => "bad-frame",
            Self::SlowFrame => "slow-frame",
            Self::SlowPeer(_) => "slow-peer",
            Self::Lost(_) => "lost",
            Self::Closed => "closed-by-peer",
            Self::Ended => "closed",
        }
    }

    pub(super) fn connect(error: io::Error) -> Self {
        Self::Connect(error.to_string())
    }

    /// A failed handshake without a verdict of ours on the peer's certificate.
    pub(super) fn handshake(error: &io::Error) -> Self {
        use rustls::Error as Tls;
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Tls>());
        match tls {
            Some(Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. }) => {
                Self::Garbage(error.to_string())
            }
            Some(Tls::AlertReceived(alert)) => Self::Refused(format!("{alert:?}")),
            Some(other) => Self::Handshake(other.to_string()),
            None => Self::Lost(error.to_string()),
        }
    }

    /// A connection that broke later.
    pub(super) fn lost(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Lost(error.to_string()),
        }
    }
}
