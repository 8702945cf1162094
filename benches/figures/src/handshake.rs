//! A full mutual TLS 1.3 handshake in memory, both ends on one thread, with handfast's verifier.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use handfast_ca::verify::Verifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// What both ends of every handshake use.
pub struct Handshakes {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// What one end presents, and whom it accepts.
pub struct End<'a> {
    /// Judges the other end.
    pub verifier: Verifier,
    /// As which kind of certificate.
    pub accepts: Accepts,
    /// Leaf first.
    pub chain: &'a [CertificateDer<'static>],
    /// PKCS#8.
    pub key: &'a [u8],
}

/// Which certificates an end takes.
#[derive(Clone, Copy, Debug)]
pub enum Accepts {
    /// Node SVIDs.
    Nodes,
    /// X509-SVIDs of workloads.
    Workloads,
}

impl Handshakes {
    /// Both ends present `chain`, as PROTOCOL.md has it: TLS 1.3, X25519MLKEM768, nothing resumed.
    pub fn new(verifier: Verifier, chain: &[CertificateDer<'static>], key: &[u8]) -> Result<Self> {
        let end = || End {
            verifier: verifier.clone(),
            accepts: Accepts::Nodes,
            chain,
            key,
        };
        Self::between(&end(), &end())
    }

    /// A client and a server of their own.
    pub fn between(client: &End<'_>, server: &End<'_>) -> Result<Self> {
        let mut provider = aws_lc_rs::default_provider();
        provider
            .kx_groups
            .retain(|group| group.name() == rustls::NamedGroup::X25519MLKEM768);
        ensure!(!provider.kx_groups.is_empty(), "no X25519MLKEM768");
        let provider = Arc::new(provider);
        let judge = |end: &End<'_>| {
            Arc::new(Judge {
                verifier: end.verifier.clone(),
                accepts: end.accepts,
                provider: Arc::clone(&provider),
            })
        };
        let key =
            |end: &End<'_>| PrivateKeyDer::try_from(end.key.to_vec()).map_err(anyhow::Error::msg);
        let (client_end, server_end) = (client, server);
        let versions = [&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(judge(client_end))
            .with_client_auth_cert(client_end.chain.to_vec(), key(client_end)?)?;
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(judge(server_end))
            .with_single_cert(server_end.chain.to_vec(), key(server_end)?)?;
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// One handshake.
    pub fn run(&self) -> Result<(ClientConnection, ServerConnection)> {
        let name = ServerName::try_from("node.invalid")?;
        let mut client = ClientConnection::new(Arc::clone(&self.client), name)?;
        let mut server = ServerConnection::new(Arc::clone(&self.server))?;
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest)?;
                server.process_new_packets().context("server")?;
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire)?;
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest)?;
                client.process_new_packets().context("client")?;
            }
        }
        Ok((client, server))
    }
}

/// Accepts what handfast's verifier accepts as of a kind.
#[derive(Debug)]
struct Judge {
    verifier: Verifier,
    accepts: Accepts,
    provider: Arc<CryptoProvider>,
}

impl Judge {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        match self.accepts {
            Accepts::Nodes => self.verifier.node(&chain, now).map(drop),
            Accepts::Workloads => self.verifier.workload(&chain, now).map(drop),
        }
        .map_err(|rejection| Error::General(rejection.to_string()))
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, others, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, others, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
