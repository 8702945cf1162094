//! A proof is good once, in its session, from its role, whole; and it is what RFC 9261 says.

use std::sync::Arc;

use aws_lc_rs::hmac;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::message::{self, Authenticator};
use super::*;

mod malformed;

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];
const GRANTED: [u8; 32] = [7; 32];

struct Session {
    client: ProofContext,
    server: ProofContext,
    dialled: ClientConnection,
    accepted: ServerConnection,
}

fn session() -> Session {
    session_with(SUITES[1])
}

fn session_with(suite: SupportedCipherSuite) -> Session {
    let (mut dialled, mut accepted) = connections(suite);
    while dialled.is_handshaking() || accepted.is_handshaking() {
        pass(&mut dialled, &mut accepted);
    }
    let client = ProofContext::from_client(&dialled).unwrap();
    let server = ProofContext::from_server(&accepted).unwrap();
    Session {
        client,
        server,
        dialled,
        accepted,
    }
}

fn connections(suite: SupportedCipherSuite) -> (ClientConnection, ServerConnection) {
    let (certificate, key) = certificate("localhost");
    let mut provider = default_provider();
    provider.cipher_suites = vec![suite];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let name = "localhost".try_into().unwrap();
    let client = ClientConnection::new(Arc::new(client), name).unwrap();
    (client, ServerConnection::new(Arc::new(server)).unwrap())
}

fn pass(client: &mut ClientConnection, server: &mut ServerConnection) {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    server.read_tls(&mut bytes.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    bytes.clear();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    client.read_tls(&mut bytes.as_slice()).unwrap();
    client.process_new_packets().unwrap();
}

fn certificate(name: &str) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().der().clone(), key)
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: ProofKey,
}

/// A leaf and another certificate behind it; what they say is not looked at here.
fn identity() -> Identity {
    let (leaf, key) = certificate("workload");
    let (issuer, _) = certificate("issuer");
    let key = ProofKey::from_pkcs8(&key.serialize_der()).unwrap();
    Identity {
        chain: vec![leaf, issuer],
        key,
    }
}

impl Identity {
    fn asked(&self, session: &Session) -> Vec<u8> {
        make(&session.client, &self.chain, &self.key, Some(&GRANTED)).unwrap()
    }

    fn unasked(&self, session: &Session) -> Vec<u8> {
        make(&session.server, &self.chain, &self.key, None).unwrap()
    }
}

/// A client's authenticator whose every part can be wrong while its Finished is right.
fn forged(
    session: &Session,
    context: &[u8; 32],
    chain: &[CertificateDer<'_>],
    verify_message: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let asked = message::request(context);
    let certificate = message::certificate(context, chain);
    let signed = session
        .client
        .transcript(Role::Client, &[&asked, &certificate]);
    let verify = verify_message(&message::signature_content(signed.as_ref()));
    let all = session
        .client
        .transcript(Role::Client, &[&asked, &certificate, &verify]);
    let mac = hmac::sign(&session.client.finished_key(Role::Client), all.as_ref());
    [certificate, verify, message::finished(mac.as_ref())].concat()
}

#[test]
fn both_ends_prove_with_every_suite_and_its_hash() {
    for suite in SUITES {
        let (session, identity) = (session_with(suite), identity());
        let asked = identity.asked(&session);
        let seen = verify(&session.server, &asked, Some(&GRANTED)).unwrap();
        assert_eq!(seen.certificates(), identity.chain);
        let unasked = identity.unasked(&session);
        let seen = verify(&session.client, &unasked, None).unwrap();
        assert_eq!(seen.into_certificates(), identity.chain);
    }
}

#[test]
fn an_authenticator_is_built_by_the_letter_of_rfc_9261() {
    for suite in SUITES {
        let (session, identity) = (session_with(suite), identity());
        let suite = suite.tls13().unwrap();
        let hash = suite.common.hash_provider;
        let export = |label: &str| {
            let secret = vec![0; hash.output_len()];
            session
                .dialled
                .export_keying_material(secret, label.as_bytes(), None)
                .unwrap()
        };
        let handshake = export("EXPORTER-client authenticator handshake context");
        let finished_key = export("EXPORTER-client authenticator finished key");

        // CertificateRequest: type 13, 24 bits of length, context, signature_algorithms with 0x0403.
        let mut request = vec![13, 0, 0, 43, 32];
        request.extend(GRANTED);
        request.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);

        let bytes = identity.asked(&session);
        let length = |at: usize| {
            usize::from(bytes[at]) << 16
                | usize::from(bytes[at + 1]) << 8
                | usize::from(bytes[at + 2])
        };
        assert_eq!((bytes[0], bytes[4]), (11, 32));
        let verify_at = 4 + length(1);
        assert_eq!(bytes[verify_at], 15);
        let finished_at = verify_at + 4 + length(verify_at + 1);
        assert_eq!(
            bytes[finished_at..finished_at + 4],
            [20, 0, 0, hash.output_len() as u8]
        );

        let transcript = [&handshake, &request, &bytes[..verify_at]].concat();
        let mut content = vec![0x20; 64];
        content.extend(b"Exported Authenticator\0");
        content.extend(hash.hash(&transcript).as_ref());
        let leaf = webpki::EndEntityCert::try_from(&identity.chain[0]).unwrap();
        let signature = &bytes[verify_at + 8..finished_at];
        leaf.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, &content, signature)
            .unwrap();

        let transcript = [&handshake, &request, &bytes[..finished_at]].concat();
        let algorithm = match hash.output_len() {
            32 => hmac::HMAC_SHA256,
            _ => hmac::HMAC_SHA384,
        };
        let key = hmac::Key::new(algorithm, &finished_key);
        let mac = hmac::sign(&key, hash.hash(&transcript).as_ref());
        assert_eq!(bytes[finished_at + 4..], *mac.as_ref());
    }
}

#[test]
fn a_proof_is_worthless_in_another_session() {
    let (here, there, identity) = (session(), session(), identity());
    let asked = identity.asked(&here);
    assert_eq!(
        verify(&there.server, &asked, Some(&GRANTED)),
        Err(ProofError::Finished)
    );
    let unasked = identity.unasked(&here);
    assert_eq!(
        verify(&there.client, &unasked, None),
        Err(ProofError::Finished)
    );
}

#[test]
fn a_proof_cannot_be_reflected_to_its_maker() {
    let (session, identity) = (session(), identity());
    let asked = identity.asked(&session);
    assert_eq!(
        verify(&session.client, &asked, None),
        Err(ProofError::Finished)
    );
    let unasked = identity.unasked(&session);
    let context = Authenticator::parse(&unasked).unwrap().context;
    assert_eq!(
        verify(&session.server, &unasked, Some(&context)),
        Err(ProofError::Finished)
    );
}

#[test]
fn a_client_speaks_only_when_asked_and_a_server_only_unasked() {
    let (session, identity) = (session(), identity());
    let role = |result: Result<_, ProofError>| matches!(result, Err(ProofError::Role(_)));
    assert!(role(
        make(&session.client, &identity.chain, &identity.key, None).map(drop)
    ));
    assert!(role(
        make(
            &session.server,
            &identity.chain,
            &identity.key,
            Some(&GRANTED)
        )
        .map(drop)
    ));
    let (asked, unasked) = (identity.asked(&session), identity.unasked(&session));
    assert!(role(verify(&session.server, &asked, None).map(drop)));
    assert!(role(
        verify(&session.client, &unasked, Some(&GRANTED)).map(drop)
    ));
}

#[test]
fn a_proof_answers_the_request_that_was_granted() {
    let (session, identity) = (session(), identity());
    let asked = identity.asked(&session);
    assert_eq!(
        verify(&session.server, &asked, Some(&[8; 32])),
        Err(ProofError::WrongRequest)
    );
}

#[test]
fn a_context_is_good_once() {
    let (session, identity) = (session(), identity());
    let asked = identity.asked(&session);
    assert!(verify(&session.server, &asked, Some(&GRANTED)).is_ok());
    assert_eq!(
        verify(&session.server, &asked, Some(&GRANTED)),
        Err(ProofError::Reused)
    );
    let other = self::identity().asked(&session);
    assert_eq!(
        verify(&session.server, &other, Some(&GRANTED)),
        Err(ProofError::Reused)
    );
    let unasked = identity.unasked(&session);
    assert!(verify(&session.client, &unasked, None).is_ok());
    assert_eq!(
        verify(&session.client, &unasked, None),
        Err(ProofError::Reused)
    );
    assert!(verify(&session.client, &identity.unasked(&session), None).is_ok());
}

#[test]
fn a_bad_proof_does_not_burn_the_context() {
    let (session, identity) = (session(), identity());
    let mut bad = identity.asked(&session);
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(
        verify(&session.server, &bad, Some(&GRANTED)),
        Err(ProofError::Finished)
    );
    assert!(verify(&session.server, &identity.asked(&session), Some(&GRANTED)).is_ok());
}

#[test]
fn only_the_key_of_the_first_certificate_counts() {
    let (session, identity, other) = (session(), identity(), identity());
    let swapped: Vec<_> = identity.chain.iter().rev().cloned().collect();
    let not_ours = make(&session.client, &swapped, &identity.key, Some(&GRANTED));
    assert!(matches!(not_ours, Err(ProofError::Key(_))));

    let sign = |content: &[u8]| message::certificate_verify(&identity.key.sign(content).unwrap());
    let right = forged(&session, &GRANTED, &identity.chain, sign);
    let wrong_order = forged(&session, &[1; 32], &swapped, sign);
    let stolen_chain = forged(&session, &[2; 32], &other.chain, sign);
    assert!(verify(&session.server, &right, Some(&GRANTED)).is_ok());
    assert_eq!(
        verify(&session.server, &wrong_order, Some(&[1; 32])),
        Err(ProofError::Signature)
    );
    assert_eq!(
        verify(&session.server, &stolen_chain, Some(&[2; 32])),
        Err(ProofError::Signature)
    );
}

#[test]
fn only_the_offered_scheme_is_accepted() {
    let (session, identity) = (session(), identity());
    let rsa_pss = forged(&session, &GRANTED, &identity.chain, |content| {
        let mut verify = message::certificate_verify(&identity.key.sign(content).unwrap());
        verify[4..6].copy_from_slice(&[8, 4]);
        verify
    });
    assert_eq!(
        verify(&session.server, &rsa_pss, Some(&GRANTED)),
        Err(ProofError::Scheme(0x0804))
    );
}

#[test]
fn what_is_cut_off_or_too_long_is_refused() {
    let (session, identity) = (session(), identity());
    let bytes = identity.asked(&session);
    for length in 0..bytes.len() {
        assert!(
            verify(&session.server, &bytes[..length], Some(&GRANTED)).is_err(),
            "{length}"
        );
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    let left_over = Err(ProofError::Malformed("bytes left over"));
    assert_eq!(verify(&session.server, &longer, Some(&GRANTED)), left_over);
    let twice = [bytes.as_slice(), &bytes].concat();
    assert_eq!(verify(&session.server, &twice, Some(&GRANTED)), left_over);
    let endless = vec![0; crate::wire::MAX_AUTHENTICATOR + 1];
    assert_eq!(
        verify(&session.server, &endless, Some(&GRANTED)),
        Err(ProofError::TooLarge)
    );
    let sign = |content: &[u8]| message::certificate_verify(&identity.key.sign(content).unwrap());
    let chain = vec![identity.chain[0].clone(); 5];
    let long_chain = forged(&session, &GRANTED, &chain, sign);
    assert_eq!(
        verify(&session.server, &long_chain, Some(&GRANTED)),
        Err(ProofError::TooLarge)
    );
    assert!(verify(&session.server, &bytes, Some(&GRANTED)).is_ok());
}

#[test]
fn any_flipped_bit_is_refused() {
    let (session, identity) = (session(), identity());
    let mut bytes = identity.asked(&session);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            verify(&session.server, &bytes, Some(&GRANTED)).is_err(),
            "bit {bit}"
        );
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(verify(&session.server, &bytes, Some(&GRANTED)).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Authenticator::parse(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_start_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        lengths: [u8; 4],
    ) {
        let mut start = vec![11, 0, 0, lengths[0], 32];
        start.extend([0; 32]);
        start.extend([0, 0, lengths[1], 0, 0, lengths[2], lengths[3]]);
        let _ = Authenticator::parse(&[start, bytes].concat());
    }
}

#[test]
fn there_are_no_proofs_before_the_end_of_the_handshake() {
    let (dialled, accepted) = connections(SUITES[0]);
    assert!(matches!(
        ProofContext::from_client(&dialled),
        Err(ProofError::Session(_))
    ));
    assert!(matches!(
        ProofContext::from_server(&accepted),
        Err(ProofError::Session(_))
    ));
}

#[test]
fn a_tunnel_key_is_shown_by_its_holder_to_one_node_in_one_session() {
    let (session, other) = (session(), session());
    let a = NodeKey {
        node_id: "spiffe://example.org/handfast/node/a",
        tunnel_key: &[1; 32],
    };
    let b = NodeKey {
        node_id: "spiffe://example.org/handfast/node/b",
        tunnel_key: &[2; 32],
    };
    let agreed = [9; 32];
    let tag = tunnel_tag(&session.dialled, &agreed, a, b).unwrap();
    let check = |export: &dyn Export, agreed, maker, to| {
        check_tunnel_tag(export, agreed, maker, to, &tag).unwrap()
    };
    assert!(check(&session.accepted, &agreed, a, b));
    assert!(!check(&session.accepted, &agreed, b, a), "sent back");
    assert!(!check(&session.accepted, &[8; 32], a, b), "another key");
    assert!(!check(&other.accepted, &agreed, a, b), "another session");
    let claimed = NodeKey {
        tunnel_key: &[3; 32],
        ..a
    };
    assert!(!check(&session.accepted, &agreed, claimed, b));
    assert!(tunnel_tag(&session.dialled, &agreed, a, a).is_err());
}

#[test]
fn the_tunnels_key_is_that_of_both_ends_and_of_nobody_else() {
    let (session, other) = (session(), session());
    let a = NodeKey {
        node_id: "spiffe://example.org/handfast/node/a",
        tunnel_key: &[1; 32],
    };
    let b = NodeKey {
        node_id: "spiffe://example.org/handfast/node/b",
        tunnel_key: &[2; 32],
    };
    let key = tunnel_psk(&session.dialled, a, b).unwrap();
    assert_eq!(key, tunnel_psk(&session.accepted, b, a).unwrap());
    let rotated = NodeKey {
        tunnel_key: &[3; 32],
        ..b
    };
    assert_ne!(key, tunnel_psk(&session.dialled, a, rotated).unwrap());
    let swapped = [
        NodeKey {
            tunnel_key: b.tunnel_key,
            ..a
        },
        NodeKey {
            tunnel_key: a.tunnel_key,
            ..b
        },
    ];
    assert_ne!(
        key,
        tunnel_psk(&session.dialled, swapped[0], swapped[1]).unwrap()
    );
    assert_ne!(key, tunnel_psk(&other.dialled, a, b).unwrap());
    assert!(
        tunnel_psk(
            &session.dialled,
            a,
            NodeKey {
                tunnel_key: &[9; 32],
                ..a
            }
        )
        .is_err()
    );
}
