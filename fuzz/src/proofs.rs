//! Authenticators, inside a session made for the occasion: only one that was made in it is believed.

use std::sync::{Arc, LazyLock};

use handfast_agent::proof::{self, ProofContext, ProofKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

const REQUEST: [u8; 32] = [42; 32];

struct Session {
    client: ProofContext,
    server: ProofContext,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

static SESSION: LazyLock<Session> = LazyLock::new(session);

pub fn run(data: &[u8]) {
    // Nothing here is made in this session, but for the seeds, which are let through once at most.
    for (verifier, request) in [
        (&SESSION.server, Some(&REQUEST)),
        (&SESSION.client, None),
        (&SESSION.server, None),
        (&SESSION.client, Some(&REQUEST)),
    ] {
        if let Ok(chain) = proof::verify(verifier, data, request) {
            assert_eq!(chain.certificates(), SESSION.chain);
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let key = ProofKey::from_pkcs8(&SESSION.key).expect("our key");
    vec![
        proof::make(&SESSION.client, &SESSION.chain, &key, Some(&REQUEST)).expect("a proof"),
        proof::make(&SESSION.server, &SESSION.chain, &key, None).expect("a proof"),
    ]
}

fn session() -> Session {
    let own = rcgen::generate_simple_self_signed(vec!["fuzz.test".to_owned()]).expect("a key");
    let certificate = own.cert.der().clone();
    let key = own.signing_key.serialize_der();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13];

    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("our certificate");
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivateKeyDer::try_from(key.clone()).expect("PKCS#8"),
        )
        .expect("our certificate");
    let name = "fuzz.test".try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("a vector");
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("a slice");
            server.process_new_packets().expect("a good client");
        }
        wire.clear();
        server.write_tls(&mut wire).expect("a vector");
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("a slice");
            client.process_new_packets().expect("a good server");
        }
    }
    Session {
        client: ProofContext::from_client(&client).expect("a finished handshake"),
        server: ProofContext::from_server(&server).expect("a finished handshake"),
        chain: vec![certificate],
        key,
    }
}
