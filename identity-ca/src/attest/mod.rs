//! Node attestation: how a machine that has no certificate of ours yet proves which node it is.
//!
//! A kind of attestation reads a claim, may challenge the caller, and says
//! whom it proved. What comes of it (registry, certificate, audit) is the same
//! for all. A new kind is a [`NodeAttestor`] in [`Attestors::open`], and a
//! [`crate::client::Attestation`] on the other side.

mod rules;
#[cfg(test)]
mod tests;
mod token;
mod x509pop;

use serde::Deserialize;
use spiffe::TrustDomain;

use crate::Error;
use crate::registry::NodeOrder;
use crate::token::Secret;

pub use self::rules::Rule;
pub use self::x509pop::X509PopConfig;
pub(crate) use self::x509pop::{CHALLENGE, KIND as X509POP, SCHEMES, signed_message};

/// A claim or an answer with more bytes is not read.
pub(crate) const MAX_PAYLOAD: usize = 48 << 10;

/// What the CA takes for a proof, beside its own join tokens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttestationConfig {
    /// Possession of the key of a certificate of another CA.
    pub x509pop: Option<X509PopConfig>,
}

/// Whom an attestation proved.
#[derive(Debug)]
pub(crate) enum Proven {
    /// A node of this name, with what the kind's rules give it.
    Node(NodeOrder),
    /// Whoever the registry says that this token is for; spent there.
    Token(Secret),
}

/// The other side of an attestation that is under way.
#[tonic::async_trait]
pub(crate) trait Caller: Send {
    /// Sends a challenge and waits for the answer, bounded in time and size.
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, Error>;
}

/// One kind of node attestation.
#[tonic::async_trait]
pub(crate) trait NodeAttestor: Send + Sync {
    /// Its name on the wire and in the registry.
    fn kind(&self) -> &'static str;

    /// Judges a claim. `key_hash` (SHA-256) is of the public key that the
    /// certificate is asked for: a proof must be good for that key alone,
    /// else who relays it gets a certificate for a key of their own.
    async fn attest(
        &self,
        claim: &[u8],
        key_hash: &[u8; 32],
        caller: &mut dyn Caller,
    ) -> Result<Proven, Error>;
}

/// The kinds that this CA takes.
pub(crate) struct Attestors(Vec<Box<dyn NodeAttestor>>);

impl Attestors {
    /// Reads what the kinds need; a mistake in it stops the CA from starting.
    pub(crate) fn open(
        config: &AttestationConfig,
        trust_domain: &TrustDomain,
    ) -> Result<Self, Error> {
        let mut kinds: Vec<Box<dyn NodeAttestor>> = vec![Box::new(token::JoinToken)];
        if let Some(config) = &config.x509pop {
            kinds.push(Box::new(x509pop::X509Pop::open(config, trust_domain)?));
        }
        Ok(Self(kinds))
    }

    /// With one more kind.
    pub(crate) fn and(mut self, kind: impl NodeAttestor + 'static) -> Self {
        self.0.push(Box::new(kind));
        self
    }

    /// The kind of that name.
    pub(crate) fn kind(&self, name: &str) -> Result<&dyn NodeAttestor, Error> {
        let found = self.0.iter().find(|kind| kind.kind() == name);
        found.map(AsRef::as_ref).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().map(|kind| kind.kind()).collect();
            let shown: String = name.chars().take(32).collect();
            Error::Denied(format!(
                "this CA attests nodes by {}, not by {shown:?}",
                known.join(" or ")
            ))
        })
    }
}
