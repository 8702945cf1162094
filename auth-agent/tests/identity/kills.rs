//! kill -9 of an agent, again and again, while the root is rotated.

use std::process::Stdio;
use std::time::{Duration, Instant};

use handfast_ca::rotation::What;

use super::memory::agent_in_a_process;
use super::rotation::{Meetings, end, order};
use super::world::{Ca, LONG, Workload, ids, kept};

/// How long the agent lives, in turn: less than it takes to connect, up to enough for a step.
const LIVES_MS: [u64; 8] = [20, 60, 120, 200, 350, 600, 1000, 2000];
const SVIDS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_ends_whenever_an_agent_is_killed_and_nobody_is_refused_meanwhile() {
    let mut ca = Ca::start().await;
    let nodes = [ca.join("one", 1).await, ca.join("two", 2).await];
    let killed = ca.join("killed", 3).await;
    for name in ["one", "two", "killed"] {
        for number in 0..SVIDS {
            ca.entry(&format!("{name}/{number}"), name).await;
        }
    }
    let agents: Vec<_> = nodes.iter().map(|node| node.start()).collect();
    let mut workloads = Vec::new();
    for agent in &agents {
        let mut workload = Workload::of(agent).await;
        let all = |state: &_| ids(state).is_some_and(|ids| ids.len() == SVIDS);
        workload.until(all).await;
        workloads.push(workload);
    }
    let meetings = Meetings::between(workloads[0].state.clone(), workloads[1].state.clone());
    let rotation = ca.admin.rotate(order(What::Root)).await.unwrap();
    let started = Instant::now();
    let mut kills = 0;
    let mut lives = LIVES_MS.iter().cycle();
    loop {
        let mut agent = agent_in_a_process(&killed, Stdio::null());
        let life = Duration::from_millis(*lives.next().unwrap());
        tokio::time::sleep(life).await;
        agent.kill().await.unwrap();
        kills += 1;
        let live = ca.admin.rotations().await.unwrap().live;
        if live.is_empty() && kills >= LIVES_MS.len() {
            break;
        }
        assert!(started.elapsed() < 4 * LONG, "{live:#?}");
    }
    assert_eq!(end(&mut ca, rotation.id).await, "revoked");
    let (met, refused) = meetings.end();
    println!("{kills} kills, {met} meetings");
    assert_eq!(refused, 0);
    assert!(met > 20, "{met}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_the_workloads_of_an_agent_that_was_started_again() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    workload.until_ids(&["web"]).await;
    let folder = node.memory.path().join("svids");
    let noted = async {
        while kept(&folder, "pem") == 0 || kept(&folder, "served") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, noted).await.unwrap();
    drop((workload, agent));

    let agent = node.start();
    let mut progress = agent.progress();
    let bundle = progress.borrow().bundle;
    let rotation = ca.admin.rotate(order(What::Root)).await.unwrap();
    let has_it = progress.wait_for(|progress| progress.bundle > bundle);
    tokio::time::timeout(LONG, has_it).await.unwrap().unwrap();
    // The agent has the new root, but a workload that has not asked again does not.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let live = ca.admin.rotations().await.unwrap().live;
    assert_eq!(live[0].stage, "prepared", "{live:#?}");
    let _workload = Workload::of(&agent).await;
    assert_eq!(end(&mut ca, rotation.id).await, "revoked");
}
