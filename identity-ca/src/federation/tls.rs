//! TLS 1.3 with endpoints of others: any key exchange that they have, ours first.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::SpiffeId;

use crate::Error;
use crate::tls::{Signatures, refusal};
use crate::verify::{Rejection, Verifier};

/// The library's own choice: partners run other software, without post-quantum
/// key exchange perhaps; what is fetched is public.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// For `https_web`: the Web PKI's roots, as this system knows them, or those
/// in a PEM file.
pub(crate) fn web_roots(file: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let found = match file {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>);
            certificates.map_err(|error| {
                Error::invalid(format!("--web-roots {}", file.display()), error.to_string())
            })?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(found);
    if let Some(file) = file.filter(|_| roots.is_empty()) {
        let what = format!("--web-roots {}", file.display());
        return Err(Error::invalid(what, "holds no certificate of a root (PEM)"));
    }
    if roots.is_empty() {
        let problem = "no root of the Web PKI was found; install this system's CA certificates (package ca-certificates), or name a PEM file with --web-roots";
        return Err(Error::invalid("https_web", problem));
    }
    Ok(roots)
}

/// Checks the URL's host against the Web PKI (RFC 6125).
pub(crate) fn web(roots: RootCertStore) -> Result<Arc<ClientConfig>, Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| Error::Crypto(error.to_string()))?;
    config(verifier)
}

/// What a handshake was refused for, which TLS has no words for.
pub(crate) type Refused = Arc<Mutex<Option<Rejection>>>;

/// Expects exactly this ID, by the bundle of its trust domain.
pub(crate) fn spiffe(
    verifier: Verifier,
    expected: SpiffeId,
) -> Result<(Arc<ClientConfig>, Refused), Error> {
    let refused = Refused::default();
    let config = config(Arc::new(ExactId {
        verifier,
        expected,
        signatures: Signatures::of(&provider()),
        schemes: provider()
            .signature_verification_algorithms
            .supported_schemes(),
        refused: Arc::clone(&refused),
    }))?;
    Ok((config, refused))
}

fn config(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Crypto(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ExactId {
    verifier: Verifier,
    expected: SpiffeId,
    signatures: Signatures,
    schemes: Vec<SignatureScheme>,
    refused: Refused,
}

impl ExactId {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), Rejection> {
        let svid = self.verifier.foreign_workload(chain, crate::now())?;
        if svid.spiffe_id != self.expected {
            return Err(Rejection::Kind {
                expected: "certificate of the endpoint",
                problem: "its SPIFFE ID is that of somebody else in the trust domain",
            });
        }
        Ok(())
    }
}

impl ServerCertVerifier for ExactId {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let first = std::iter::once(end_entity);
        let chain: Vec<CertificateDer<'_>> = first.chain(intermediates).cloned().collect();
        match self.judge(&chain) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(rejection) => {
                let error = refusal(&rejection);
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused = Some(rejection);
                Err(error)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Signatures::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
