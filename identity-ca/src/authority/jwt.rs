//! The key that signs JWT-SVIDs: ES256, told apart by its key ID.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rcgen::PublicKeyData;

use super::record::{Kind, Record, Standing};
use crate::bundle::sha256;
use crate::certificate::{PrivateKey, Signing};
use crate::{Error, now_ms};

/// Bytes of the public key's hash that name it.
const KEY_ID: usize = 16;

/// A private key of this server for JWT-SVIDs.
pub(crate) struct JwtKey {
    pair: EcdsaKeyPair,
    key_id: String,
    public_key: Vec<u8>,
    not_after: u64,
}

impl JwtKey {
    /// `not_after` in unix seconds: no token that it signs lives longer.
    pub(crate) fn new(key: &PrivateKey, not_after: u64) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.to_pkcs8())
            .map_err(|error| Error::Crypto(format!("not a P-256 key in PKCS#8: {error}")))?;
        let public_key = Signing(key).subject_public_key_info();
        Ok(Self {
            pair,
            key_id: key_id(&public_key),
            public_key,
            not_after,
        })
    }

    /// The `kid` of every token that it signs (SPIFFE J-4).
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// DER SubjectPublicKeyInfo.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Unix seconds.
    pub(crate) fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Signs a JWS signing input: r and s, 32 bytes each (RFC 7518, 3.4).
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| Error::Crypto("signing failed".to_owned()))
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({})", self.key_id)
    }
}

/// What the store keeps of a new key; `life` in seconds.
pub(super) fn record(
    key: &PrivateKey,
    server: &str,
    name: String,
    life: u64,
    standing: Standing,
) -> Result<Record, Error> {
    let now = now_ms();
    let made = JwtKey::new(key, now / 1000 + life)?;
    Ok(Record {
        id: made.key_id().to_owned(),
        kind: Kind::Jwt,
        server: server.to_owned(),
        standing,
        parent: String::new(),
        der: made.public_key().to_vec(),
        cross_signed: None,
        endorsement: None,
        key: name,
        not_before_ms: now,
        not_after_ms: now.saturating_add(life.saturating_mul(1000)),
        created_ms: now,
        compromised: false,
    })
}

/// The key ID of a public key (DER SubjectPublicKeyInfo).
fn key_id(public_key: &[u8]) -> String {
    let hash = sha256(public_key);
    data_encoding::HEXLOWER.encode(hash.get(..KEY_ID).unwrap_or(&hash))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;
    use crate::certificate::Signer;

    #[test]
    fn a_token_is_signed_as_es256_wants_it() {
        let key = PrivateKey::generate().unwrap();
        let jwt = JwtKey::new(&key, 9).unwrap();
        let signature = jwt.sign(b"header.claims").unwrap();
        assert_eq!(signature.len(), 64);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key())
            .verify(b"header.claims", &signature)
            .unwrap();
        assert_eq!(jwt.key_id().len(), 2 * KEY_ID);
    }
}
