//! Asked by rustls about one peer's certificate, once; remembers the answer.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use handfast_ca::verify::{NodeSvid, Rejection, Verifier};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::SpiffeId;

use super::TlsError;
use super::config::SIGNATURES;

type Chain = Vec<CertificateDer<'static>>;

/// The verifier of one handshake: a node SVID of ours, and of the expected node if there is one.
pub(super) struct Judge {
    verifier: Arc<Verifier>,
    expected: Option<SpiffeId>,
    verdict: OnceLock<Result<(NodeSvid, Chain), TlsError>>,
}

impl Judge {
    pub(super) fn new(verifier: Arc<Verifier>, expected: Option<SpiffeId>) -> Self {
        Self {
            verifier,
            expected,
            verdict: OnceLock::new(),
        }
    }

    pub(super) fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// Who the peer is, after a handshake that succeeded.
    pub(super) fn accepted(&self) -> Result<(NodeSvid, Chain), TlsError> {
        let nobody = || Err(TlsError::Handshake("peer showed no certificate".into()));
        self.verdict.get().cloned().unwrap_or_else(nobody)
    }

    /// Why a handshake failed: our own verdict says more than the alert that it became.
    pub(super) fn explain(&self, error: io::Error) -> TlsError {
        match self.verdict.get() {
            Some(Err(verdict)) => verdict.clone(),
            _ => TlsError::handshake(&error),
        }
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Chain = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let verdict = self.verdict(chain, now);
        let answer = verdict.as_ref().map(drop).map_err(alert);
        // A second certificate in one handshake does not exist in TLS 1.3; the first verdict stands.
        self.verdict
            .set(verdict)
            .map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        answer
    }

    fn verdict(&self, chain: Chain, now: UnixTime) -> Result<(NodeSvid, Chain), TlsError> {
        let node = self.verifier.node(&chain, now)?;
        match &self.expected {
            Some(expected) if *expected != node.spiffe_id => Err(TlsError::WrongNode {
                expected: expected.to_string(),
                found: node.spiffe_id.to_string(),
            }),
            _ => Ok((node, chain)),
        }
    }
}

/// What the peer is told; the whole truth stays here.
fn alert(error: &TlsError) -> Error {
    let reason = match error {
        TlsError::Peer(Rejection::Time {
            not_before, now, ..
        }) if now < not_before => CertificateError::NotValidYet,
        TlsError::Peer(Rejection::Time { .. }) => CertificateError::Expired,
        TlsError::Peer(Rejection::Denied(_)) => CertificateError::Revoked,
        TlsError::Peer(Rejection::Path(_) | Rejection::TrustDomain(_)) => {
            CertificateError::UnknownIssuer
        }
        _ => CertificateError::ApplicationVerificationFailure,
    };
    Error::InvalidCertificate(reason)
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}
