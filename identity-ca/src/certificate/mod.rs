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

pub(crate) use self::extension::{NODE_BINDING, PROOF_BINDING, PROOF_USAGE, oid_content};
pub(crate) use self::key::{Signer, Signing};
