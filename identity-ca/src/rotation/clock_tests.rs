//! Clocks that jump while a rotation is under way: by hours, both ways, under CA and agents alike.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::authority::{self, Setup};
use crate::client::admin::{Admin, NewEntry, TokenRequest};
use crate::client::rotation::{NewRotation, Rotation};
use crate::client::{AgentClient, Joined, Updates};
use crate::deny::DenyList;
use crate::rotation::{Stage, What};
use crate::server::{Options, Server};
use crate::test_clock::{jump, off_by};
use crate::verify::Verifier;

#[path = "../../tests/rotation/agent.rs"]
#[allow(dead_code)]
mod agent;

use self::agent::{Agent, Traffic};

pub(crate) use crate::now;

const HOURS: i64 = 3 * 3600;

async fn ca(folder: &Path) -> (Admin, SocketAddr) {
    let domain = authority::trust_domain("example.org").unwrap();
    let ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let mut setup = Setup::new(folder.join("ca"), domain, ranges);
    setup.lifetimes.jwt = 3;
    // Longer than the jump, so that nothing has expired.
    setup.lifetimes.workload = 24 * 3600;
    authority::init(&setup).await.unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = folder.join("ca.sock");
    let server = Server::bind(&Options::new(folder.join("ca"), listen, socket.clone()))
        .await
        .unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(std::future::pending()));
    (Admin::connect(&socket).await.unwrap(), address)
}

async fn join(admin: &mut Admin, address: SocketAddr, at: u8) -> Result<Joined, crate::Error> {
    let order = TokenRequest {
        node: format!("n{at}").parse().unwrap(),
        prefixes: vec![format!("10.1.{at}.0/24").parse().unwrap()],
        underlay: vec!["192.0.2.10".to_owned()],
        ca_address: address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let token = admin.create_token(&order).await.unwrap();
    crate::client::join(&token).await
}

async fn agents(admin: &mut Admin, address: SocketAddr) -> Vec<Agent> {
    let entry = NewEntry {
        spiffe_id: "spiffe://example.org/web".to_owned(),
        selectors: vec!["netns:web".to_owned()],
        ..NewEntry::default()
    };
    admin.create_entry(&entry).await.unwrap();
    let mut agents = Vec::new();
    for at in 0..2 {
        let joined = join(admin, address, at).await.unwrap();
        agents.push(Agent::start(&format!("n{at}"), address.to_string(), joined));
    }
    for agent in &agents {
        agent.has(1).await;
    }
    agents
}

async fn begin(admin: &mut Admin, what: What) -> u64 {
    let order = NewRotation {
        what,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    };
    admin.rotate(order).await.unwrap().id
}

async fn find(admin: &mut Admin, id: u64) -> Rotation {
    let status = admin.rotations().await.unwrap();
    let mut all = status.live.into_iter().chain(status.ended);
    all.find(|rotation| rotation.id == id).unwrap()
}

async fn until(admin: &mut Admin, id: u64, stage: &str) {
    for _ in 0..800 {
        if find(admin, id).await.stage == stage {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {stage}: {:#?}", find(admin, id).await);
}

#[test]
fn a_jump_neither_hurries_nor_hinders_a_rotation() {
    let test = off_by(0, || async {
        let folder = tempfile::tempdir().unwrap();
        let (mut admin, address) = ca(folder.path()).await;
        let agents = agents(&mut admin, address).await;
        for seconds in [HOURS, -HOURS] {
            agents[0].cut(true);
            // It looks whether it is cut off every 50 ms.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let id = begin(&mut admin, What::Root).await;
            jump(seconds);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            // Who is away is waited for, whatever the clock says.
            assert_eq!(find(&mut admin, id).await.stage, "prepared");
            // Set right, as NTP does it sooner or later.
            jump(-seconds);
            agents[0].cut(false);
            until(&mut admin, id, "revoked").await;
        }
    });
    test.join().unwrap();
}

#[test]
fn a_jump_does_not_shorten_the_life_of_tokens() {
    let test = off_by(0, || async {
        let folder = tempfile::tempdir().unwrap();
        let (mut admin, address) = ca(folder.path()).await;
        let agents = agents(&mut admin, address).await;
        for seconds in [HOURS, -HOURS] {
            let traffic = Traffic::start(&agents);
            let id = begin(&mut admin, What::Jwt).await;
            until(&mut admin, id, "tainted").await;
            let since = Instant::now();
            jump(seconds);
            until(&mut admin, id, "revoked").await;
            assert!(since.elapsed() > Duration::from_secs(2), "{seconds}");
            drop(traffic);
        }
    });
    test.join().unwrap();
}

/// Joins as soon as that is possible.
async fn joined(admin: &mut Admin, address: SocketAddr, at: u8) -> Joined {
    let since = Instant::now();
    loop {
        match join(admin, address, at).await {
            Ok(joined) => return joined,
            Err(error) if since.elapsed() > Duration::from_secs(60) => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[test]
fn who_comes_after_a_clock_that_was_ahead_was_set_right_believes_the_ca() {
    // Longer than the CA's own certificate lives.
    let ahead = 10 * HOURS;
    let test = off_by(0, move || async move {
        let folder = tempfile::tempdir().unwrap();
        let (mut admin, address) = ca(folder.path()).await;
        jump(ahead);
        joined(&mut admin, address, 1).await;
        jump(-ahead);
        joined(&mut admin, address, 2).await;
    });
    test.join().unwrap();
}

/// Waits for an update that says such a time.
async fn hear(updates: &mut Updates, wanted: impl Fn(u64) -> bool) {
    let next = async { while !wanted(updates.next().await.unwrap().unwrap().ca_time_ms) {} };
    tokio::time::timeout(Duration::from_secs(60), next)
        .await
        .unwrap();
}

#[test]
fn an_agent_hears_at_once_that_the_clock_was_set_back() {
    let test = off_by(0, || async {
        let folder = tempfile::tempdir().unwrap();
        let (mut admin, address) = ca(folder.path()).await;
        let joined = join(&mut admin, address, 1).await.unwrap();
        let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
        let address = address.to_string();
        let agent = AgentClient::connect(&address, &verifier, &joined.identity);
        let mut updates = agent.await.unwrap().updates().await.unwrap();
        jump(HOURS);
        // Whatever changes tells the time.
        let entry = NewEntry {
            spiffe_id: "spiffe://example.org/web".to_owned(),
            selectors: vec!["netns:web".to_owned()],
            ..NewEntry::default()
        };
        admin.create_entry(&entry).await.unwrap();
        let halfway = crate::now_ms() - HOURS as u64 * 500;
        hear(&mut updates, |at| at > halfway).await;
        // The watcher has seen that, too.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        jump(-HOURS);
        hear(&mut updates, |at| at < halfway).await;
    });
    test.join().unwrap();
}
