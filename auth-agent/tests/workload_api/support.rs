//! A CA, a node that has joined it, and its Workload API: all real but the choice which entries a caller gets, which
//! the test makes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use handfast_agent::workload_api::client::{call, channel};
use handfast_agent::workload_api::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use handfast_agent::workload_api::proto::{X509svidRequest, X509svidResponse};
use handfast_agent::workload_api::{
    AttestError, Attested, BundleSet, Endpoint, JwtError, JwtSvid, Limits, Material, Peer, Source,
    WorkloadState, X509Svid, serve,
};
use handfast_ca::authority::{self, Setup};
use handfast_ca::bundle::TrustBundle;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::{self, AgentClient, SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::server::{Options, Server};
use handfast_ca::token::JoinToken;
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;
use spiffe::{SpiffeId, TrustDomain};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tonic::Streaming;
use tonic::transport::Channel;

pub type Calls = SpiffeWorkloadApiClient<Channel>;

/// A CA with a node that has joined.
pub struct Ca {
    _folder: TempDir,
    pub admin: Admin,
    pub agent: AgentClient,
    pub bundle: TrustBundle,
    /// Where agents reach it.
    pub address: String,
    _stop: oneshot::Sender<()>,
}

impl Ca {
    pub async fn start(trust_domain: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new(
            folder.path().join("ca"),
            TrustDomain::new(trust_domain).unwrap(),
            vec!["10.0.0.0/8".parse().unwrap()],
        );
        authority::init(&setup).await.unwrap();
        let socket = folder.path().join("run/ca.sock");
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options::new(setup.dir, listen, socket.clone());
        let server = Server::bind(&options).await.unwrap();
        let address = server.local_addr().to_string();
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let mut admin = Admin::connect(&socket).await.unwrap();
        let joined = client::join(&token(&mut admin, &address, "web1").await)
            .await
            .unwrap();
        let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
        let agent = AgentClient::connect(&address, &verifier, &joined.identity)
            .await
            .unwrap();
        Self {
            _folder: folder,
            admin,
            agent,
            bundle: joined.bundle,
            address,
            _stop: stop,
        }
    }

    /// A node's token.
    pub async fn token(&mut self, node: &str) -> JoinToken {
        token(&mut self.admin, &self.address, node).await
    }

    /// An entry for `id`; gives back its key in the registry.
    pub async fn entry(&mut self, id: &str) -> String {
        let entry = NewEntry {
            spiffe_id: id.to_owned(),
            selectors: vec![format!("unix:uid:{}", nix::unistd::geteuid())],
            dns_names: vec!["localhost".to_owned()],
            ..NewEntry::default()
        };
        self.admin.create_entry(&entry).await.unwrap().id
    }

    /// A new X509-SVID for an entry.
    pub async fn issue(&self, entry_id: &str, hint: &str) -> Arc<X509Svid> {
        let key = PrivateKey::generate().unwrap();
        let request = SvidRequest {
            kind: SvidKind::Workload {
                entry_id: entry_id.to_owned(),
            },
            csr: key.csr().unwrap(),
        };
        let svid = self
            .agent
            .issue(vec![request])
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        Arc::new(X509Svid {
            spiffe_id: svid.spiffe_id,
            chain: svid.chain,
            key: key.to_pkcs8(),
            hint: hint.to_owned(),
            not_after: svid.not_after,
        })
    }
}

async fn token(admin: &mut Admin, address: &str, node: &str) -> JoinToken {
    let order = TokenRequest {
        node: node.parse().unwrap(),
        prefixes: Vec::new(),
        underlay: Vec::new(),
        ca_address: address.to_owned(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    admin.create_token(&order).await.unwrap()
}

/// What the test gives to callers.
pub struct Desk {
    states: watch::Sender<Arc<WorkloadState>>,
    /// How long looking at a process takes.
    pub slowness: Mutex<Duration>,
    /// Who signs JWT-SVIDs, and for which entries.
    pub jwt: Mutex<Option<(AgentClient, Vec<String>)>>,
}

impl Desk {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            states: watch::Sender::new(Arc::new(WorkloadState::Initialising)),
            slowness: Mutex::default(),
            jwt: Mutex::default(),
        })
    }

    pub fn set(&self, state: WorkloadState) {
        self.states.send_replace(Arc::new(state));
    }

    pub fn give(&self, svids: Vec<Arc<X509Svid>>, own: TrustBundle) {
        self.give_with(svids, own, [], Vec::new());
    }

    pub fn give_with(
        &self,
        svids: Vec<Arc<X509Svid>>,
        own: TrustBundle,
        federated: impl IntoIterator<Item = TrustBundle>,
        crls: Vec<Vec<u8>>,
    ) {
        self.give_part(svids, own, federated, crls, true);
    }

    /// With others to come, if it is not the `whole`.
    pub fn give_part(
        &self,
        svids: Vec<Arc<X509Svid>>,
        own: TrustBundle,
        federated: impl IntoIterator<Item = TrustBundle>,
        crls: Vec<Vec<u8>>,
        whole: bool,
    ) {
        let federated: BTreeMap<_, _> = federated
            .into_iter()
            .map(|bundle| (bundle.trust_domain().clone(), bundle))
            .collect();
        self.set(WorkloadState::Ready(Material {
            svids,
            bundles: Arc::new(BundleSet { own, federated }),
            crls: Arc::new(crls),
            whole,
        }));
    }

    pub fn watchers(&self) -> usize {
        self.states.receiver_count()
    }
}

impl Source for Desk {
    fn attest<'a>(
        &'a self,
        peer: &'a Arc<Peer>,
    ) -> BoxFuture<'a, Result<Arc<Attested>, AttestError>> {
        let slowness = *self.slowness.lock().unwrap();
        Box::pin(async move {
            tokio::time::sleep(slowness).await;
            let selector = format!("unix:uid:{}", peer.uid());
            Ok(Arc::new(Attested {
                peer: Arc::clone(peer),
                selectors: vec![selector.parse().unwrap()],
                netns: None,
                endpoints: 0,
            }))
        })
    }

    fn watch(&self, _: &Arc<Attested>) -> watch::Receiver<Arc<WorkloadState>> {
        self.states.subscribe()
    }

    fn jwt_svids<'a>(
        &'a self,
        _: &'a Arc<Attested>,
        audiences: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> BoxFuture<'a, Result<Vec<JwtSvid>, JwtError>> {
        let signer = self.jwt.lock().unwrap().clone();
        Box::pin(async move {
            let (agent, entries) = signer.ok_or_else(|| JwtError::Unavailable("no CA".into()))?;
            let mut svids = Vec::new();
            for entry in entries {
                let issued = agent.issue_jwt(&entry, &audiences).await.unwrap().unwrap();
                if spiffe_id.as_ref().is_none_or(|id| *id == issued.spiffe_id) {
                    svids.push(JwtSvid {
                        spiffe_id: issued.spiffe_id,
                        token: issued.token,
                        hint: String::new(),
                        not_after: issued.not_after,
                    });
                }
            }
            Ok(svids)
        })
    }

    fn now(&self) -> UnixTime {
        UnixTime::now()
    }

    fn denies(&self, _: &SpiffeId) -> bool {
        false
    }
}

/// A running endpoint with its desk.
pub struct Node {
    pub folder: TempDir,
    pub desk: Arc<Desk>,
    pub endpoint: Endpoint,
}

impl Node {
    pub fn start() -> Self {
        Self::start_with(Limits::default())
    }

    pub fn start_with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let desk = Desk::new();
        let path = folder.path().join("run/agent.sock");
        let endpoint = serve(&path, Arc::clone(&desk) as Arc<dyn Source>, limits).unwrap();
        Self {
            folder,
            desk,
            endpoint,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.endpoint.path().to_owned()
    }

    pub async fn calls(&self) -> Calls {
        SpiffeWorkloadApiClient::new(channel(&self.path()).await.unwrap())
    }

    /// An open stream of X509-SVIDs.
    pub async fn x509(&self) -> Streaming<X509svidResponse> {
        let call = call(X509svidRequest {});
        self.calls()
            .await
            .fetch_x509svid(call)
            .await
            .unwrap()
            .into_inner()
    }
}

/// The next message; a machine may be slow.
pub async fn next<T>(stream: &mut Streaming<T>) -> Result<T, tonic::Status> {
    let next = tokio::time::timeout(Duration::from_secs(30), stream.message());
    next.await
        .expect("a message within thirty seconds")
        .map(|message| message.expect("the stream goes on"))
}

/// A CA, an endpoint, and two identities that callers have.
pub async fn ready() -> (Ca, Node, Vec<Arc<X509Svid>>) {
    let mut ca = Ca::start("example.org").await;
    let node = Node::start();
    let web = ca.entry("spiffe://example.org/web").await;
    let api = ca.entry("spiffe://example.org/api").await;
    let svids = vec![ca.issue(&web, "web").await, ca.issue(&api, "api").await];
    node.desk.give(svids.clone(), ca.bundle.clone());
    *node.desk.jwt.lock().unwrap() = Some((ca.agent.clone(), vec![web, api]));
    (ca, node, svids)
}

/// Asks again until the answer is yes; a machine may be slow.
pub async fn until<F: Future<Output = bool>>(what: &str, mut asked: impl FnMut() -> F) {
    let begun = std::time::Instant::now();
    while !asked().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
