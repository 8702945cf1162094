//! Keys, requests and the three kinds of certificate.
//!
//! Agents make a [`PrivateKey`] and its CSR; the CA reads the request strictly
//! and signs one of the profiles: node, proof, workload (PROTOCOL.md).

mod extension;
mod key;
pub(crate) mod profile;
mod request;

pub use self::extension::{NodeBinding, ProofBinding};
pub use self::key::PrivateKey;
pub use self::request::{CsrError, CsrKey};

pub(crate) use self::extension::{
    MAX_PREFIXES, NODE_BINDING, PROOF_BINDING, PROOF_USAGE, oid_content,
};
pub(crate) use self::key::{Signer, Signing};

/// SHA-256 of a certificate's public key, as a point.
pub(crate) fn key_hash(der: &[u8]) -> Option<[u8; 32]> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(crate::bundle::sha256(
        certificate.public_key().subject_public_key.data.as_ref(),
    ))
}
