//! An agent as the CA sees one: it takes updates in, replaces what hangs on retired authorities, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handfast_ca::bundle::{TrustBundle, sha256};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{AgentClient, Joined, NodeIdentity, SvidKind, SvidRequest, Update};
use handfast_ca::deny::DenyList;
use handfast_ca::verify::Verifier;
use rustls_pki_types::CertificateDer;
use tokio::task::JoinHandle;

pub type Chain = Vec<CertificateDer<'static>>;

/// An agent that runs until it is dropped.
pub struct Agent {
    pub name: String,
    pub held: Arc<Held>,
    running: JoinHandle<()>,
}

/// What it has.
pub struct Held {
    address: Mutex<String>,
    identity: Mutex<(Chain, PrivateKey)>,
    pub bundle: Mutex<TrustBundle>,
    pub svids: Mutex<BTreeMap<String, Chain>>,
    /// Cut off from the CA.
    pub away: AtomicBool,
    pub sequence: AtomicU64,
    pub last_error: Mutex<String>,
}

impl Agent {
    pub fn start(name: &str, address: String, joined: Joined) -> Self {
        let held = Arc::new(Held {
            address: Mutex::new(address),
            identity: Mutex::new((joined.identity.chain, joined.identity.key)),
            bundle: Mutex::new(joined.bundle),
            svids: Mutex::default(),
            away: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            last_error: Mutex::default(),
        });
        let running = tokio::spawn(run(Arc::clone(&held)));
        Self {
            name: name.to_owned(),
            held,
            running,
        }
    }

    pub fn cut(&self, away: bool) {
        self.held.away.store(away, Ordering::SeqCst);
    }

    /// The CA has come back at another address.
    pub fn moved(&self, address: String) {
        *self.held.address.lock().unwrap() = address;
    }

    /// Waits until it has SVIDs for so many entries.
    pub async fn has(&self, svids: usize) {
        eventually(&format!("{} has {svids} SVIDs", self.name), || {
            self.held.svids.lock().unwrap().len() >= svids
        })
        .await;
    }

    /// Every chain that it holds, its own first.
    pub fn chains(&self) -> Vec<Chain> {
        let own = self.held.identity.lock().unwrap().0.clone();
        let svids = self.held.svids.lock().unwrap();
        std::iter::once(own)
            .chain(svids.values().cloned())
            .collect()
    }

    pub fn verifier(&self) -> Verifier {
        Verifier::new(self.held.bundle.lock().unwrap().clone(), DenyList::empty())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn run(held: Arc<Held>) {
    loop {
        if !held.away.load(Ordering::SeqCst)
            && let Err(error) = connected(&held).await
        {
            *held.last_error.lock().unwrap() = error.to_string();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One life of a connection.
async fn connected(held: &Arc<Held>) -> Result<(), handfast_ca::Error> {
    let verifier = Verifier::new(held.bundle.lock().unwrap().clone(), DenyList::empty());
    let identity = {
        let own = held.identity.lock().unwrap();
        NodeIdentity {
            chain: own.0.clone(),
            key: PrivateKey::from_pkcs8(&own.1.to_pkcs8())?,
        }
    };
    let address = held.address.lock().unwrap().clone();
    let client = AgentClient::connect(&address, &verifier, &identity).await?;
    let mut updates = client.updates().await?;
    let mut knows = Knows::default();
    loop {
        if held.away.load(Ordering::SeqCst) {
            return Ok(());
        }
        let next = tokio::time::timeout(Duration::from_millis(50), updates.next()).await;
        match next {
            Err(_) => {}
            Ok(update) => match update? {
                None => return Ok(()),
                Some(update) => {
                    let problem = update.problems.first().cloned();
                    held.take(&mut knows, update);
                    renew(held, &knows, &client).await?;
                    let sequence = held.sequence.load(Ordering::SeqCst);
                    let problem = problem.as_deref();
                    client.acknowledge(sequence, problem, held.in_use()).await?;
                }
            },
        }
    }
}

#[derive(Default)]
struct Knows {
    entries: Vec<String>,
    retired: BTreeSet<String>,
}

impl Held {
    fn take(&self, knows: &mut Knows, update: Update) {
        if let Some(bundle) = update.bundle {
            *self.bundle.lock().unwrap() = bundle;
        }
        if let Some(entries) = update.entries {
            let known = std::mem::take(&mut knows.entries);
            knows.entries = entries.map(|entry| entry.id.clone()).onto(known);
        }
        if let Some(retired) = update.retired {
            knows.retired = retired.into_iter().collect();
        }
        self.sequence.store(update.sequence, Ordering::SeqCst);
    }

    fn in_use(&self) -> Vec<String> {
        let own = issuer(&self.identity.lock().unwrap().0);
        let svids = self.svids.lock().unwrap();
        let used: BTreeSet<String> = svids.values().map(issuer).chain([own]).collect();
        used.into_iter().collect()
    }
}

/// Asks for what is missing or hangs on what is to be left; takes it only if it verifies.
async fn renew(held: &Held, knows: &Knows, client: &AgentClient) -> Result<(), handfast_ca::Error> {
    let mut wanted = Vec::new();
    if knows
        .retired
        .contains(&issuer(&held.identity.lock().unwrap().0))
    {
        wanted.push(None);
    }
    {
        let svids = held.svids.lock().unwrap();
        let stale = |id: &&String| {
            svids
                .get(*id)
                .is_none_or(|chain| knows.retired.contains(&issuer(chain)))
        };
        wanted.extend(knows.entries.iter().filter(stale).cloned().map(Some));
    }
    let keys: Vec<PrivateKey> = wanted
        .iter()
        .map(|_| PrivateKey::generate())
        .collect::<Result<_, _>>()?;
    let mut requests = Vec::new();
    for (what, key) in wanted.iter().zip(&keys) {
        let kind = match what {
            None => SvidKind::Node,
            Some(id) => SvidKind::Workload {
                entry_id: id.clone(),
            },
        };
        requests.push(SvidRequest {
            kind,
            csr: key.csr()?,
        });
    }
    let verifier = Verifier::new(held.bundle.lock().unwrap().clone(), DenyList::empty());
    let answers = client.issue(requests).await?;
    for ((what, key), answer) in wanted.into_iter().zip(keys).zip(answers) {
        let Ok(svid) = answer else { continue };
        match what {
            None => {
                verifier.node(&svid.chain, now()).expect("a node SVID");
                *held.identity.lock().unwrap() = (svid.chain, key);
            }
            Some(id) => {
                verifier.workload(&svid.chain, now()).expect("an SVID");
                held.svids.lock().unwrap().insert(id, svid.chain);
            }
        }
    }
    Ok(())
}

/// What a chain hangs on, as agents report it.
pub fn issuer(chain: &Chain) -> String {
    data_encoding::HEXLOWER.encode(&sha256(&chain[1]))
}

pub(crate) use super::now;

/// Waits for something that others do.
pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within 30 s: {what}");
}

/// Every agent judges what every other one would show it, over and over.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    running: JoinHandle<(u64, Vec<String>)>,
}

impl Traffic {
    pub fn start(agents: &[Agent]) -> Self {
        let held: Vec<(String, Arc<Held>)> = agents
            .iter()
            .map(|agent| (agent.name.clone(), Arc::clone(&agent.held)))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let running = tokio::spawn(async move {
            let (mut judged, mut failed) = (0, Vec::new());
            while !stopping.load(Ordering::SeqCst) {
                for (from, asked) in &held {
                    let bundle = asked.bundle.lock().unwrap().clone();
                    let verifier = Verifier::new(bundle, DenyList::empty());
                    for (to, shown) in held.iter().filter(|(to, _)| to != from) {
                        let chains: Vec<Chain> =
                            shown.svids.lock().unwrap().values().cloned().collect();
                        for chain in chains {
                            judged += 1;
                            if let Err(rejection) = verifier.workload(&chain, now()) {
                                failed.push(format!("{from} of {to}: {rejection}"));
                            }
                        }
                        tokio::task::yield_now().await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            (judged, failed)
        });
        Self { stop, running }
    }

    /// Nothing failed, and there was something.
    pub async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let (judged, failed) = self.running.await.unwrap();
        assert!(
            failed.is_empty(),
            "{} of {judged}: {failed:?}",
            failed.len()
        );
        assert!(judged > 0);
    }
}
