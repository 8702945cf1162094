//! A CA on loopback in a folder of its own.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod offline;
pub mod postgres;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handfast_ca::authority::{self, Setup};
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::{self, AgentClient, Joined, Update, Updates};
use handfast_ca::deny::DenyList;
use handfast_ca::server::{Options, Server};
use handfast_ca::token::JoinToken;
use handfast_ca::verify::Verifier;
use spiffe::TrustDomain;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct Ca {
    pub folder: TempDir,
    pub address: SocketAddr,
    pub admin: Admin,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), handfast_ca::Error>>>,
}

impl Ca {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        authority::init(&setup(folder.path().join("ca")))
            .await
            .unwrap();
        Self::serve(folder, 0).await
    }

    pub async fn serve(folder: TempDir, port: u16) -> Self {
        let options = options(&folder, port);
        Self::serve_with(folder, options).await
    }

    pub async fn serve_with(folder: TempDir, options: Options) -> Self {
        let server = Server::bind(&options).await.unwrap();
        Self::run(folder, &options, server).await
    }

    /// Runs a server that is bound.
    pub async fn run(folder: TempDir, options: &Options, server: Server) -> Self {
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let admin = Admin::connect(&options.admin_socket).await.unwrap();
        Self {
            folder,
            address,
            admin,
            stop: Some(stop),
            running: Some(running),
        }
    }

    /// Stops it as SIGTERM does; gives back its folder.
    pub async fn stop(mut self) -> TempDir {
        self.stop.take().unwrap().send(()).unwrap();
        let running = self.running.take().unwrap();
        tokio::time::timeout(Duration::from_secs(60), running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.folder
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("ca/registry.sqlite")
    }

    pub fn order(&self, node: &str, prefix: &str) -> TokenRequest {
        TokenRequest {
            node: node.parse().unwrap(),
            prefixes: vec![prefix.parse().unwrap()],
            underlay: vec!["192.0.2.10".to_owned()],
            ca_address: self.address.to_string(),
            ttl: Duration::from_secs(600),
            joining: false,
        }
    }

    pub async fn token(&mut self, node: &str, prefix: &str) -> JoinToken {
        let order = self.order(node, prefix);
        self.admin.create_token(&order).await.unwrap()
    }

    pub async fn join(&mut self, node: &str, prefix: &str) -> Joined {
        let token = self.token(node, prefix).await;
        client::join(&token).await.unwrap()
    }

    pub async fn connect(&self, joined: &Joined) -> Result<AgentClient, handfast_ca::Error> {
        let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
        AgentClient::connect(&self.address.to_string(), &verifier, &joined.identity).await
    }

    pub async fn entry(&mut self, id: &str, parent: Option<&str>) -> handfast_ca::model::Entry {
        let entry = NewEntry {
            spiffe_id: id.to_owned(),
            parent: parent.map(ToOwned::to_owned),
            selectors: vec!["netns:web".to_owned()],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..NewEntry::default()
        };
        self.admin.create_entry(&entry).await.unwrap()
    }
}

pub fn setup(dir: PathBuf) -> Setup {
    Setup::new(
        dir,
        TrustDomain::new("example.org").unwrap(),
        vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
    )
}

/// A loopback address for what a test keeps in a folder: clients come from 127.0.0.1, so that none of them has taken
/// the port of a server that stops and comes back.
pub fn address(folder: &Path, port: u16) -> SocketAddr {
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    let [one, two, three, ..] = hasher.finish().to_be_bytes();
    SocketAddr::from(([127, one.clamp(1, 250), two, three.clamp(1, 250)], port))
}

pub fn options(folder: &TempDir, port: u16) -> Options {
    Options::new(
        folder.path().join("ca"),
        address(folder.path(), port),
        folder.path().join("run/ca.sock"),
    )
}

/// The next update. It comes within milliseconds; how many is measured elsewhere, and not on a machine that is busy.
pub async fn next(updates: &mut Updates) -> Update {
    let next = tokio::time::timeout(Duration::from_secs(30), updates.next());
    next.await
        .expect("an update")
        .unwrap()
        .expect("the stream goes on")
}

/// Why a stream ends; what was on its way comes before.
pub async fn end(updates: &mut Updates) -> handfast_ca::Error {
    let ended = async {
        loop {
            match updates.next().await {
                Ok(update) => drop(update.expect("it says why it ends")),
                Err(error) => return error,
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    ended.expect("the stream ends")
}
