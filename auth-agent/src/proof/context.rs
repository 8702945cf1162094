//! What a session gives to proofs: the four exported secrets, and the memory of what has been used.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::{digest, hmac};
use rustls::crypto::hash::HashAlgorithm;
use rustls::{ClientConnection, CommonState, ServerConnection, SupportedCipherSuite};
use zeroize::Zeroizing;

use super::ProofError;

/// Most authenticators that one session accepts from its peer; 32 bytes of memory each.
const MAX_PROOFS: usize = 16 * 1024;

/// Which end of the TLS connection made an authenticator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that dialled.
    Client,
    /// The end that accepted.
    Server,
}

impl Role {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Keying material exported from a finished TLS 1.3 handshake (RFC 8446 section 7.5).
pub trait Export {
    /// Fills `output`; empty `context` and none are the same.
    ///
    /// # Errors
    /// [`ProofError::Session`] before the end of the handshake.
    fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ProofError>;
}

impl Export for ClientConnection {
    fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ProofError> {
        self.export_keying_material(output, label, Some(context))
            .map(drop)
            .map_err(|_| ProofError::Session("handshake is not finished"))
    }
}

impl Export for ServerConnection {
    fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ProofError> {
        self.export_keying_material(output, label, Some(context))
            .map(drop)
            .map_err(|_| ProofError::Session("handshake is not finished"))
    }
}

/// One session's secrets for proofs, of both roles. Taken once, after the handshake; erased when dropped.
pub struct ProofContext {
    role: Role,
    pub(super) hash: &'static digest::Algorithm,
    mac: hmac::Algorithm,
    client: Secrets,
    server: Secrets,
    /// Contexts of the peer's authenticators, so that each counts once.
    used: Mutex<HashSet<[u8; 32]>>,
}

/// Handshake context and Finished MAC key of one role (RFC 9261 section 5.1), each of the hash's length.
struct Secrets {
    handshake: Zeroizing<Vec<u8>>,
    finished: Zeroizing<Vec<u8>>,
}

impl ProofContext {
    /// For the end that dialled.
    ///
    /// # Errors
    /// [`ProofError::Session`] unless TLS 1.3 has been negotiated and the handshake has finished.
    pub fn from_client(connection: &ClientConnection) -> Result<Self, ProofError> {
        Self::new(Role::Client, connection, connection)
    }

    /// For the end that accepted.
    ///
    /// # Errors
    /// [`ProofError::Session`] unless TLS 1.3 has been negotiated and the handshake has finished.
    pub fn from_server(connection: &ServerConnection) -> Result<Self, ProofError> {
        Self::new(Role::Server, connection, connection)
    }

    fn new(role: Role, state: &CommonState, export: &dyn Export) -> Result<Self, ProofError> {
        let Some(SupportedCipherSuite::Tls13(suite)) = state.negotiated_cipher_suite() else {
            return Err(ProofError::Session("not TLS 1.3"));
        };
        if state.is_handshaking() {
            return Err(ProofError::Session("handshake is not finished"));
        }
        Self::derive(role, suite.common.hash_provider.algorithm(), export)
    }

    /// From the exporter of a handshake that has finished with this hash.
    ///
    /// # Errors
    /// [`ProofError::Session`] for another hash than TLS 1.3's suites have, or if nothing is exported.
    pub fn derive(
        role: Role,
        hash: HashAlgorithm,
        export: &dyn Export,
    ) -> Result<Self, ProofError> {
        let (hash, mac) = match hash {
            HashAlgorithm::SHA256 => (&digest::SHA256, hmac::HMAC_SHA256),
            HashAlgorithm::SHA384 => (&digest::SHA384, hmac::HMAC_SHA384),
            _ => return Err(ProofError::Session("unknown hash")),
        };
        let secret = |label: &str| {
            let mut secret = Zeroizing::new(vec![0; hash.output_len()]);
            export.export(&mut secret, label.as_bytes(), &[])?;
            Ok::<_, ProofError>(secret)
        };
        let client = Secrets {
            handshake: secret("EXPORTER-client authenticator handshake context")?,
            finished: secret("EXPORTER-client authenticator finished key")?,
        };
        let server = Secrets {
            handshake: secret("EXPORTER-server authenticator handshake context")?,
            finished: secret("EXPORTER-server authenticator finished key")?,
        };
        Ok(Self {
            role,
            hash,
            mac,
            client,
            server,
            used: Mutex::default(),
        })
    }

    /// Which end of the session we are.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Hash(handshake context of `maker` ‖ parts).
    pub(super) fn transcript(&self, maker: Role, parts: &[&[u8]]) -> digest::Digest {
        let mut hash = digest::Context::new(self.hash);
        hash.update(&self.secrets(maker).handshake);
        parts.iter().for_each(|part| hash.update(part));
        hash.finish()
    }

    /// The MAC key for the Finished of `maker`.
    pub(super) fn finished_key(&self, maker: Role) -> hmac::Key {
        hmac::Key::new(self.mac, &self.secrets(maker).finished)
    }

    /// Remembers the context of an authenticator that is good in every other respect.
    pub(super) fn spend(&self, context: [u8; 32]) -> Result<(), ProofError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains(&context) {
            return Err(ProofError::Reused);
        }
        if used.len() >= MAX_PROOFS {
            return Err(ProofError::TooMany);
        }
        used.insert(context);
        Ok(())
    }

    fn secrets(&self, maker: Role) -> &Secrets {
        match maker {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }
}

impl fmt::Debug for ProofContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProofContext")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}
