//! What the authority and the agents' identities cost and how fast they are: push, rotation, start, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use handfast_agent::identity::Standalone;
use handfast_agent::workload_api::{Material, WorkloadState};
use handfast_ca::client::admin::{Admin, NewEntry};
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::deny::DenyList;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::verify::Verifier;
use tokio::sync::watch;

use crate::child::{self, Process};
use crate::handshake::{Accepts, End, Handshakes};
use crate::report::{Figure, Goal, figure};

#[allow(dead_code, reason = "shared with the agent's tests")]
#[path = "../../../auth-agent/tests/identity/world.rs"]
mod world;

use world::{Ca, Workload, entry, ids};

const ROUNDS: usize = 5;
const LONG: Duration = Duration::from_secs(300);

/// All figures of the authority but that of signing.
pub fn measure() -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut figures = runtime.block_on(push())?;
    figures.extend(runtime.block_on(rotation())?);
    figures.extend(runtime.block_on(large_registry())?);
    figures.extend(runtime.block_on(full_node())?);
    Ok(figures)
}

/// 1,000 entries, 20 agents: from the order to a workload's open stream.
async fn push() -> Result<Vec<Figure>> {
    const NODES: usize = 20;
    const ENTRIES: usize = 1000;
    const CHANGES: usize = 100;
    let mut ca = Ca::start().await;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(ca.join(&format!("node{number}"), number).await);
    }
    let orders = |node: usize| elsewhere(&format!("node{}", node % NODES), node);
    import(&mut ca.admin, (0..ENTRIES).map(orders)).await?;
    let agents: Vec<_> = nodes.iter().map(world::Node::start).collect();
    held(&agents, ENTRIES).await?;
    let mut workloads = Vec::new();
    for agent in &agents {
        workloads.push(Workload::of(agent).await);
    }
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let mut times = Vec::new();
        for change in 0..CHANGES {
            let at = change % NODES;
            let workload = workloads.get_mut(at).context("a workload")?;
            let started = Instant::now();
            let made = ca
                .entry(&format!("w/{round}/{change}"), &format!("node{at}"))
                .await;
            let id = made.spiffe_id.to_string();
            let has = |state: &WorkloadState| ids(state).is_some_and(|ids| ids.contains(&id));
            workload.until(has).await;
            times.push(started.elapsed());
            let started = Instant::now();
            ca.admin.delete_entry(&made.id, "a figure").await?;
            workload.until(|state| !has(state)).await;
            times.push(started.elapsed());
        }
        times.sort();
        let p99 = times.get(times.len() * 99 / 100).context("no time")?;
        if round > 0 {
            rounds.push(p99.as_secs_f64() * 1000.0);
        }
    }
    let how = format!(
        "p99 of {} changes (an entry made or deleted by an operator until the open stream of the workload on its node \
         has the consequence, SVID included), {ENTRIES} entries, {NODES} agents, CA and agents in one process",
        2 * CHANGES
    );
    Ok(vec![figure(
        "ca.push_p99_ms",
        "ms",
        Goal::AtMost(250.0),
        rounds,
        &how,
    )?])
}

/// 10,000 SVIDs on three agents move to a new root while workloads meet.
async fn rotation() -> Result<Vec<Figure>> {
    const EACH: usize = 3333;
    let mut ca = Ca::start().await;
    let mut agents = Vec::new();
    let mut workloads = Vec::new();
    for number in 0..3 {
        let name = format!("node{number}");
        let node = ca.join(&name, number).await;
        import(
            &mut ca.admin,
            (0..EACH).map(|entry| elsewhere(&name, entry)),
        )
        .await?;
        ca.entry(&format!("meets/{number}"), &name).await;
        let agent = node.start();
        let mut workload = Workload::of(&agent).await;
        workload.until(|state| ids(state).is_some()).await;
        agents.push((agent, node));
        workloads.push(workload);
    }
    let standing: Vec<&Standalone> = agents.iter().map(|(agent, _)| agent).collect();
    wait_for(|| {
        standing
            .iter()
            .map(|a| a.workloads().counts().0)
            .sum::<usize>()
            >= 3 * EACH
    })
    .await?;
    let [one, other, _] = workloads.as_slice() else {
        bail!("three workloads")
    };
    let meetings = Meetings::start(one.state.clone(), other.state.clone());
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        let order = NewRotation {
            what: What::Root,
            goal: Stage::Revoked,
            reason: "measured".into(),
            compromised: false,
            root: None,
        };
        let id = ca.admin.rotate(order).await?.id;
        loop {
            let status = ca.admin.rotations().await?;
            if let Some(ended) = status.ended.iter().find(|rotation| rotation.id == id) {
                ensure!(ended.stage == "revoked", "it ended {}", ended.stage);
                break;
            }
            ensure!(
                started.elapsed() < LONG,
                "it does not end: {:?}",
                status.live
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rounds.push(started.elapsed().as_secs_f64());
    }
    let (met, failed) = meetings.end();
    ensure!(met > 100, "only {met} handshakes");
    let how = format!(
        "a new root from order to the old one\'s end, {} live SVIDs on 3 agents, CA and agents in one process",
        3 * EACH + 3
    );
    let traffic = format!(
        "of {met} mutual TLS 1.3 handshakes between workloads of two agents while three rotations ran, each with what \
         its agent held at that moment"
    );
    Ok(vec![
        figure("ca.rotation_s", "s", Goal::AtMost(30.0), rounds, &how)?,
        figure(
            "ca.rotation_failed_handshakes",
            "count",
            Goal::AtMost(0.0),
            vec![failed as f64],
            &traffic,
        )?,
    ])
}

/// A CA with 100,000 entries: how soon it serves, and what it weighs.
async fn large_registry() -> Result<Vec<Figure>> {
    const ENTRIES: usize = 100_000;
    let mut ca = Ca::start().await;
    for number in 0..20 {
        ca.join(&format!("node{number}"), number).await;
    }
    let order = |number: usize| elsewhere(&format!("node{}", number % 20), number);
    import(&mut ca.admin, (0..ENTRIES).map(order)).await?;
    let (folder, _) = ca.stop().await;
    let (mut starts, mut weights) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let process = Process::start("ca", folder.path())?;
        let mut admin = child::reach(folder.path(), LONG).await?;
        ensure!(
            admin.status().await?.entries as usize == ENTRIES,
            "entries are missing"
        );
        starts.push(started.elapsed().as_secs_f64());
        weights.push(process.settled_mib()?);
    }
    let how =
        format!("{ENTRIES} entries in SQLite, from the start of the process to the first answer");
    let weight = format!("resident, {ENTRIES} entries, after the start");
    Ok(vec![
        figure("ca.start_100k_s", "s", Goal::AtMost(2.0), starts, &how)?,
        figure(
            "ca.rss_100k_entries_mib",
            "MiB",
            Goal::AtMost(256.0),
            weights,
            &weight,
        )?,
    ])
}

/// An agent that holds 1,000 SVIDs.
async fn full_node() -> Result<Vec<Figure>> {
    const SVIDS: usize = 1000;
    let mut ca = Ca::start().await;
    let node = ca.join("node1", 1).await;
    import(
        &mut ca.admin,
        (0..SVIDS).map(|number| elsewhere("node1", number)),
    )
    .await?;
    let mut weights = Vec::new();
    for _ in 0..ROUNDS {
        let process = Process::start("agent", &node.data)?;
        let count = node.data.join("count");
        let holds = || std::fs::read_to_string(&count).is_ok_and(|text| text == SVIDS.to_string());
        wait_for(holds).await?;
        weights.push(process.settled_mib()?);
        drop(process);
        std::fs::remove_file(&count)?;
    }
    let how = format!(
        "resident, the identity half of an agent (no gates, no sessions) with {SVIDS} workload SVIDs"
    );
    Ok(vec![figure(
        "agent.rss_1000_svids_mib",
        "MiB",
        Goal::AtMost(40.0),
        weights,
        &how,
    )?])
}

/// An entry of a workload that does not run here.
fn elsewhere(node: &str, number: usize) -> NewEntry {
    let mut order = entry(&format!("{node}/service-{number}"), node);
    order
        .selectors
        .push(format!("unix:path:/opt/service-{number}"));
    order
}

async fn import(admin: &mut Admin, orders: impl Iterator<Item = NewEntry>) -> Result<()> {
    let orders: Vec<_> = orders.collect();
    admin.import_entries(&orders, false, false).await?;
    Ok(())
}

async fn held(agents: &[Standalone], svids: usize) -> Result<()> {
    wait_for(|| {
        agents
            .iter()
            .map(|a| a.workloads().counts().0)
            .sum::<usize>()
            >= svids
    })
    .await
}

async fn wait_for(ready: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !ready() {
        ensure!(started.elapsed() < LONG, "it takes longer than {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Two workloads that shake hands without a pause, each with what its agent holds at that moment.
struct Meetings {
    stop: Arc<AtomicBool>,
    counts: Arc<(AtomicU64, AtomicU64)>,
    thread: std::thread::JoinHandle<()>,
}

impl Meetings {
    fn start(
        one: watch::Receiver<Arc<WorkloadState>>,
        other: watch::Receiver<Arc<WorkloadState>>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let (one, other) = (Arc::clone(&one.borrow()), Arc::clone(&other.borrow()));
                if let Err(error) = meet(&one, &other) {
                    eprintln!("a handshake failed: {error:#}");
                    counted.1.fetch_add(1, Ordering::Relaxed);
                }
                counted.0.fetch_add(1, Ordering::Relaxed);
                // Traffic, not a load test: the rotation is what is measured.
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            counts,
            thread,
        }
    }

    /// Handshakes and failures.
    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic there shows as too few handshakes.
        drop(self.thread.join());
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.counts.0), count(&self.counts.1))
    }
}

fn meet(one: &WorkloadState, other: &WorkloadState) -> Result<()> {
    let (WorkloadState::Ready(one), WorkloadState::Ready(other)) = (one, other) else {
        bail!("a workload has no SVID")
    };
    Handshakes::between(&end(one)?, &end(other)?)?.run()?;
    Ok(())
}

fn end(material: &Material) -> Result<End<'_>> {
    let svid = material.svids.first().context("no SVID")?;
    Ok(End {
        verifier: Verifier::new(material.bundles.own.clone(), DenyList::empty()),
        accepts: Accepts::Workloads,
        chain: &svid.chain,
        key: &svid.key,
    })
}
