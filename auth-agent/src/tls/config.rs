//! The one way in which sessions speak TLS.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

use super::judge::Judge;
use super::{ALPN, TlsError};

/// All that is offered and accepted: SVIDs are P-256.
pub(super) static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[ECDSA_P256_SHA256],
    mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, &[ECDSA_P256_SHA256])],
};

/// aws-lc-rs with one key exchange, and TLS 1.3's cipher suites.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some());
    provider.signature_verification_algorithms = SIGNATURES;
    Arc::new(provider)
}

/// For one dial: the judge expects one node.
pub(super) fn client(
    provider: &Arc<CryptoProvider>,
    clock: &Arc<dyn TimeProvider>,
    judge: &Arc<Judge>,
    credentials: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider.clone(), clock.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Credentials(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(judge.clone())
        .with_client_cert_resolver(credentials);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// For one accepted socket.
pub(super) fn server(
    provider: &Arc<CryptoProvider>,
    clock: &Arc<dyn TimeProvider>,
    judge: &Arc<Judge>,
    credentials: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_details(provider.clone(), clock.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Credentials(error.to_string()))?
        .with_client_cert_verifier(judge.clone())
        .with_cert_resolver(credentials);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
