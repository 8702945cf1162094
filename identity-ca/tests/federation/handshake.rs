//! Mutual TLS between workloads, each judging the other by what its own CA told it.

use std::sync::Arc;

use handfast_ca::verify::Domains;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::side::Workload;

#[derive(Debug)]
struct Judge {
    domains: Domains,
    provider: Arc<CryptoProvider>,
}

impl Judge {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let first = std::iter::once(end_entity);
        let chain: Vec<CertificateDer<'_>> = first.chain(issuers).cloned().collect();
        let judged = self.domains.workload(&chain, UnixTime::now());
        judged
            .map(drop)
            .map_err(|rejection| rustls::Error::General(rejection.to_string()))
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            panic!("TLS 1.3 only")
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.schemes()
        }
    };
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, issuers)
            .map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, issuers)
            .map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}

fn parts(workload: &Workload) -> (Arc<Judge>, Arc<SingleCertAndKey>, Arc<CryptoProvider>) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (chain, key) = workload.svid();
    let certified = CertifiedKey::new(chain, key.to_rustls().unwrap());
    let judge = Judge {
        domains: workload.domains(),
        provider: Arc::clone(&provider),
    };
    (
        Arc::new(judge),
        Arc::new(SingleCertAndKey::from(certified)),
        provider,
    )
}

/// One connection; both sides have said something when it is good.
pub async fn handshake(client: &Workload, server: &Workload) -> Result<(), String> {
    let (judge, key, provider) = parts(client);
    let connector = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_client_cert_resolver(key);
    let (judge, key, provider) = parts(server);
    let acceptor = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(judge)
        .with_cert_resolver(key);
    let (near, far) = tokio::io::duplex(1 << 16);
    let accept = async {
        let stream = TlsAcceptor::from(Arc::new(acceptor)).accept(far).await;
        let mut stream = stream.map_err(|error| format!("server: {error}"))?;
        stream
            .write_all(b"hello")
            .await
            .map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())
    };
    let connect = async {
        let name = ServerName::try_from("peer").unwrap();
        let stream = TlsConnector::from(Arc::new(connector))
            .connect(name, near)
            .await;
        let mut stream = stream.map_err(|error| format!("client: {error}"))?;
        let mut hello = [0; 5];
        let read = stream.read_exact(&mut hello).await;
        read.map(drop).map_err(|error| format!("client: {error}"))
    };
    tokio::try_join!(accept, connect).map(drop)
}
