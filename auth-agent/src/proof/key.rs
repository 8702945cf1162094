//! The private key of a proof SVID. It never leaves the agent.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::ProofError;

/// A P-256 key that can sign authenticators.
pub struct ProofKey(EcdsaKeyPair);

impl ProofKey {
    /// Reads an unencrypted PKCS#8 document in DER.
    ///
    /// # Errors
    /// [`ProofError::Key`] if it is not a P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, ProofError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map(Self)
            .map_err(|_| ProofError::Key("not a P-256 key in PKCS#8"))
    }

    /// Whether it is the key of this certificate: its point is what the certificate's key info ends with.
    pub fn belongs_to(&self, certificate: &CertificateDer<'_>) -> bool {
        EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
            let info = certificate.subject_public_key_info();
            info.as_ref().ends_with(self.0.public_key().as_ref())
        })
    }

    /// ECDSA over SHA-256, in ASN.1.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ProofError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| ProofError::Key("signing failed"))
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey(P-256)")
    }
}
