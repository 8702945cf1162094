//! How far a log had come, signed: agents keep it, so that a log that is cut off or written anew shows.

use std::time::Duration;

use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::file::Position;
use super::line::Hash;
use crate::bundle::TrustBundle;
use crate::certificate::Signer;
use crate::deny::DenyList;
use crate::verify::Verifier;
use crate::{Error, proto};

const CONTEXT: &[u8] = b"handfast audit head v1\0";
const MAX_SERVER: usize = 256;

/// A head that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditHead {
    server: String,
    position: Position,
    at_ms: u64,
    bytes: Vec<u8>,
}

impl AuditHead {
    /// Reads a signed head and verifies it against the bundle; the signer's
    /// certificate must have been valid when it signed.
    pub fn from_bytes(bytes: &[u8], bundle: &TrustBundle) -> Result<Self, Error> {
        let bad = |problem: &str| Error::Protocol(format!("audit head: {problem}"));
        let head = proto::AuditHead::decode(bytes).map_err(|error| bad(&error.to_string()))?;
        let hash = <[u8; 32]>::try_from(head.hash.as_slice()).map_err(|_| bad("no hash"))?;
        if head.server.is_empty() || head.server.len() > MAX_SERVER {
            return Err(bad("no name of a server"));
        }
        let position = Position {
            entries: head.entries,
            hash: Hash(hash),
        };
        let chain: Vec<CertificateDer<'_>> = head
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        Verifier::new(bundle.clone(), DenyList::empty()).audit_head_signature(
            &chain,
            UnixTime::since_unix_epoch(Duration::from_millis(head.at_ms)),
            &message(&head.server, position, head.at_ms),
            &head.signature,
        )?;
        Ok(Self {
            server: head.server,
            position,
            at_ms: head.at_ms,
            bytes: bytes.to_vec(),
        })
    }

    /// The server whose log it is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How many lines the log had, and the hash of the last.
    pub fn position(&self) -> Position {
        self.position
    }

    /// When it was signed (unix milliseconds by the server's clock).
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// As it came, to be stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Signs how far a log has come.
pub(crate) fn sign(
    server: &str,
    position: Position,
    at_ms: u64,
    signer: &dyn Signer,
    chain: &[CertificateDer<'static>],
) -> Result<proto::AuditHead, Error> {
    Ok(proto::AuditHead {
        server: server.to_owned(),
        entries: position.entries,
        hash: position.hash.0.to_vec(),
        at_ms,
        signature: signer.sign(&message(server, position, at_ms))?,
        chain: chain.iter().map(|der| der.to_vec()).collect(),
    })
}

fn message(server: &str, position: Position, at_ms: u64) -> Vec<u8> {
    let fields: [&[u8]; 4] = [
        server.as_bytes(),
        &position.entries.to_be_bytes(),
        &position.hash.0,
        &at_ms.to_be_bytes(),
    ];
    let mut message = CONTEXT.to_vec();
    for field in fields {
        message.extend((field.len() as u64).to_be_bytes());
        message.extend(field);
    }
    message
}
