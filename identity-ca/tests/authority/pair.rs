//! Servers that share a PostgreSQL, each with what is asked of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use handfast_ca::authority::{self, Setup};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::{AgentClient, Joined, SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::server::{Health, Options, Server};
use handfast_ca::verify::Verifier;
use tokio::task::JoinHandle;

use super::common::setup;

pub struct One {
    pub admin: Admin,
    pub address: SocketAddr,
    pub health: Health,
    running: JoinHandle<()>,
}

impl Drop for One {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl One {
    /// Ends it, and waits until its folder is free.
    pub async fn stop(mut self) {
        self.running.abort();
        let _ = (&mut self.running).await;
    }
}

pub fn options(folder: &Path, name: &str) -> Options {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Options::new(
        folder.join(name),
        listen,
        folder.join(format!("{name}.sock")),
    )
}

pub async fn serve(options: &Options) -> One {
    let server = Server::bind(options).await.unwrap();
    let (address, health) = (server.local_addr(), server.health());
    let running = tokio::spawn(async move { server.run(std::future::pending()).await.unwrap() });
    One {
        admin: Admin::connect(&options.admin_socket).await.unwrap(),
        address,
        health,
        running,
    }
}

pub fn wanted(folder: &Path, name: &str, url: &str) -> Setup {
    let mut wanted = setup(folder.join(name));
    wanted.server = name.to_owned();
    wanted.store = Some(url.to_owned());
    wanted
}

/// Gives `west` its first issuing CA, which `east` signs.
pub async fn vouch(east: &mut One, folder: &Path, west: &str) {
    let dir = folder.join(west);
    let request = authority::request(&dir).await.unwrap();
    let certificate = east.admin.sign_issuing(west, request).await.unwrap();
    authority::install(&dir, &certificate).await.unwrap();
}

pub async fn join(server: &mut One, name: &str, prefix: &str) -> Joined {
    let order = TokenRequest {
        node: name.parse().unwrap(),
        prefixes: vec![prefix.parse().unwrap()],
        underlay: vec!["192.0.2.10".to_owned()],
        ca_address: server.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let token = server.admin.create_token(&order).await.unwrap();
    handfast_ca::client::join(&token).await.unwrap()
}

pub async fn connect(
    address: SocketAddr,
    joined: &Joined,
) -> Result<AgentClient, handfast_ca::Error> {
    let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
    AgentClient::connect(&address.to_string(), &verifier, &joined.identity).await
}

pub async fn entry(admin: &mut Admin, name: &str) -> String {
    let entry = NewEntry {
        spiffe_id: format!("spiffe://example.org/{name}"),
        selectors: vec!["netns:web".to_owned()],
        ..NewEntry::default()
    };
    admin.create_entry(&entry).await.unwrap().id
}

/// Asks for a workload's SVID: the serial bytes of what came, or why nothing did.
pub async fn svid(agent: &AgentClient, entry: &str) -> Result<(), String> {
    let request = SvidRequest {
        kind: SvidKind::Workload {
            entry_id: entry.to_owned(),
        },
        csr: PrivateKey::generate().unwrap().csr().unwrap(),
    };
    let answers = agent.issue(vec![request]).await;
    let answer = answers.map_err(|error| error.to_string())?.remove(0);
    answer.map(drop).map_err(|refusal| refusal.message)
}

/// Waits for what takes at most `seconds` where nothing else runs, ten times as long if need be; says how long it took.
pub async fn within(seconds: u64, what: &str, mut is: impl AsyncFnMut() -> bool) -> Duration {
    let since = std::time::Instant::now();
    while !is().await {
        assert!(
            since.elapsed() < Duration::from_secs(10 * seconds),
            "not within ten times {seconds} s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    since.elapsed()
}
