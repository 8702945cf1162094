//! Talking to the CA: agents over TLS ([`join`], [`AgentClient`]), operators over a socket ([`admin`]).

pub mod admin;
mod agent;
mod attest;
mod audit;
mod backup;
#[cfg(test)]
mod clock_tests;
mod connect;
mod entry_file;
pub mod federation;
mod join;
mod observations;
pub mod operators;
mod psat;
pub mod rotation;
mod section;
mod trial;

use std::fmt;

use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;

use crate::certificate::PrivateKey;
use crate::{Error, proto};

pub use self::agent::{AgentClient, IssuedJwt, MAX_BATCH, Update, Updates};
pub use self::attest::{Attestation, CaTrust, X509Pop, attest};
pub use self::entry_file::{EntryForm, read_entries, write_entries};
pub use self::join::{Joined, join};
pub use self::psat::K8sPsat;
pub use self::section::{Keyed, Section};

pub(crate) use self::connect::{check_clocks, moment};

/// Clocks further apart than this (milliseconds) are an error.
pub const MAX_CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;

/// A node's SVID with its key: who an agent is to the CA.
#[derive(Debug)]
pub struct NodeIdentity {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf.
    pub key: PrivateKey,
}

/// A certificate as the CA gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Svid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Unix seconds.
    pub not_after: u64,
}

impl TryFrom<proto::Svid> for Svid {
    type Error = Error;

    fn try_from(svid: proto::Svid) -> Result<Self, Error> {
        Ok(Self {
            spiffe_id: crate::names::operator_id(&svid.spiffe_id)?,
            chain: svid.chain.into_iter().map(CertificateDer::from).collect(),
            not_after: svid.not_after_ms / 1000,
        })
    }
}

/// Which certificate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidKind {
    /// The next one of this node.
    Node,
    /// For proofs in sessions, of this entry's identity.
    Proof {
        /// [`crate::model::Entry::id`].
        entry_id: String,
    },
    /// For the workload itself, of this entry's identity.
    Workload {
        /// [`crate::model::Entry::id`].
        entry_id: String,
    },
}

/// One request of a batch.
#[derive(Debug, Clone)]
pub struct SvidRequest {
    /// What is asked for.
    pub kind: SvidKind,
    /// From [`PrivateKey::csr`].
    pub csr: Vec<u8>,
}

impl From<SvidRequest> for proto::SvidRequest {
    fn from(request: SvidRequest) -> Self {
        let (kind, entry_id) = match request.kind {
            SvidKind::Node => (proto::SvidKind::Node, String::new()),
            SvidKind::Proof { entry_id } => (proto::SvidKind::Proof, entry_id),
            SvidKind::Workload { entry_id } => (proto::SvidKind::Workload, entry_id),
        };
        Self {
            kind: kind.into(),
            entry_id,
            csr: request.csr,
        }
    }
}

/// Why one request of a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code; `PermissionDenied` is final until the registry changes.
    pub code: tonic::Code,
    /// In the CA's words.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The same of a call that would have changed something: it says that nothing was, where the code says so.
pub(crate) fn unchanged(status: tonic::Status) -> Error {
    use tonic::Code;
    match refused(status) {
        Error::Refused { code, mut message }
            if matches!(
                code,
                Code::InvalidArgument
                    | Code::NotFound
                    | Code::AlreadyExists
                    | Code::FailedPrecondition
                    | Code::PermissionDenied
            ) && !message.contains("nothing was ") =>
        {
            message.push_str("; nothing was changed");
            Error::Refused { code, message }
        }
        other => other,
    }
}

/// What a call came back with, in our words.
pub(crate) fn refused(status: tonic::Status) -> Error {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(&status);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    Error::Refused {
        code: status.code(),
        message,
    }
}
