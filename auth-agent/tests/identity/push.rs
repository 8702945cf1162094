//! How long it takes from the registry to a workload's open stream, and what an SVID costs in memory.

use std::time::{Duration, Instant};

use handfast_ca::client::admin::NewEntry;

use super::world::{Ca, LONG, Workload, ids};

const NODES: usize = 20;
const ENTRIES: usize = 1000;
const ROUNDS: usize = 40;

/// 1,000 entries, 20 agents, each with an open stream: entries are made and deleted, and each is timed until the
/// stream of the node in question has the consequence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_reaches_open_streams_soon_with_a_thousand_entries_and_twenty_agents() {
    let mut ca = Ca::start().await;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(ca.join(&format!("node{number}"), number).await);
    }
    let making = Instant::now();
    let orders: Vec<_> = (0..ENTRIES).map(filler).collect();
    ca.admin
        .import_entries(&orders, false, false)
        .await
        .unwrap();
    println!("{ENTRIES} entries made in {:.1?}", making.elapsed());
    let agents: Vec<_> = nodes.iter().map(super::world::Node::start).collect();
    let held = async {
        while agents
            .iter()
            .map(|a| a.workloads().svids().len())
            .sum::<usize>()
            < ENTRIES
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let filling = Instant::now();
    tokio::time::timeout(4 * LONG, held).await.unwrap();
    println!(
        "{ENTRIES} SVIDs on {NODES} agents in {:.1?}",
        filling.elapsed()
    );

    let mut workloads = Vec::new();
    for agent in &agents {
        workloads.push(Workload::of(agent).await);
    }
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let at = round % NODES;
        let started = Instant::now();
        let entry = ca.entry(&format!("w/{round}"), &format!("node{at}")).await;
        let id = entry.spiffe_id.to_string();
        let workload = &mut workloads[at];
        workload
            .until(|state| ids(state).is_some_and(|ids| ids.contains(&id)))
            .await;
        created.push(started.elapsed());
        let started = Instant::now();
        ca.admin.delete_entry(&entry.id, "a test").await.unwrap();
        workload
            .until(|state| ids(state).is_none_or(|ids| !ids.contains(&id)))
            .await;
        deleted.push(started.elapsed());
    }
    print_spread("created, until the stream has the SVID", &mut created);
    print_spread("deleted, until the stream has lost it", &mut deleted);
    // Not the goal (250 ms in release mode), but far from an agent that polls each 5 s: half of what it hears it hears
    // later than this. One of them may meet whatever else the machine does.
    for sorted in [&created, &deleted] {
        let usual = sorted[sorted.len() / 2];
        assert!(usual < Duration::from_secs(2), "{usual:?}");
    }
}

/// For workloads that do not run here.
fn filler(number: usize) -> NewEntry {
    let mut order = super::world::entry(
        &format!("filler/{number}"),
        &format!("node{}", number % NODES),
    );
    order
        .selectors
        .push(format!("unix:path:/opt/filler/{number}"));
    order
}

fn print_spread(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!("{what}: p50 {:.1?}, p99 {:.1?}", at(50), at(99));
}
