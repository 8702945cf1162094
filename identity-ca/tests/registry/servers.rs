//! Two servers on one PostgreSQL: what one is told the other's agents hear, and an outage loses nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use handfast_ca::authority;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::{Admin, TokenRequest};
use handfast_ca::client::{AgentClient, Joined, Section, SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::model::Subject;
use handfast_ca::server::{DEFAULT_PORT, Options, Server};
use handfast_ca::token::JoinToken;
use handfast_ca::verify::Verifier;
use tokio::task::JoinHandle;

use super::common::postgres::Postgres;
use super::common::{next, setup};
use super::entries::wanted;

/// For what happens within moments on a machine that has nothing else to do.
const LONG: Duration = Duration::from_secs(60);

struct One {
    admin: Admin,
    address: SocketAddr,
    running: JoinHandle<()>,
}

impl Drop for One {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn serve(folder: &Path, name: &str) -> One {
    let socket = folder.join(format!("{name}.sock"));
    let listen = super::common::address(&folder.join(name), DEFAULT_PORT);
    let options = Options::new(folder.join(name), listen, socket.clone());
    let server = Server::bind(&options).await.unwrap();
    let address = server.local_addr();
    let running = tokio::spawn(async move { server.run(std::future::pending()).await.unwrap() });
    One {
        admin: Admin::connect(&socket).await.unwrap(),
        address,
        running,
    }
}

/// East, and west with an issuing CA that east's root has signed.
async fn two(folder: &Path, url: &str) -> (One, One) {
    let mut east = first(folder, url).await;
    let west = second(folder, url, &mut east).await;
    (east, west)
}

async fn init(folder: &Path, name: &str, url: &str) {
    let mut wanted = setup(folder.join(name));
    wanted.server = name.to_owned();
    wanted.store = Some(url.to_owned());
    authority::init(&wanted).await.unwrap();
}

async fn first(folder: &Path, url: &str) -> One {
    init(folder, "east", url).await;
    serve(folder, "east").await
}

async fn second(folder: &Path, url: &str, east: &mut One) -> One {
    init(folder, "west", url).await;
    let west = folder.join("west");
    let request = authority::request(&west).await.unwrap();
    let certificate = east.admin.sign_issuing("west", request).await.unwrap();
    authority::install(&west, &certificate).await.unwrap();
    serve(folder, "west").await
}

async fn token(server: &mut One, name: &str, prefix: &str) -> JoinToken {
    let order = TokenRequest {
        node: name.parse().unwrap(),
        prefixes: vec![prefix.parse().unwrap()],
        underlay: vec!["192.0.2.10".to_owned()],
        ca_address: server.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    server.admin.create_token(&order).await.unwrap()
}

async fn join(server: &mut One, name: &str, prefix: &str) -> Joined {
    let token = token(server, name, prefix).await;
    handfast_ca::client::join(&token).await.unwrap()
}

async fn connect(address: SocketAddr, joined: &Joined) -> AgentClient {
    let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
    AgentClient::connect(&address.to_string(), &verifier, &joined.identity)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_is_told_the_agents_of_the_other_hear_at_once() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (mut east, mut west) = two(folder.path(), &postgres.url("handfast")).await;
    let joined = join(&mut west, "web1", "10.1.0.0/24").await;
    let agent = connect(west.address, &joined).await;
    let mut updates = agent.updates().await.unwrap();
    let first = next(&mut updates).await;
    let mut last = first.sequence;

    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let since = Instant::now();
        let made = east.admin.create_entry(&wanted(&format!("w{round}"))).await;
        let made = made.unwrap();
        loop {
            let update = next(&mut updates).await;
            assert!(update.sequence >= last, "never backwards");
            last = update.sequence;
            if update
                .entries
                .is_some_and(|entries| entries.named().contains(&made))
            {
                break;
            }
        }
        slowest = slowest.max(since.elapsed());
    }
    println!("from one server to an agent of the other: {slowest:?} at worst");

    // The other way, and deletions too.
    let ids: Vec<String> = west
        .admin
        .entries()
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.id.clone())
        .collect();
    west.admin
        .delete_entries(&ids[..10], "a test")
        .await
        .unwrap();
    let waiting = Instant::now();
    while east.admin.entries().await.unwrap().len() != 10 {
        assert!(waiting.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Agents are told of both, and either will do.
    let servers = east.admin.servers().await.unwrap();
    let addresses: BTreeSet<String> = servers
        .iter()
        .map(|server| server.address.clone())
        .collect();
    let both = BTreeSet::from([east.address.to_string(), west.address.to_string()]);
    assert_eq!(addresses, both);
    let told = next(
        &mut connect(west.address, &joined)
            .await
            .updates()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(
        told.servers.unwrap().into_iter().collect::<BTreeSet<_>>(),
        both
    );
    connect(east.address, &joined)
        .await
        .updates()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_server_get_the_revocation_lists_of_the_other_too() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (mut east, west) = two(folder.path(), &postgres.url("handfast")).await;
    let joined = join(&mut east, "web1", "10.1.0.0/24").await;
    let agent = connect(west.address, &joined).await;
    // West hears of the node a moment after east has taken it in.
    let waiting = Instant::now();
    let mut updates = loop {
        match agent.updates().await {
            Ok(updates) => break updates,
            Err(error) => assert!(waiting.elapsed() < LONG, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    while next(&mut updates)
        .await
        .crls
        .is_none_or(|lists| lists.len() < 2)
    {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_is_told_to_the_agents_of_the_others_at_once() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let url = postgres.url("handfast");
    let mut east = first(folder, &url).await;
    let joined = join(&mut east, "web1", "10.1.0.0/24").await;
    let agent = connect(east.address, &joined).await;
    let mut updates = agent.updates().await.unwrap();
    let told = next(&mut updates).await.servers.unwrap();
    assert_eq!(told, [east.address.to_string()]);
    let west = second(folder, &url, &mut east).await;
    let since = Instant::now();
    let told = loop {
        if let Some(servers) = next(&mut updates).await.servers {
            break servers;
        }
    };
    println!("told after {:?}", since.elapsed());
    assert!(told.contains(&west.address.to_string()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_one_server_made_is_deleted_at_the_other() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (mut east, mut west) = two(folder.path(), &postgres.url("handfast")).await;
    let lost = token(&mut east, "web1", "10.1.0.0/24").await;
    let kept = token(&mut east, "web1", "10.1.0.0/24").await;
    let deleted = west.admin.delete_tokens(&[lost.secret.id()], "lost").await;
    assert_eq!(deleted.unwrap().len(), 1);
    let error = handfast_ca::client::join(&lost).await.unwrap_err();
    assert!(error.to_string().contains("void: deleted: lost"), "{error}");
    handfast_ca::client::join(&kept).await.unwrap();
}

/// Makes entries at one server without a pause.
struct Writer {
    counts: Arc<Counts>,
    running: JoinHandle<Vec<String>>,
}

#[derive(Default)]
struct Counts {
    said: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Writer {
    fn start(name: &'static str, admin: &Admin) -> Self {
        let counts = Arc::<Counts>::default();
        let (mut admin, counted) = (admin.clone(), Arc::clone(&counts));
        let running = tokio::spawn(async move {
            let mut said = Vec::new();
            for number in 0.. {
                if counted.stop.load(Ordering::Relaxed) {
                    break;
                }
                let wanted = wanted(&format!("{name}-{number}"));
                match admin.create_entry(&wanted).await {
                    Ok(entry) => {
                        said.push(entry.id);
                        counted.said.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        counted.refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
            said
        });
        Self { counts, running }
    }

    fn refused(&self) -> usize {
        self.counts.refused.load(Ordering::Relaxed)
    }

    /// Waits until it has made more than it has now.
    async fn until_more(&self) {
        let (since, before) = (Instant::now(), self.counts.said.load(Ordering::Relaxed));
        while self.counts.said.load(Ordering::Relaxed) < before + 3 {
            assert!(since.elapsed() < LONG, "no entry is made");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it was told that is done.
    async fn end(self) -> Vec<String> {
        self.counts.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_under_load_loses_nothing_and_doubles_nothing() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let away = std::env::var("HANDFAST_TEST_OUTAGE_S").ok();
    let away = Duration::from_secs(away.and_then(|text| text.parse().ok()).unwrap_or(8));
    let folder = tempfile::tempdir().unwrap();
    let url = postgres.url("handfast");
    let (mut east, west) = two(folder.path(), &url).await;
    let joined = join(&mut east, "web1", "10.1.0.0/24").await;
    let agent = connect(east.address, &joined).await;
    let entry = east.admin.create_entry(&wanted("web")).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;

    let writers = [
        Writer::start("east", &east.admin),
        Writer::start("west", &west.admin),
    ];
    for writer in &writers {
        writer.until_more().await;
    }
    postgres.stop();
    let since = Instant::now();
    let mut serials = BTreeSet::new();
    while since.elapsed() < away || writers.iter().any(|writer| writer.refused() == 0) {
        assert!(since.elapsed() < away + LONG, "the outage is not felt");
        // SVIDs of workloads need no store.
        let request = SvidRequest {
            kind: SvidKind::Workload {
                entry_id: entry.id.clone(),
            },
            csr: PrivateKey::generate().unwrap().csr().unwrap(),
        };
        let svid = agent.issue(vec![request]).await.unwrap().remove(0).unwrap();
        assert!(serials.insert(svid.chain[0].to_vec()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    postgres.start_again();
    // Both go on by themselves.
    for writer in &writers {
        writer.until_more().await;
    }
    let mut said = BTreeSet::new();
    let mut refused = 0;
    for writer in writers {
        refused += writer.refused();
        for id in writer.end().await {
            assert!(said.insert(id), "said twice");
        }
    }
    // What west has done reaches east a little later.
    let waiting = Instant::now();
    let stored = loop {
        let stored = east.admin.entries().await.unwrap();
        let ids: BTreeSet<String> = stored.iter().map(|entry| entry.id.clone()).collect();
        if said.is_subset(&ids) {
            break stored;
        }
        assert!(
            waiting.elapsed() < LONG,
            "what was said to be done is not there"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let identities: BTreeSet<String> = stored
        .iter()
        .map(|entry| entry.spiffe_id.to_string())
        .collect();
    assert_eq!(identities.len(), stored.len(), "nothing is there twice");
    println!(
        "{} entries made, {refused} refused, {} stored",
        said.len(),
        stored.len()
    );

    // The stream has survived.
    let made = west
        .admin
        .clone()
        .create_entry(&wanted("after"))
        .await
        .unwrap();
    loop {
        let update = tokio::time::timeout(LONG, updates.next()).await;
        let update = update.unwrap().unwrap().unwrap();
        if update
            .entries
            .is_some_and(|entries| entries.named().contains(&made))
        {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_at_one_server_is_gone_at_the_other_and_its_tokens_are_void() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (mut east, mut west) = two(folder.path(), &postgres.url("handfast")).await;
    let joined = join(&mut west, "web1", "10.1.0.0/24").await;
    let gone = join(&mut west, "old1", "10.2.0.0/24").await;
    let agent = connect(west.address, &joined).await;
    let mut updates = agent.updates().await.unwrap();
    let of = |nodes: &[handfast_ca::model::Node]| -> Vec<String> {
        nodes.iter().map(|node| node.name.to_string()).collect()
    };
    let first = next(&mut updates).await.nodes.unwrap();
    assert_eq!(of(first.named()), ["old1", "web1"]);
    let subject = Subject::Node(gone.node.name.clone());
    east.admin.revoke(&subject, "a test").await.unwrap();
    let nodes = [gone.node.name.clone()];
    let deleted = east.admin.delete_nodes(&nodes, false, "a test").await;
    assert!(deleted.unwrap().is_empty());
    loop {
        if let Some(Section::All(all)) = next(&mut updates).await.nodes {
            assert_eq!(of(&all), ["web1"]);
            break;
        }
    }
    let listed = west.admin.tokens().await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|token| token.used_at_ms.is_some()));
    // What one server registers, the other keeps from what it gives.
    let overlapping = TokenRequest {
        node: "new1".parse().unwrap(),
        prefixes: vec!["10.1.0.0/25".parse().unwrap()],
        underlay: vec!["192.0.2.10".to_owned()],
        ca_address: east.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let refused = east.admin.create_token(&overlapping).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("of node web1"), "{refused}");
    join(&mut east, "new1", "10.2.0.0/24").await;
    assert_eq!(west.admin.status().await.unwrap().tokens_open, 0);
}
