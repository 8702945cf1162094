//! One trust domain: a CA that federates, a node of it, and a workload there with a real SVID.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handfast_ca::authority;
use handfast_ca::bundle::{TrustBundle, pem, sha256};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::federation::NewFederation;
use handfast_ca::client::{AgentClient, SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::federation::FederationConfig;
use handfast_ca::server::{Options, Server};
use handfast_ca::verify::{Domains, Verifier};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tempfile::TempDir;

use super::common::{Ca, options, setup};

pub const HINT: Duration = Duration::from_secs(1);

/// A certificate of a Web PKI of our own, and its root: three PEM files.
pub struct WebPki {
    _folder: TempDir,
    pub roots: PathBuf,
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl WebPki {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Self {
            roots: write("roots.pem", &pem("CERTIFICATE", issuer.der())),
            chain: write("chain.pem", &pem("CERTIFICATE", leaf.der())),
            key: write("key.pem", &key.serialize_pem()),
            _folder: folder,
        }
    }
}

/// A CA whose bundle endpoint is open.
pub struct Side {
    pub ca: Ca,
    pub domain: &'static str,
    pub port: u16,
    config: FederationConfig,
}

impl Side {
    /// With a certificate of the Web PKI at its endpoint, or its own SVID.
    pub async fn start(domain: &'static str, web: &WebPki, shows_web: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = setup(folder.path().join("ca"));
        setup.trust_domain = TrustDomain::new(domain).unwrap();
        authority::init(&setup).await.unwrap();
        let config = FederationConfig {
            endpoint: Some(([127, 0, 0, 1], 0).into()),
            web_certificate: shows_web.then(|| (web.chain.clone(), web.key.clone())),
            refresh_hint: HINT,
            shortest_refresh: HINT,
            web_roots: Some(web.roots.clone()),
        };
        Self::serve(folder, domain, config).await
    }

    async fn serve(folder: TempDir, domain: &'static str, config: FederationConfig) -> Self {
        let options = Options {
            federation: config.clone(),
            ..options(&folder, 0)
        };
        let server = Server::bind(&options).await.unwrap();
        let port = server.bundle_endpoint().unwrap().port();
        let ca = Ca::run(folder, &options, server).await;
        Self {
            ca,
            domain,
            port,
            config,
        }
    }

    /// The CA stops and starts again.
    pub async fn restart(self) -> Self {
        let folder = self.ca.stop().await;
        Self::serve(folder, self.domain, self.config).await
    }

    pub async fn bundle(&mut self) -> TrustBundle {
        self.ca.admin.bundle().await.unwrap()
    }

    /// What is known here of another trust domain.
    pub async fn known(&mut self, domain: &str) -> Option<TrustBundle> {
        self.ca.admin.federation(domain).await.unwrap().bundle
    }

    pub async fn federate_by_web(&mut self, other: &Side) {
        let new = NewFederation {
            trust_domain: other.domain.to_owned(),
            url: format!("https://localhost:{}/", other.port),
            profile: "https_web".to_owned(),
            ..NewFederation::default()
        };
        self.ca.admin.create_federation(new).await.unwrap();
    }

    pub async fn federate_by_spiffe(&mut self, other: &mut Side) {
        let new = NewFederation {
            trust_domain: other.domain.to_owned(),
            url: format!("https://127.0.0.1:{}/", other.port),
            profile: "https_spiffe".to_owned(),
            endpoint_spiffe_id: format!("spiffe://{}/handfast/ca", other.domain),
            bundle: Some(other.bundle().await),
        };
        self.ca.admin.create_federation(new).await.unwrap();
    }

    /// A workload that knows the other trust domain's.
    pub async fn workload(&mut self, federates_with: &str) -> Workload {
        let joined = self.ca.join("n1", "10.1.0.0/24").await;
        let entry = NewEntry {
            spiffe_id: format!("spiffe://{}/web", self.domain),
            selectors: vec!["netns:web".to_owned()],
            federates_with: vec![federates_with.to_owned()],
            ..NewEntry::default()
        };
        let entry = self.ca.admin.create_entry(&entry).await.unwrap();
        let agent = self.ca.connect(&joined).await.unwrap();
        let held = Arc::new(Mutex::new(Held {
            bundle: joined.bundle,
            federated: Vec::new(),
            svid: issue(&agent, &entry.id).await,
        }));
        let running = tokio::spawn(follow(agent, entry.id, Arc::clone(&held)));
        Workload { held, running }
    }
}

/// What a workload has from its Workload API.
pub struct Held {
    bundle: TrustBundle,
    federated: Vec<Arc<TrustBundle>>,
    svid: Svid,
}

pub type Svid = (Vec<CertificateDer<'static>>, Arc<PrivateKey>);

pub struct Workload {
    held: Arc<Mutex<Held>>,
    running: tokio::task::JoinHandle<()>,
}

impl Workload {
    pub fn svid(&self) -> Svid {
        self.held.lock().unwrap().svid.clone()
    }

    pub fn domains(&self) -> Domains {
        let held = self.held.lock().unwrap();
        let own = Verifier::new(held.bundle.clone(), DenyList::empty());
        Domains::new(own, held.federated.iter().cloned())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn issue(agent: &AgentClient, entry_id: &str) -> Svid {
    let key = PrivateKey::generate().unwrap();
    let request = SvidRequest {
        kind: SvidKind::Workload {
            entry_id: entry_id.to_owned(),
        },
        csr: key.csr().unwrap(),
    };
    let svid = agent.issue(vec![request]).await.unwrap().remove(0).unwrap();
    (svid.chain, Arc::new(key))
}

/// What an agent does: takes in what it is told, replaces what is retired, says so.
async fn follow(agent: AgentClient, entry_id: String, held: Arc<Mutex<Held>>) {
    let mut updates = agent.updates().await.unwrap();
    while let Ok(Some(update)) = updates.next().await {
        let mut chain = held.lock().unwrap().svid.0.clone();
        if let Some(bundle) = update.bundle {
            held.lock().unwrap().bundle = bundle;
        }
        if let Some(federated) = update.federated {
            held.lock().unwrap().federated = federated.into_iter().map(Arc::new).collect();
        }
        if update
            .retired
            .is_some_and(|retired| retired.contains(&issuer(&chain)))
        {
            let svid = issue(&agent, &entry_id).await;
            chain = svid.0.clone();
            held.lock().unwrap().svid = svid;
        }
        let in_use = [issuer(&chain)];
        agent
            .acknowledge(update.sequence, None, in_use.to_vec())
            .await
            .unwrap();
    }
}

pub fn issuer(chain: &[CertificateDer<'_>]) -> String {
    sha256(&chain[1])
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
