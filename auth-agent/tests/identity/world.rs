//! A CA on loopback and nodes that joined it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::identity::{NodeStore, Standalone};
use handfast_agent::workload_api::{Attested, Material, Peer, Source, WorkloadState};
use handfast_ca::authority::{self, Setup};
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::model::Entry;
use handfast_ca::server::{Options, Server};
use spiffe::TrustDomain;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

pub struct Ca {
    pub folder: Arc<TempDir>,
    pub address: SocketAddr,
    pub admin: Admin,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), handfast_ca::Error>>,
}

impl Ca {
    pub async fn start() -> Self {
        let folder = Self::init().await;
        Self::serve(folder, 0).await
    }

    /// The folder of a new CA.
    pub async fn init() -> Arc<TempDir> {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let setup = Setup::new(
            folder.path().join("ca"),
            TrustDomain::new("example.org").unwrap(),
            vec!["10.0.0.0/8".parse().unwrap()],
        );
        authority::init(&setup).await.unwrap();
        folder
    }

    pub async fn serve(folder: Arc<TempDir>, port: u16) -> Self {
        let options = options(&folder, port);
        Self::serve_with(folder, options).await
    }

    pub async fn serve_with(folder: Arc<TempDir>, options: Options) -> Self {
        let server = Server::bind(&options).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let admin = Admin::connect(&options.admin_socket).await.unwrap();
        Self {
            folder,
            address,
            admin,
            stop,
            running,
        }
    }

    /// Stops as SIGTERM does; what it has stays in the folder.
    pub async fn stop(self) -> (Arc<TempDir>, u16) {
        self.stop.send(()).unwrap();
        drop(self.admin);
        self.running.await.unwrap().unwrap();
        (self.folder, self.address.port())
    }

    /// A node that has joined; its data folder is `name` in the CA's.
    pub async fn join(&mut self, name: &str, number: usize) -> Node {
        let order = TokenRequest {
            node: name.parse().unwrap(),
            prefixes: vec![format!("10.{number}.0.0/16").parse().unwrap()],
            underlay: vec![format!("192.0.2.{number}")],
            ca_address: self.address.to_string(),
            ttl: Duration::from_secs(600),
            joining: false,
        };
        let token = self.admin.create_token(&order).await.unwrap();
        let data = self.folder.path().join(name);
        let store = NodeStore::create(&data).unwrap();
        let joined = handfast_ca::client::join(&token).await.unwrap();
        store.save_joined(&token.ca_address, None, &joined).unwrap();
        Node {
            data,
            memory: memory(),
        }
    }

    /// An entry for processes of this user on a node.
    pub async fn entry(&mut self, path: &str, node: &str) -> Entry {
        self.admin.create_entry(&entry(path, node)).await.unwrap()
    }
}

/// On a loopback address of the folder's own: clients come from 127.0.0.1, so that none of them has taken the port of a
/// server that stops and comes back.
pub fn options(folder: &TempDir, port: u16) -> Options {
    let mut hasher = DefaultHasher::new();
    folder.path().hash(&mut hasher);
    let [one, two, three, ..] = hasher.finish().to_be_bytes();
    let address = [127, one.clamp(1, 250), two, three.clamp(1, 250)];
    Options::new(
        folder.path().join("ca"),
        SocketAddr::from((address, port)),
        folder.path().join("ca.sock"),
    )
}

pub fn entry(path: &str, node: &str) -> NewEntry {
    NewEntry {
        spiffe_id: format!("spiffe://example.org/{path}"),
        parent: Some(node.to_owned()),
        selectors: vec![format!("unix:uid:{}", nix::unistd::geteuid())],
        ..NewEntry::default()
    }
}

/// A joined node that can be started.
pub struct Node {
    pub data: PathBuf,
    pub memory: TempDir,
}

impl Node {
    pub fn start(&self) -> Standalone {
        let store = NodeStore::open(&self.data).unwrap();
        let folder = self.memory.path().join("svids");
        Standalone::start(store, Some(folder)).unwrap()
    }
}

/// Files of a kind in the folder where SVIDs are kept.
pub fn kept(folder: &Path, kind: &str) -> usize {
    let files = std::fs::read_dir(folder).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == kind))
        .count()
}

/// A folder that lies in the machine's memory.
fn memory() -> TempDir {
    tempfile::tempdir_in(Path::new("/dev/shm")).unwrap()
}

/// This process, connected to an agent as a workload is.
pub struct Workload {
    pub attested: Arc<Attested>,
    pub state: watch::Receiver<Arc<WorkloadState>>,
    _ends: (UnixStream, UnixStream),
}

impl Workload {
    pub async fn of(agent: &Standalone) -> Self {
        let ends = UnixStream::pair().unwrap();
        let peer = Arc::new(Peer::of(&ends.0).unwrap());
        let attested = agent.workloads().attest(&peer).await.unwrap();
        let state = agent.workloads().watch(&attested);
        Self {
            attested,
            state,
            _ends: ends,
        }
    }

    /// Waits until its state is as wanted, and returns what it has then.
    pub async fn until(&mut self, wanted: impl Fn(&WorkloadState) -> bool) -> Arc<WorkloadState> {
        let waiting = self.state.wait_for(|state| wanted(state));
        let reached = tokio::time::timeout(LONG, waiting).await;
        let reached = reached.map(|state| Arc::clone(&state.expect("the agent runs")));
        reached.unwrap_or_else(|_| panic!("still {:?}", self.state.borrow()))
    }

    /// Waits until it has exactly these identities, in this order.
    pub async fn until_ids(&mut self, paths: &[&str]) -> Material {
        let wanted: Vec<String> = paths
            .iter()
            .map(|path| format!("spiffe://example.org/{path}"))
            .collect();
        let state = self
            .until(|state| ids(state).is_some_and(|ids| ids == wanted))
            .await;
        material(&state)
    }
}

pub fn ids(state: &WorkloadState) -> Option<Vec<String>> {
    match state {
        WorkloadState::Ready(material) => Some(
            material
                .svids
                .iter()
                .map(|svid| svid.spiffe_id.to_string())
                .collect(),
        ),
        _ => None,
    }
}

pub fn material(state: &WorkloadState) -> Material {
    match state {
        WorkloadState::Ready(material) => material.clone(),
        other => panic!("no identities: {other:?}"),
    }
}
