//! Private keys: ECDSA P-256, made here, wiped when dropped.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::Error;

/// Whoever can sign for a CA: a key in memory now, an HSM or a KMS elsewhere.
/// The signature is ECDSA P-256 with SHA-256, ASN.1 DER.
pub trait Signer: Send + Sync {
    /// The public key as an uncompressed point (65 bytes).
    fn public_key(&self) -> &[u8];
    /// Signs `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error>;
}

/// An ECDSA P-256 private key in memory.
pub struct PrivateKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// Makes a new key.
    pub fn generate() -> Result<Self, Error> {
        let failed = |_| Error::Crypto("no key could be made".to_owned());
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec());
        Ok(Self { pair, pkcs8 })
    }

    /// Reads an unencrypted PKCS#8 key (DER).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|error| Error::Crypto(format!("not a P-256 key in PKCS#8: {error}")))?;
        Ok(Self {
            pair,
            pkcs8: Zeroizing::new(der.to_vec()),
        })
    }

    /// The key as unencrypted PKCS#8 (DER); wiped when dropped.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// The key as rustls wants it.
    pub fn to_rustls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, Error> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)
            .map_err(|error| Error::Crypto(error.to_string()))
    }

    /// A certificate signing request (DER) for this key. It names nobody: the
    /// CA takes the key from it and nothing else.
    pub fn csr(&self) -> Result<Vec<u8>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&Signing(self))?.der().to_vec())
    }
}

impl Signer for PrivateKey {
    fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| Error::Crypto("signing failed".to_owned()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(P-256)")
    }
}

/// A pointer to a [`Signer`] as rcgen wants it.
pub(crate) struct Signing<P>(pub(crate) P);

impl<P> PublicKeyData for Signing<P>
where
    P: Deref,
    P::Target: Signer,
{
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl<P> SigningKey for Signing<P>
where
    P: Deref,
    P::Target: Signer,
{
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0
            .sign(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::CsrKey;

    #[test]
    fn a_key_survives_pkcs8_and_its_csr_is_accepted() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pkcs8(&key.to_pkcs8()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert!(again.to_rustls().is_ok());
        let from_csr = CsrKey::read(&key.csr().unwrap()).unwrap();
        assert_eq!(from_csr.point(), key.public_key());
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(P-256)");
    }
}
