//! What an SVID costs an agent in memory: measured in a process of its own, which this test is started again as.

use std::process::Stdio;
use std::time::Duration;

use handfast_agent::identity::{NodeStore, Standalone};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::world::{Ca, LONG, Node, entry};

const DATA: &str = "HANDFAST_TEST_AGENT_DATA";
const MEMORY: &str = "HANDFAST_TEST_AGENT_MEMORY";
/// Before the count begins, so that what is allocated once is there.
const WARM: usize = 300;
const MORE: usize = 1500;

/// Not a test of its own: the agent that the other one measures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other test here runs it"]
async fn agent_process() {
    let (Ok(data), Ok(memory)) = (std::env::var(DATA), std::env::var(MEMORY)) else {
        return;
    };
    let store = NodeStore::open(data.as_ref()).unwrap();
    let agent = Standalone::start(store, Some(memory.into())).unwrap();
    loop {
        println!(
            "measured {} {}",
            agent.workloads().counts().0,
            resident_kib()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// This program again, as the agent of a node.
pub fn agent_in_a_process(node: &Node, output: Stdio) -> Child {
    tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory::agent_process",
            "--ignored",
            "--nocapture",
        ])
        .env(DATA, &node.data)
        .env(MEMORY, node.memory.path().join("svids"))
        .stdout(output)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let words = line.unwrap().split_whitespace();
    words.clone().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_and_its_entry_cost_an_agent_less_than_four_kilobytes_of_resident_memory() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let orders = |from: usize, to: usize| -> Vec<_> {
        (from..to)
            .map(|number| {
                let mut order = entry(&format!("workload/{number}"), "web1");
                order.selectors.push(format!("unix:path:/opt/w/{number}"));
                order
            })
            .collect()
    };
    let mut agent = agent_in_a_process(&node, Stdio::piped());
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let mut resident = [0; 2];
    for (at, range) in [(0, WARM), (WARM, WARM + MORE)].into_iter().enumerate() {
        let orders = orders(range.0, range.1);
        ca.admin
            .import_entries(&orders, false, false)
            .await
            .unwrap();
        let settled = async {
            let mut seen = 0;
            // A few measurements more: what was needed for the asking alone is given back.
            while seen < 10 {
                let line = lines.next_line().await.unwrap().expect("the agent runs");
                let Some(rest) = line.split("measured ").nth(1) else {
                    continue;
                };
                let mut words = rest.split_whitespace();
                let count: usize = words.next().unwrap().parse().unwrap();
                resident[at] = words.next().unwrap().parse().unwrap();
                seen += usize::from(count == range.1);
            }
        };
        tokio::time::timeout(2 * LONG, settled).await.unwrap();
    }
    agent.kill().await.unwrap();
    let [before, after]: [u64; 2] = resident;
    let each = after.saturating_sub(before) * 1024 / MORE as u64;
    println!("{before} KiB with {WARM} SVIDs, {after} KiB with {MORE} more: {each} bytes each");
    assert!(each < 4000, "{each} bytes");
}
