//! Who gets a session on loopback and who does not, and that strangers cost little.

mod authority;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use self::authority::{Authority, Svid, node_id};
use super::*;
use crate::proof::{NodeKey, Role, tunnel_psk};
use crate::wire::{Frame, FrameError, MAX_DENY_LIST};

type Accepted = Result<Connection, TlsError>;

fn clock() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

fn tls(verifier: Verifier, svid: Svid) -> SessionTls {
    let tls = SessionTls::new(clock());
    tls.set_credentials(svid.chain, svid.key).unwrap();
    tls.set_verifier(verifier);
    tls
}

fn node(authority: &Authority, name: &str) -> SessionTls {
    tls(authority.verifier(), authority.node(name, |_| ()))
}

/// `a` dials `b`, expecting the node `expected`.
async fn meet(a: &SessionTls, b: &SessionTls, expected: &str) -> (Accepted, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let expected = node_id(expected);
    tokio::join!(a.dial(address, &expected), async {
        let (socket, _) = listener.accept().await.unwrap();
        b.accept(socket).await
    })
}

async fn session() -> (Connection, Connection) {
    let authority = Authority::new();
    let (a, b) = (node(&authority, "a"), node(&authority, "b"));
    let (dialled, accepted) = meet(&a, &b, "b").await;
    (dialled.unwrap(), accepted.unwrap())
}

/// What happens to somebody who speaks those bytes; and what is said to them.
async fn speak(b: &SessionTls, bytes: &[u8]) -> (Accepted, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    socket.write_all(bytes).await.unwrap();
    let accepted = b.accept(listener.accept().await.unwrap().0).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    (accepted, answer)
}

/// A client of ours, changed as the test wants, against `b`.
async fn stranger(
    b: &SessionTls,
    client: ClientConfig,
) -> (
    std::io::Result<tokio_rustls::client::TlsStream<TcpStream>>,
    Accepted,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let name = listener.local_addr().unwrap().ip().into();
    tokio::join!(
        TlsConnector::from(Arc::new(client)).connect(name, socket),
        async { b.accept(listener.accept().await.unwrap().0).await }
    )
}

fn client_config(authority: &Authority, provider: Arc<CryptoProvider>) -> ClientConfig {
    let svid = authority.node("a", |_| ());
    let key = CertifiedKey::from_der(svid.chain, svid.key, &provider).unwrap();
    let judge = Arc::new(Judge::new(Arc::new(authority.verifier()), None));
    config::client(
        &provider,
        &clock(),
        &judge,
        Arc::new(SingleCertAndKey::from(key)),
    )
    .unwrap()
}

#[tokio::test]
async fn two_nodes_meet_and_each_knows_the_other() {
    let (dialled, accepted) = session().await;
    assert_eq!(dialled.peer.spiffe_id, node_id("b"));
    assert_eq!(accepted.peer.spiffe_id, node_id("a"));
    assert_eq!(accepted.peer.prefixes, ["10.1.0.0/24".parse().unwrap()]);
    assert_eq!(
        (dialled.proofs.role(), accepted.proofs.role()),
        (Role::Client, Role::Server)
    );
    let a = NodeKey {
        node_id: "spiffe://example.org/a",
        tunnel_key: &[1; 32],
    };
    let b = NodeKey {
        node_id: "spiffe://example.org/b",
        tunnel_key: &[2; 32],
    };
    let key = tunnel_psk(&dialled.exporter, a, b).unwrap();
    assert_eq!(key, tunnel_psk(&accepted.exporter, a, b).unwrap());
}

#[tokio::test]
async fn frames_arrive_in_order_and_goodbye_is_the_last() {
    let (mut dialled, mut accepted) = session().await;
    let large = Frame::DenyList {
        bytes: vec![5; MAX_DENY_LIST],
        more: false,
    };
    for frame in [&Frame::Ping, &large, &Frame::TunnelReady] {
        dialled.writer.send(frame).unwrap();
    }
    dialled.writer.close("done".into());
    for frame in [
        Frame::Ping,
        large,
        Frame::TunnelReady,
        Frame::Goodbye {
            reason: "done".into(),
        },
    ] {
        assert_eq!(accepted.reader.next().await, Ok(frame));
    }
    assert_eq!(accepted.reader.next().await, Err(TlsError::Closed));
    assert_eq!(accepted.writer.send(&Frame::Pong), Err(TlsError::Closed));
    assert_eq!(dialled.reader.next().await, Err(TlsError::Ended));
}

#[tokio::test]
async fn frames_that_were_sent_together_come_together_in_their_order() {
    let (dialled, mut accepted) = session().await;
    let sent = [Frame::Ping, Frame::TunnelReady, Frame::Pong, Frame::Ready];
    let mut frames = Frames::default();
    for frame in &sent {
        frames.push(frame).unwrap();
    }
    dialled.writer.send_all(frames).unwrap();
    let mut come = vec![accepted.reader.next().await.unwrap()];
    come.append(&mut accepted.reader.come(2));
    assert_eq!(come, sent[..3], "no more than wanted");
    assert_eq!(accepted.reader.come(9), sent[3..]);
    assert!(accepted.reader.come(9).is_empty());
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing() {
    let (dialled, mut accepted) = session().await;
    let frame = Frame::DenyList {
        bytes: vec![5; MAX_DENY_LIST],
        more: false,
    };
    for _ in 0..8 {
        dialled.writer.send(&frame).unwrap();
    }
    for _ in 0..8 {
        loop {
            if let Ok(read) = timeout(Duration::from_micros(50), accepted.reader.next()).await {
                assert_eq!(read.as_ref(), Ok(&frame));
                break;
            }
        }
    }
}

#[tokio::test]
async fn another_node_than_the_dialled_one_is_refused() {
    let authority = Authority::new();
    let (a, b) = (node(&authority, "a"), node(&authority, "b"));
    let (dialled, accepted) = meet(&a, &b, "c").await;
    let wrong = TlsError::WrongNode {
        expected: node_id("c").to_string(),
        found: node_id("b").to_string(),
    };
    assert_eq!(dialled.err(), Some(wrong));
    assert_eq!(accepted.err().unwrap().reason(), "refused-by-peer");
    assert_eq!(a.failures(), BTreeMap::from([("wrong-node", 1)]));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_either_side() {
    let authority = Authority::new();
    let hour = |n: i64| OffsetDateTime::now_utc() + time::Duration::hours(n);
    let expired = || {
        // Its own node has no verifier yet, so that it can be set at all.
        let tls = SessionTls::new(clock());
        let svid = authority.node("old", |params| {
            (params.not_before, params.not_after) = (hour(-3), hour(-2));
        });
        tls.set_credentials(svid.chain, svid.key).unwrap();
        tls.set_verifier(authority.verifier());
        tls
    };
    let good = node(&authority, "good");
    let (_, accepted) = meet(&expired(), &good, "good").await;
    assert_eq!(accepted.err().unwrap().reason(), "certificate-time");
    let (dialled, accepted) = meet(&good, &expired(), "old").await;
    assert_eq!(dialled.err().unwrap().reason(), "certificate-time");
    assert_eq!(
        accepted.err(),
        Some(TlsError::Refused("CertificateExpired".into()))
    );
}

#[tokio::test]
async fn a_revoked_node_is_refused_on_either_side() {
    let authority = Authority::new();
    let bad = node(&authority, "bad");
    let good = tls(
        authority.verifier_denying("bad"),
        authority.node("good", |_| ()),
    );
    let (_, accepted) = meet(&bad, &good, "good").await;
    assert_eq!(accepted.err().unwrap().reason(), "certificate-revoked");
    let (dialled, accepted) = meet(&good, &bad, "bad").await;
    assert_eq!(dialled.err().unwrap().reason(), "certificate-revoked");
    assert_eq!(
        accepted.err(),
        Some(TlsError::Refused("CertificateRevoked".into()))
    );
}

#[tokio::test]
async fn a_revocation_that_arrives_during_the_handshake_counts() {
    let authority = Authority::new();
    let good = node(&authority, "good");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let name = listener.local_addr().unwrap().ip().into();
    let client = client_config(&authority, config::provider());
    let accept = good.accept(listener.accept().await.unwrap().0);
    let (accepted, _) = tokio::join!(accept, async {
        // The handshake has begun with the old verifier, and waits for the client.
        tokio::time::sleep(Duration::from_millis(50)).await;
        good.set_verifier(authority.verifier_denying("a"));
        TlsConnector::from(Arc::new(client))
            .connect(name, socket)
            .await
    });
    assert_eq!(accepted.err().unwrap().reason(), "certificate-revoked");
}

#[tokio::test]
async fn a_stranger_to_the_trust_domain_is_refused() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (a, b) = (node(&foreign, "a"), node(&authority, "b"));
    let (dialled, _) = meet(&a, &b, "b").await;
    assert_eq!(dialled.err().unwrap().reason(), "certificate");
    let no_node = authority.node("x", |params| params.custom_extensions.clear());
    let client = SessionTls::new(clock());
    client.set_credentials(no_node.chain, no_node.key).unwrap();
    client.set_verifier(authority.verifier());
    let (_, accepted) = meet(&client, &b, "b").await;
    assert_eq!(accepted.err().unwrap().reason(), "certificate");
}

#[tokio::test]
async fn our_own_svid_is_checked_before_it_is_used() {
    let authority = Authority::new();
    let tls = node(&authority, "a");
    let (one, other) = (authority.node("a", |_| ()), authority.node("a", |_| ()));
    let mixed = tls.set_credentials(one.chain, other.key).unwrap_err();
    assert_eq!(mixed.reason(), "own-credentials");
    let foreign = Authority::new().node("a", |_| ());
    let foreign = tls.set_credentials(foreign.chain, foreign.key).unwrap_err();
    assert_eq!(foreign.reason(), "certificate");
    let (dialled, _) = meet(&tls, &node(&authority, "b"), "b").await;
    assert!(dialled.is_ok(), "the old one stays");
}

#[tokio::test]
async fn without_svid_or_bundle_nothing_is_begun() {
    let authority = Authority::new();
    let (fresh, b) = (SessionTls::new(clock()), node(&authority, "b"));
    let dialled = fresh
        .dial("127.0.0.1:1".parse().unwrap(), &node_id("b"))
        .await;
    let accepted = speak(&fresh, &[]).await;
    assert_eq!(dialled.err(), Some(TlsError::NotReady("trust bundle")));
    assert_eq!(accepted.0.err(), Some(TlsError::NotReady("trust bundle")));
    assert!(b.failures().is_empty());
}

#[tokio::test]
async fn a_client_without_post_quantum_key_exchange_is_refused() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let mut provider = (*config::provider()).clone();
    provider.kx_groups = vec![kx_group::X25519];
    let (client, accepted) = stranger(&b, client_config(&authority, Arc::new(provider))).await;
    assert!(client.is_err());
    assert_eq!(accepted.err().unwrap().reason(), "handshake");

    let mut provider = (*config::provider()).clone();
    provider.kx_groups = vec![kx_group::X25519, kx_group::X25519MLKEM768];
    let (client, accepted) = stranger(&b, client_config(&authority, Arc::new(provider))).await;
    assert!(accepted.is_ok());
    let client = client.unwrap();
    let group = client
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .unwrap()
        .name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_refused() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let mut hello = vec![3, 3];
    hello.extend([9; 32]); // random
    hello.push(0); // no session
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    hello.extend([1, 0]); // no compression
    let extensions = [
        [0, 10, 0, 4, 0, 2, 0, 29].as_slice(), // supported_groups: x25519
        &[0, 13, 0, 4, 0, 2, 4, 3],            // signature_algorithms
    ]
    .concat();
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    let (accepted, answer) = speak(&b, &record).await;
    let error = accepted.err().unwrap();
    assert_eq!(error.reason(), "handshake", "{error}");
    assert_eq!(
        answer,
        [21, 3, 3, 0, 2, 2, 70],
        "a fatal alert: protocol_version"
    );
}

#[tokio::test]
async fn a_client_that_names_no_application_or_another_is_refused() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let mut client = client_config(&authority, config::provider());
        client.alpn_protocols = protocols;
        let (_, accepted) = stranger(&b, client).await;
        assert_eq!(accepted.err().unwrap().reason(), "handshake");
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let judge = Arc::new(Judge::new(Arc::new(authority.verifier()), None));
    let mut client = ClientConfig::builder_with_provider(config::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    let (_, accepted) = stranger(&b, client).await;
    assert_eq!(accepted.err().unwrap().reason(), "handshake");
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let resumption = Resumption::in_memory_sessions(8);
    for _ in 0..2 {
        let mut client = client_config(&authority, config::provider());
        client.resumption = resumption.clone();
        client.enable_early_data = true;
        let (client, accepted) = stranger(&b, client).await;
        accepted.unwrap().writer.close("next".into());
        let mut client = client.unwrap();
        let _ = client.read_to_end(&mut Vec::new()).await;
        assert_eq!(
            client.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn garbage_is_named_counted_and_cheap() {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let garbage = [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &[0; 600],
        &[0xff; 20_000],
    ];
    for bytes in garbage {
        let (accepted, answer) = speak(&b, bytes).await;
        assert_eq!(accepted.err().unwrap().reason(), "garbage");
        assert!(answer.len() < 16, "at most an alert");
    }
    assert_eq!(b.failures(), BTreeMap::from([("garbage", 3)]));
}

#[tokio::test]
async fn somebody_slow_is_cut_off_and_cannot_take_all_places() {
    let authority = Authority::new();
    let b = Arc::new(node(&authority, "b"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let begun = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..9 {
        let mut socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, b) = (listener.accept().await.unwrap().0, b.clone());
        tokio::spawn(async move {
            // A record of TLS that never ends.
            let drops = [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1));
            for drop in drops {
                if socket.write_all(&[drop]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        waiting.push(tokio::spawn(async move { b.accept(accepted).await }));
    }
    for accepted in waiting {
        assert!(accepted.await.unwrap().is_err());
    }
    assert!(begun.elapsed() < HANDSHAKE_TIMEOUT + Duration::from_secs(30));
    assert_eq!(
        b.failures(),
        BTreeMap::from([("busy-address", 1), ("handshake-timeout", 8)])
    );
}

/// A raw TLS client that has been accepted: it can say what it likes.
async fn accepted_stranger() -> (tokio_rustls::client::TlsStream<TcpStream>, Connection) {
    let authority = Authority::new();
    let b = node(&authority, "b");
    let (client, accepted) = stranger(&b, client_config(&authority, config::provider())).await;
    (client.unwrap(), accepted.unwrap())
}

#[tokio::test]
async fn a_node_that_sends_garbage_is_told_so_and_closed() {
    let garbage: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 3, 8, 0xe7, 7],
        &[0, 0, 0, 2, 0xff, 0xff],
    ];
    for bytes in garbage {
        let (mut client, mut accepted) = accepted_stranger().await;
        client.write_all(bytes).await.unwrap();
        let error = accepted.reader.next().await.unwrap_err();
        assert_eq!(error.reason(), "bad-frame", "{error}");
        assert_eq!(accepted.writer.send(&Frame::Ping), Err(error.clone()));
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        let goodbye = Frame::Goodbye {
            reason: error.to_string().as_str().into(),
        };
        assert_eq!(Frame::decode(&answer[4..]), Ok(Some(goodbye)));
    }
}

#[tokio::test]
async fn a_frame_larger_than_allowed_is_refused_by_its_length_alone() {
    let (mut client, mut accepted) = accepted_stranger().await;
    client.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let error = accepted.reader.next().await;
    assert_eq!(
        error,
        Err(TlsError::Frame(FrameError::TooLarge(u32::MAX as usize)))
    );
}

#[tokio::test]
async fn an_unknown_optional_frame_is_skipped() {
    let (mut client, mut accepted) = accepted_stranger().await;
    client
        .write_all(&[0, 0, 0, 5, 8, 0xe7, 7, 16, 1])
        .await
        .unwrap();
    client
        .write_all(&Frame::Ping.encode().unwrap())
        .await
        .unwrap();
    assert_eq!(accepted.reader.next().await, Ok(Frame::Ping));
}

#[tokio::test]
async fn a_frame_that_is_begun_and_not_finished_ends_the_session() {
    let (mut client, mut accepted) = accepted_stranger().await;
    client.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    assert_eq!(accepted.reader.next().await, Err(TlsError::SlowFrame));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed_and_holds_nobody_up() {
    let (dialled, mut accepted) = session().await;
    let frame = Frame::DenyList {
        bytes: vec![5; MAX_DENY_LIST],
        more: false,
    };
    let begun = Instant::now();
    let error = loop {
        if let Err(error) = dialled.writer.send(&frame) {
            break error;
        }
        // What the kernel takes leaves the queue; then it fills.
        tokio::task::yield_now().await;
        assert!(begun.elapsed() < Duration::from_secs(60));
    };
    assert_eq!(error.reason(), "slow-peer");
    assert_eq!(dialled.writer.send(&Frame::Ping), Err(error));
    drop(dialled);
    let last = loop {
        match accepted.reader.next().await {
            Ok(frame) => assert_ne!(frame, Frame::Ping),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(last, TlsError::Closed | TlsError::Lost(_)),
        "{last}"
    );
}
