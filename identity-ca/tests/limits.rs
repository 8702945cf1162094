//! What one caller may take for himself: of connections, of the audit log, of memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::time::Duration;

use common::{Ca, next};
use handfast_ca::Error;
use handfast_ca::audit::{Filter, Record};
use handfast_ca::client::{self, Attestation, CaTrust};
use spiffe::TrustDomain;
use tokio::net::TcpStream;

/// `MAX_KNOWN` and `MAX_GREETED` of the server.
const OF_A_NODE: usize = 16;
const HANDSHAKES: usize = 64;

async fn refusals(ca: &mut Ca, act: &str) -> Vec<Record> {
    let filter = Filter {
        act: Some(act.to_owned()),
        refused: true,
        ..Filter::default()
    };
    let mut records = Vec::new();
    let take = |record| {
        records.push(record);
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_joins_is_a_few_lines_of_the_audit_log_and_a_number() {
    let mut ca = Ca::start().await;
    let good = ca.token("web1", "10.1.0.0/24").await;
    let text = good.to_text().unwrap();
    let text = text.replace(good.secret.expose(), "hfjoin1_invented");
    let invented = handfast_ca::token::JoinToken::parse(&text).unwrap();
    for _ in 0..30 {
        let refused = client::join(&invented).await.unwrap_err().to_string();
        assert!(refused.contains("has not made it"), "{refused}");
    }
    assert_eq!(refusals(&mut ca, "node.join").await.len(), 10);
    // Whoever has a good one is let in all the same, and written down.
    client::join(&good).await.unwrap();

    // The others are a number, at the latest when the server stops.
    let port = ca.address.port();
    let folder = ca.stop().await;
    let mut ca = Ca::serve(folder, port).await;
    let more = refusals(&mut ca, "calls.refused").await;
    assert_eq!(more.len(), 1);
    assert_eq!(
        (more[0].by.as_str(), more[0].detail["count"].as_u64()),
        ("127.0.0.1", Some(20))
    );
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_so_many_connections_and_those_that_it_has_go_on() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let mut open = Vec::new();
    for _ in 0..OF_A_NODE {
        open.push(ca.connect(&joined).await.unwrap());
    }
    assert!(ca.connect(&joined).await.is_err(), "one more");
    ca.connect(&other).await.unwrap();
    let mut updates = open[0].updates().await.unwrap();
    next(&mut updates).await;
    // When one has ended another may come.
    drop(open.pop());
    let mut came = false;
    for _ in 0..100 {
        came |= ca.connect(&joined).await.is_ok();
        if came {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(came);
    drop((open, updates));
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_leaves_room_for_the_handshakes_of_others() {
    let ca = Ca::start().await;
    let port = ca.address.port();
    // They connect and say nothing.
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES + 1 {
        silent.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    // Well before the 10 s that a handshake may take one of them is closed, and no more.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let closed = silent.iter().filter(|tcp| {
        let read = tcp.try_read(&mut [0; 1]);
        !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(closed.count(), 1);
    drop(silent);
    ca.stop().await;
}

/// Claims more than fits.
struct Claims(usize);

impl Attestation for Claims {
    fn kind(&self) -> &str {
        "x509pop"
    }

    fn claim(&self) -> Result<Vec<u8>, Error> {
        Ok(vec![7; self.0])
    }

    fn answer(&self, _: &TrustDomain, _: &[u8], _: &[u8; 32]) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_joined_may_say_little_and_who_has_may_say_much() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let trust = CaTrust::Bundle(joined.bundle.clone());
    let address = ca.address.to_string();
    let refused = |size: usize| {
        let (address, trust) = (address.clone(), trust.clone());
        async move {
            let attested = client::attest(&address, &trust, &Claims(size)).await;
            attested.unwrap_err().to_string()
        }
    };
    let long = refused(100 << 10).await;
    assert!(long.contains("too large"), "{long}");
    let short = refused(1 << 10).await;
    assert!(!short.contains("too large"), "{short}");

    let agent = ca.connect(&joined).await.unwrap();
    let sequence = ca.admin.status().await.unwrap().sequence;
    let much = "x".repeat(1 << 20);
    agent.ack(sequence, Some(&much)).await.unwrap();
    ca.stop().await;
}
