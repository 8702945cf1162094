//! Clocks that jump while a rotation is under way: by hours, both ways, under CA and agents alike.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::authority::{self, Setup};
use crate::client::admin::{Admin, NewEntry, TokenRequest};
use crate::client::rotation::{NewRotation, Rotation};
use crate::rotation::{Stage, What};
use crate::server::{Options, Server};
use crate::test_clock::{jump, off_by};

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

async fn agents(admin: &mut Admin, address: SocketAddr) -> Vec<Agent> {
    let entry = NewEntry {
        spiffe_id: "spiffe://example.org/web".to_owned(),
        selectors: vec!["netns:web".to_owned()],
        ..NewEntry::default()
    };
    admin.create_entry(&entry).await.unwrap();
    let mut agents = Vec::new();
    for at in 0..2 {
        let order = TokenRequest {
            node: format!("n{at}").parse().unwrap(),
            prefixes: vec![format!("10.1.{at}.0/24").parse().unwrap()],
            underlay: vec!["192.0.2.10".to_owned()],
            ca_address: address.to_string(),
            ttl: Duration::from_secs(600),
            joining: false,
        };
        let token = admin.create_token(&order).await.unwrap();
        let joined = crate::client::join(&token).await.unwrap();
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
