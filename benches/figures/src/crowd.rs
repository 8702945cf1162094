//! Many agents at once: 800 streams and 40,000 SVIDs move to a new root, of a CA in a process of its own.
//!
//! Each agent does what the protocol asks of it, and no more: it takes updates in, asks for its SVIDs anew when their
//! issuer is retired, and says what they hang on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use handfast_agent::identity::authority_of;
use handfast_ca::authority::{self, Setup};
use handfast_ca::bundle::TrustBundle;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::client::{AgentClient, NodeIdentity, SvidKind, SvidRequest, Update, join};
use handfast_ca::deny::DenyList;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::token::JoinToken;
use handfast_ca::verify::Verifier;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::child::Process;
use crate::report::{Figure, Goal, figure};

/// What is measured; fewer to see whether it runs (`HANDFAST_CROWD=20`).
const AGENTS: usize = 800;
const FEWER: &str = "HANDFAST_CROWD";
const SVIDS: usize = 50;
/// For all of them to join, and for all of them to move.
const LONG: Duration = Duration::from_secs(300);

/// `ca.crowd_rotation_s`: reported, not promised.
pub fn measure() -> Result<Vec<Figure>> {
    tokio::runtime::Runtime::new()?.block_on(rotation())
}

async fn rotation() -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let ranges = vec!["10.0.0.0/8".parse()?];
    let setup = Setup::new(folder.path().join("ca"), "example.org".try_into()?, ranges);
    authority::init(&setup).await?;
    let process = Process::start("ca", folder.path())?;
    let mut admin = crate::child::reach(folder.path(), LONG).await?;
    let address = admin.status().await?.listen;
    let entries: Vec<NewEntry> = (0..SVIDS).map(entry).collect();
    admin.import_entries(&entries, false, false).await?;
    let fewer = std::env::var(FEWER).ok();
    let count = fewer.map_or(Ok(AGENTS), |fewer| fewer.parse())?;
    let mut crowd = Crowd::gather(&mut admin, &address, count).await?;
    let gathered = crowd.since.elapsed();
    let mut rounds = Vec::new();
    for _ in 0..3 {
        rounds.push(rotate(&mut admin, &mut crowd).await?.as_secs_f64());
    }
    let weight = process.resident_mib()?;
    crowd.agents.shutdown().await;
    let how = format!(
        "a new root from order to the old one\'s end, {count} agents that do what the protocol asks, {} SVIDs, on the \
         CA\'s own cores; all had joined and had their SVIDs in {:.0} s, the CA weighs {weight:.0} MiB then",
        count * SVIDS,
        gathered.as_secs_f64(),
    );
    Ok(vec![figure(
        "ca.crowd_rotation_s",
        "s",
        Goal::None,
        rounds,
        &how,
    )?])
}

async fn rotate(admin: &mut Admin, crowd: &mut Crowd) -> Result<Duration> {
    let started = Instant::now();
    let order = NewRotation {
        what: What::Root,
        goal: Stage::Revoked,
        reason: "measured".into(),
        compromised: false,
        root: None,
    };
    let id = admin.rotate(order).await?.id;
    loop {
        let status = admin.rotations().await?;
        if let Some(rotation) = status.ended.iter().find(|rotation| rotation.id == id) {
            ensure!(rotation.stage == "revoked", "it ended {}", rotation.stage);
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < LONG, "it does not end");
        crowd.still_there()?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

struct Crowd {
    since: Instant,
    agents: JoinSet<Result<()>>,
}

impl Crowd {
    /// Has all join and get their SVIDs.
    async fn gather(admin: &mut Admin, address: &str, count: usize) -> Result<Self> {
        let since = Instant::now();
        let svid = Key::make()?;
        // As many handshakes at once as a machine of this size has use for.
        let places = Arc::new(Semaphore::new(8));
        let ready = watch::Sender::new(0_usize);
        let mut crowd = Self {
            since,
            agents: JoinSet::new(),
        };
        for number in 0..count {
            let token = admin.create_token(&node(number, address)?).await?;
            let (places, counts, svid) = (Arc::clone(&places), ready.clone(), svid.clone());
            crowd.agents.spawn(async move {
                let place = places.acquire_owned().await?;
                let agent = Agent::join(&token, svid).await?;
                let client = agent.connect().await?;
                drop(place);
                agent.live(client, &counts).await
            });
        }
        while *ready.borrow() < count {
            let there = *ready.borrow();
            ensure!(
                since.elapsed() < LONG,
                "{there} of {count} agents have their SVIDs after {LONG:?}"
            );
            crowd.still_there()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(crowd)
    }

    /// An agent that has ended has failed.
    fn still_there(&mut self) -> Result<()> {
        match self.agents.try_join_next() {
            Some(ended) => ended?.context("an agent ended"),
            None => Ok(()),
        }
    }
}

/// One key for all SVIDs of all agents: what making keys costs is the nodes' own, and they are many machines.
#[derive(Clone)]
struct Key {
    key: Arc<PrivateKey>,
    csr: Arc<[u8]>,
}

impl Key {
    fn make() -> Result<Self> {
        let key = PrivateKey::generate()?;
        Ok(Self {
            csr: key.csr()?.into(),
            key: Arc::new(key),
        })
    }
}

struct Agent {
    address: String,
    svid: Key,
    bundle: TrustBundle,
    identity: NodeIdentity,
    /// Of the entries that apply to it.
    entries: Vec<String>,
    /// The issuing CA of all that it has; empty at first.
    hangs_on: String,
}

impl Agent {
    async fn join(token: &JoinToken, svid: Key) -> Result<Self> {
        let joined = join(token).await?;
        Ok(Self {
            address: token.ca_address.clone(),
            svid,
            bundle: joined.bundle,
            identity: joined.identity,
            entries: Vec::new(),
            hangs_on: String::new(),
        })
    }

    async fn connect(&self) -> Result<AgentClient> {
        let verifier = Verifier::new(self.bundle.clone(), DenyList::empty());
        let until = Instant::now() + LONG;
        loop {
            // All come from one address, which has only so many handshakes at once: who is refused comes again.
            match AgentClient::connect(&self.address, &verifier, &self.identity).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > until => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Counts itself in `ready` when the CA has heard that it has its SVIDs.
    async fn live(mut self, mut client: AgentClient, ready: &watch::Sender<usize>) -> Result<()> {
        let mut counted = false;
        loop {
            let mut updates = client.updates().await?;
            // A node with a new certificate comes back with it, beside the connection that it had.
            let successor = loop {
                let update = updates.next().await?.context("the CA ended the stream")?;
                let sequence = update.sequence;
                let successor = if self.learn(update) && !self.entries.is_empty() {
                    self.renew(&client).await?;
                    Some(self.connect().await?)
                } else {
                    None
                };
                let in_use = vec![self.hangs_on.clone()];
                client.acknowledge(sequence, None, in_use).await?;
                if let Some(successor) = successor {
                    break successor;
                }
            };
            client = successor;
            if !counted {
                counted = true;
                ready.send_modify(|ready| *ready += 1);
            }
        }
    }

    /// Takes an update in; are the SVIDs to be asked for anew?
    fn learn(&mut self, update: Update) -> bool {
        if let Some(bundle) = update.bundle {
            self.bundle = bundle;
        }
        if let Some(entries) = update.entries {
            let known = std::mem::take(&mut self.entries);
            self.entries = entries.map(|entry| entry.id.clone()).onto(known);
        }
        let retired = update.retired.unwrap_or_default();
        self.hangs_on.is_empty() || retired.contains(&self.hangs_on)
    }

    async fn renew(&mut self, client: &AgentClient) -> Result<()> {
        let workloads = self.entries.iter().map(|id| SvidKind::Workload {
            entry_id: id.clone(),
        });
        let requests = std::iter::once(SvidKind::Node).chain(workloads);
        let requests = requests.map(|kind| SvidRequest {
            kind,
            csr: self.svid.csr.to_vec(),
        });
        let mut answers = client.issue(requests.collect()).await?.into_iter();
        let node = answers.next().context("no answer")??;
        self.hangs_on = authority_of(&node.chain).to_string();
        for answer in answers {
            let chain = answer?.chain;
            ensure!(*authority_of(&chain) == *self.hangs_on, "issuers differ");
        }
        self.identity = NodeIdentity {
            chain: node.chain,
            key: PrivateKey::from_pkcs8(&self.svid.key.to_pkcs8())?,
        };
        Ok(())
    }
}

fn node(number: usize, address: &str) -> Result<TokenRequest> {
    let (high, low) = (number / 250, number % 250);
    Ok(TokenRequest {
        node: format!("crowd{number}").parse()?,
        prefixes: vec![format!("10.{}.{low}.0/24", 100 + high).parse()?],
        underlay: vec![format!("198.51.{high}.{low}")],
        ca_address: address.to_owned(),
        ttl: Duration::from_secs(3600),
        joining: false,
    })
}

fn entry(number: usize) -> NewEntry {
    NewEntry {
        spiffe_id: format!("spiffe://example.org/crowd/{number}"),
        selectors: vec![format!("unix:path:/opt/crowd/{number}")],
        ..NewEntry::default()
    }
}
