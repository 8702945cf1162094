//! What one caller may take for himself: of connections, of the audit log, of memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Ca, next};
use futures::StreamExt;
use handfast_ca::Error;
use handfast_ca::audit::{Filter, Record};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{
    self, AgentClient, Attestation, CaTrust, Refusal, SvidKind, SvidRequest,
};
use spiffe::TrustDomain;
use tokio::net::{TcpSocket, TcpStream};

/// Connections of a node, and handshakes of an address.
const OF_A_NODE: usize = 16;
const HANDSHAKES_EACH: usize = 512;

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

/// As many files as the machine allows: both ends of all connections are in this process.
fn many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Connections from an address of this machine that say nothing.
async fn silent(from: [u8; 4], to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        silent.push(socket.connect(to).await.unwrap());
    }
    silent
}

/// How many of them the other side has closed.
fn closed(some: &[TcpStream]) -> usize {
    let closed = some.iter().filter(|tcp| {
        let read = tcp.try_read(&mut [0; 1]);
        !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    closed.count()
}

/// Waits, for less than a handshake may take, until so many are closed.
async fn until_closed(some: &[TcpStream], count: usize) {
    for _ in 0..90 {
        if closed(some) >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} of {count} are closed", closed(some));
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_keep_no_agent_out() {
    many_files();
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let late = ca.join("db1", "10.2.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    // One address gets no more than half of the room.
    let one = silent([127, 0, 9, 1], ca.address, HANDSHAKES_EACH + 3).await;
    until_closed(&one, 3).await;
    // Another takes the rest: who comes then gets a place of theirs.
    let other = silent([127, 0, 9, 2], ca.address, HANDSHAKES_EACH).await;
    assert_eq!(closed(&one), 3);
    let late = ca.connect(&late).await.unwrap();
    next(&mut late.updates().await.unwrap()).await;
    ca.entry("spiffe://example.org/web", None).await;
    next(&mut updates).await;
    drop((one, other, updates));
    ca.stop().await;
}

fn request(entry: &str, csr: &[u8]) -> SvidRequest {
    SvidRequest {
        kind: SvidKind::Workload {
            entry_id: entry.to_owned(),
        },
        csr: csr.to_vec(),
    }
}

/// Asks for so many SVIDs; says how many came, and what was said of the others.
async fn issue(agent: &AgentClient, entry: &str, count: usize) -> (usize, Vec<Refusal>) {
    let csr = PrivateKey::generate().unwrap().csr().unwrap();
    let requests = (0..count).map(|_| request(entry, &csr)).collect();
    let answers = agent.issue(requests).await.unwrap();
    let refusals: Vec<Refusal> = answers.into_iter().filter_map(Result::err).collect();
    (count - refusals.len(), refusals)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_its_entries_account_for_and_takes_nothing_from_others() {
    let mut ca = Ca::start().await;
    let taken_over = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let web = ca.entry("spiffe://example.org/web", Some("web1")).await;
    let db = ca.entry("spiffe://example.org/db", Some("db1")).await;
    let (agent, bystander) = (
        ca.connect(&taken_over).await.unwrap(),
        ca.connect(&other).await.unwrap(),
    );
    let (came, refusals) = issue(&agent, &web.id, 500).await;
    // 256, 20 for the entry, and what an hour brings back while this runs.
    assert!((276..300).contains(&came), "{came}");
    let refusal = refusals.first().unwrap();
    assert_eq!(refusal.code, tonic::Code::ResourceExhausted);
    assert!(
        refusal.message.contains("node web1 has used up"),
        "{refusal}"
    );
    assert_eq!(issue(&bystander, &db.id, 50).await.0, 50);
    // Nor are refusals more than a few lines.
    let written = refusals_of(&mut ca, "svid.issue", "web1").await;
    assert!((1..=10).contains(&written), "{written}");

    // What an operator adds is had at once.
    let more = ca.entry("spiffe://example.org/more", Some("web1")).await;
    let mut came = 0;
    for _ in 0..100 {
        came += issue(&agent, &more.id, 1).await.0;
        if came > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(came, 1);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_so_many_tokens_and_others_get_theirs() {
    let mut ca = Ca::start().await;
    let taken_over = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let web = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&taken_over).await.unwrap();
    let audience = ["someone".to_owned()];
    let asked = futures::stream::iter(0..1200).map(|_| agent.issue_jwt(&web.id, &audience));
    let answers: Vec<_> = asked.buffer_unordered(32).collect().await;
    let came = answers.iter().filter(|answer| answer.is_ok()).count();
    // 512, and 304 for the entry.
    assert!((816..1000).contains(&came), "{came}");
    for refused in answers.into_iter().filter_map(Result::err) {
        let text = refused.to_string();
        assert!(
            text.contains("node web1 has used up its JWT-SVIDs"),
            "{text}"
        );
    }
    let written = refusals_of(&mut ca, "jwt.issue", "web1").await;
    assert!((1..=10).contains(&written), "{written}");
    let bystander = ca.connect(&other).await.unwrap();
    bystander
        .issue_jwt(&web.id, &audience)
        .await
        .unwrap()
        .unwrap();
    ca.stop().await;
}

/// Lines of the audit log that tell of refusals of a node.
async fn refusals_of(ca: &mut Ca, act: &str, node: &str) -> usize {
    let of_it = |record: &&Record| record.by.ends_with(node);
    refusals(ca, act).await.iter().filter(of_it).count()
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
