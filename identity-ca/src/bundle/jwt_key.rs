//! A public key that JWT-SVIDs are verified with, and its name.

use std::fmt;

use super::invalid;
use super::public_key::PublicKey;
use crate::{Error, proto};

const MAX_KEY_ID: usize = 256;

/// A JWT key of a bundle: named (SPIFFE J-4), of a kind that can be verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKey {
    key_id: String,
    key: PublicKey,
    not_after_ms: u64,
}

impl JwtKey {
    /// A key by its SubjectPublicKeyInfo (DER): RSA from 2048 bits, or a point
    /// of P-256, P-384 or P-521. `not_after_ms` zero: no end is known.
    pub fn new(
        key_id: impl Into<String>,
        public_key: &[u8],
        not_after_ms: u64,
    ) -> Result<Self, Error> {
        let key = PublicKey::from_spki(public_key)
            .ok_or_else(|| invalid("a JWT key is of no kind that is verified here"))?;
        Self::of(key_id.into(), key, not_after_ms).map_err(invalid)
    }

    pub(super) fn of(key_id: String, key: PublicKey, not_after_ms: u64) -> Result<Self, String> {
        let plain = !key_id.is_empty() && !key_id.chars().any(char::is_control);
        if !plain || key_id.len() > MAX_KEY_ID {
            return Err(format!(
                "a JWT key's name has 1 to {MAX_KEY_ID} bytes that can be printed"
            ));
        }
        Ok(Self {
            key_id,
            key,
            not_after_ms,
        })
    }

    /// Its name, the `kid` of tokens.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The key as SubjectPublicKeyInfo (DER).
    pub fn public_key(&self) -> Vec<u8> {
        self.key.to_spki()
    }

    /// Until when it verifies (unix milliseconds); zero if no end is known.
    pub fn not_after_ms(&self) -> u64 {
        self.not_after_ms
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({:?})", self.key_id)
    }
}

impl From<&JwtKey> for proto::JwtKey {
    fn from(key: &JwtKey) -> Self {
        Self {
            key_id: key.key_id.clone(),
            public_key: key.public_key(),
            not_after_ms: key.not_after_ms,
        }
    }
}

impl TryFrom<proto::JwtKey> for JwtKey {
    type Error = Error;

    fn try_from(key: proto::JwtKey) -> Result<Self, Error> {
        Self::new(key.key_id, &key.public_key, key.not_after_ms)
    }
}
