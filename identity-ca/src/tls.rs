//! TLS between agents and the CA: 1.3 only, post-quantum key exchange, no resumption.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::CertificateDer;

use crate::Error;
use crate::certificate::PrivateKey;
use crate::verify::Rejection;

/// HTTP/2 is all that is spoken.
pub(crate) const ALPN: &[u8] = b"h2";

/// aws-lc-rs with X25519MLKEM768 alone.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    Arc::new(provider)
}

/// A chain with its key, as rustls wants it.
pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Arc<CertifiedKey>, Error> {
    Ok(Arc::new(CertifiedKey::new(chain, key.to_rustls()?)))
}

/// The signature checks that every verifier of ours shares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signatures(WebPkiSupportedAlgorithms);

impl Signatures {
    pub(crate) fn of(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }

    pub(crate) fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    pub(crate) fn refuse_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "TLS 1.2 is not spoken here".to_owned(),
        ))
    }

    /// ECDSA only: no other key is ever issued.
    pub(crate) fn schemes() -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
        ]
    }
}

/// So that the peer's alert says what was wrong.
pub(crate) fn refusal(rejection: &Rejection) -> rustls::Error {
    let error = match rejection {
        Rejection::Time {
            not_before, now, ..
        } if now < not_before => CertificateError::NotValidYet,
        Rejection::Time { .. } => CertificateError::Expired,
        Rejection::Denied(_) => CertificateError::Revoked,
        Rejection::Path(_) | Rejection::TrustDomain(_) => CertificateError::UnknownIssuer,
        _ => CertificateError::ApplicationVerificationFailure,
    };
    error.into()
}
