//! Possession of an SVID's key, shown inside a session: exported authenticators (RFC 9261).
//!
//! One authenticator proves one identity to one peer. It is bound to the TLS connection that it was made for
//! by keys that only the two ends of that connection can export, and to the role of its maker: it is worthless
//! in any other session and cannot be reflected. What the certificates mean (SPIFFE rules, node, labels, deny
//! list) is `handfast_ca::verify`'s business; here it is settled that whoever speaks at the other end holds the
//! private key of the first certificate.
//!
//! A client may not speak unasked (RFC 9261 section 7.4), so the server grants contexts ahead of need and a
//! client's authenticator answers one of them. All requests are alike but for their context, and are built
//! from it on both sides (`message`).

mod authenticator;
mod context;
mod key;
mod message;
mod psk;
#[cfg(test)]
mod tests;

pub use authenticator::{VerifiedChain, make, verify};
pub use context::{Export, ProofContext, Role};
pub use key::ProofKey;
pub use psk::{NodeKey, check_tunnel_tag, tunnel_psk, tunnel_tag};

/// Why an authenticator was not made or not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The connection cannot carry proofs: not TLS 1.3, or its handshake has not finished.
    #[error("session cannot carry proofs: {0}")]
    Session(&'static str),
    /// Longer than [`MAX_AUTHENTICATOR`](crate::wire::MAX_AUTHENTICATOR), or a chain of too many certificates.
    #[error("authenticator is too large")]
    TooLarge,
    /// Not Certificate, CertificateVerify and Finished, each whole, and nothing else.
    #[error("authenticator cannot be read: {0}")]
    Malformed(&'static str),
    /// A client spoke without having been asked, or a server answered what nobody asked.
    #[error("authenticator does not fit its maker's role: {0}")]
    Role(&'static str),
    /// The certificate_request_context is not the one that was granted.
    #[error("authenticator answers another request")]
    WrongRequest,
    /// The certificate_request_context has been used in this session before.
    #[error("authenticator's request was used before")]
    Reused,
    /// More proofs than a session takes.
    #[error("too many proofs in one session")]
    TooMany,
    /// A signature scheme that was not offered.
    #[error("signature scheme {0:#06x} was not offered")]
    Scheme(u16),
    /// Made for another session or role, or changed on the way.
    #[error("authenticator does not belong to this session")]
    Finished,
    /// The first certificate's key did not sign it.
    #[error("signature was not made by the key of the first certificate")]
    Signature,
    /// The first certificate cannot be read.
    #[error("end-entity certificate cannot be read: {0}")]
    Certificate(String),
    /// Our own key: not P-256 in PKCS#8, or not that of the certificate.
    #[error("signing key: {0}")]
    Key(&'static str),
}
