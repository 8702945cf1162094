//! Many agents at once: 800 streams and 40,000 SVIDs move to a new root.
//!
//! Each agent does what the protocol asks of it, and no more: it takes updates in, asks for its SVIDs anew when their
//! issuer is retired, and says what they hang on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use handfast_agent::identity::authority_of;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::client::{AgentClient, SvidKind, SvidRequest, Update, join};
use handfast_ca::deny::DenyList;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::verify::Verifier;
use tokio::sync::Semaphore;

use crate::report::{Figure, Goal, figure};

const AGENTS: usize = 800;
const SVIDS: usize = 50;
const LONG: Duration = Duration::from_secs(600);

/// One round: it is reported, not promised.
pub async fn rotation(admin: &mut Admin, address: &str) -> Result<Figure> {
    let csr: Arc<[u8]> = PrivateKey::generate()?.csr()?.into();
    let entries: Vec<NewEntry> = (0..SVIDS).map(entry).collect();
    admin.import_entries(&entries, false, false).await?;
    // As many handshakes at once as a machine of this size has use for.
    let places = Arc::new(Semaphore::new(8));
    let mut crowd = tokio::task::JoinSet::new();
    for number in 0..AGENTS {
        let token = admin.create_token(&node(number, address)?).await?;
        let (address, csr, places) = (address.to_owned(), Arc::clone(&csr), Arc::clone(&places));
        crowd.spawn(async move {
            let place = places.acquire_owned().await?;
            let joined = join(&token).await?;
            let verifier = Verifier::new(joined.bundle, DenyList::empty());
            let client = AgentClient::connect(&address, &verifier, &joined.identity).await?;
            drop(place);
            live(client, csr).await
        });
    }
    let mut started = Instant::now();
    while (admin.status().await?.nodes_connected as usize) < AGENTS {
        ensure!(started.elapsed() < LONG, "the agents do not connect");
        ended(&mut crowd)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Every one has said what it hangs on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    started = Instant::now();
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
            break;
        }
        ensure!(started.elapsed() < LONG, "it does not end");
        ended(&mut crowd)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let taken = started.elapsed().as_secs_f64();
    crowd.shutdown().await;
    let how = format!(
        "a new root from order to the old one\'s end, {AGENTS} agents that do what the protocol asks, {} SVIDs, CA and \
         agents in one process on the same cores",
        AGENTS * SVIDS
    );
    figure(
        "ca.rotation_800_agents_s",
        "s",
        Goal::None,
        vec![taken],
        &how,
    )
}

/// An agent that has ended has failed.
fn ended(crowd: &mut tokio::task::JoinSet<Result<()>>) -> Result<()> {
    match crowd.try_join_next() {
        Some(ended) => ended?.context("an agent ended"),
        None => Ok(()),
    }
}

async fn live(client: AgentClient, csr: Arc<[u8]>) -> Result<()> {
    let mut updates = client.updates().await?;
    let mut entries: Vec<String> = Vec::new();
    let mut hangs_on = String::new();
    while let Some(update) = updates.next().await? {
        let stale = learn(&update, &mut entries, &hangs_on);
        if stale && !entries.is_empty() {
            hangs_on = issue(&client, &entries, &csr).await?;
        }
        let in_use = vec![hangs_on.clone()];
        client.acknowledge(update.sequence, None, in_use).await?;
    }
    Ok(())
}

/// Takes an update in; are the SVIDs to be asked for anew?
fn learn(update: &Update, entries: &mut Vec<String>, hangs_on: &str) -> bool {
    if let Some(all) = &update.entries {
        *entries = all.iter().map(|entry| entry.id.clone()).collect();
    }
    let retired = update.retired.as_deref().unwrap_or_default();
    hangs_on.is_empty() || retired.iter().any(|authority| authority == hangs_on)
}

async fn issue(client: &AgentClient, entries: &[String], csr: &[u8]) -> Result<String> {
    let workloads = entries.iter().map(|id| SvidKind::Workload {
        entry_id: id.clone(),
    });
    let requests = std::iter::once(SvidKind::Node).chain(workloads);
    let requests = requests.map(|kind| SvidRequest {
        kind,
        csr: csr.to_vec(),
    });
    let answers = client.issue(requests.collect()).await?;
    let mut authority = String::new();
    for answer in answers {
        authority = authority_of(&answer?.chain).to_string();
    }
    Ok(authority)
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
