//! kill -9 of the CA's process at every point of a rotation: after the next start it ends, finished or taken back,
//! with the agents and their traffic none the wiser.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use handfast_ca::authority;
use handfast_ca::client::admin::{Admin, NewEntry, TokenRequest};
use handfast_ca::rotation::{Stage, What};
use handfast_ca::server::{Options, Server};

use super::agent::{Agent, Traffic};
use super::common::setup;
use super::whole::order;

const DIR: &str = "HANDFAST_TEST_CA";
const DIE_AT: &str = "HANDFAST_DIE_AT";
/// What precedes a kill when the process does not die by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Not a test: what the tests below run as a process of its own.
#[test]
#[ignore = "a server for the tests beside it"]
fn server_process() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let options = options(&dir);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::bind(&options).await.unwrap();
        server.run(std::future::pending()).await.unwrap();
    });
}

fn options(dir: &Path) -> Options {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Options::new(dir.join("ca"), listen, dir.join("ca.sock"))
}

/// A CA that can be killed.
struct Mortal {
    folder: tempfile::TempDir,
    process: Child,
}

impl Mortal {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = setup(folder.path().join("ca"));
        setup.lifetimes.jwt = 1;
        authority::init(&setup).await.unwrap();
        let process = spawn(folder.path(), None);
        Self { folder, process }
    }

    /// Starts it again, to die at a place or to live.
    async fn again(&mut self, die_at: Option<&str>, agents: &[Agent]) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.process = spawn(self.folder.path(), die_at);
        let address = self.admin().await.status().await.unwrap().listen;
        for agent in agents {
            agent.moved(address.clone());
        }
    }

    async fn admin(&self) -> Admin {
        for _ in 0..800 {
            if let Ok(mut admin) = Admin::connect(&self.folder.path().join("ca.sock")).await
                && admin.status().await.is_ok()
            {
                return admin;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the CA is not up within 20 s");
    }

    /// It has died by SIGKILL, at the place that was named.
    async fn dies(&mut self, place: &str) {
        let since = tokio::time::Instant::now();
        while since.elapsed() < PATIENCE {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert_eq!(status.signal(), Some(9), "at {place}: {status}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = self.admin().await.rotations().await.unwrap();
        panic!("it did not come to {place}: {:#?}", status.live);
    }

    /// Nothing is under way any more; how the newest rotation ended.
    async fn settles(&self) -> Option<String> {
        let mut admin = self.admin().await;
        for _ in 0..800 {
            let status = admin.rotations().await.unwrap();
            // What the journal says the server takes in a moment later.
            let taken_in = status
                .authorities
                .iter()
                .all(|record| matches!(record.state.as_str(), "active" | "retired"));
            if status.live.is_empty() && taken_in {
                return status.ended.first().map(|rotation| rotation.stage.clone());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("not settled: {:#?}", admin.rotations().await.unwrap().live);
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(dir: &Path, die_at: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "crash::server_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match die_at {
        Some(place) => command.env(DIE_AT, place),
        None => command.env_remove(DIE_AT),
    };
    command.spawn().unwrap()
}

async fn agents(ca: &Mortal) -> Vec<Agent> {
    let mut admin = ca.admin().await;
    for entry in 0..2 {
        let entry = NewEntry {
            spiffe_id: format!("spiffe://example.org/w{entry}"),
            selectors: vec!["netns:web".to_owned()],
            ..NewEntry::default()
        };
        admin.create_entry(&entry).await.unwrap();
    }
    let address = admin.status().await.unwrap().listen;
    let mut agents = Vec::new();
    for at in 0..2 {
        let token = admin
            .create_token(&TokenRequest {
                node: format!("n{at}").parse().unwrap(),
                prefixes: vec![format!("10.1.{at}.0/24").parse().unwrap()],
                underlay: vec!["192.0.2.10".to_owned()],
                ca_address: address.clone(),
                ttl: Duration::from_secs(600),
                joining: false,
            })
            .await
            .unwrap();
        let joined = handfast_ca::client::join(&token).await.unwrap();
        agents.push(Agent::start(&format!("n{at}"), address.clone(), joined));
    }
    for agent in &agents {
        agent.has(2).await;
    }
    agents
}

/// The names that a rotation waits for.
async fn waits_for(admin: &mut Admin) -> Vec<String> {
    let live = admin.rotations().await.unwrap().live;
    let stragglers = live.iter().flat_map(|rotation| &rotation.stragglers);
    let mut names: Vec<String> = stragglers.map(|who| who.subject.clone()).collect();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn activation_waits_for_who_is_cut_off_through_every_kill_and_names_it() {
    let mut ca = Mortal::new().await;
    let agents = agents(&ca).await;
    let traffic = Traffic::start(&agents);
    agents[1].cut(true);
    let before = ca.admin().await.bundle().await.unwrap();
    for place in ["within-root-prepared", "after-root-prepared"] {
        ca.again(Some(place), &agents).await;
        let _ = ca
            .admin()
            .await
            .rotate(order(What::Root, Stage::Revoked))
            .await;
        ca.dies(place).await;
    }
    for _ in 0..3 {
        ca.again(None, &agents).await;
        let mut admin = ca.admin().await;
        // Whoever is there confirms anew; it alone is left, and stays so.
        let since = tokio::time::Instant::now();
        while waits_for(&mut admin).await != ["n1"] {
            let live = admin.rotations().await.unwrap().live;
            assert!(since.elapsed() < PATIENCE, "{live:#?}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let status = admin.status().await.unwrap();
        assert_eq!(admin.rotations().await.unwrap().live[0].stage, "prepared");
        let active = before.fingerprints().next().unwrap().to_string();
        assert_eq!(status.root_fingerprint, active, "the old root signs");
    }
    // Back, by the bundle that it had, and everything goes on by itself.
    agents[1].cut(false);
    assert_eq!(ca.settles().await.as_deref(), Some("revoked"));
    traffic.end().await;
}

/// Dies at each place of a rotation in turn, on one CA that goes on living.
async fn walk(what: What) {
    let mut ca = Mortal::new().await;
    let agents = agents(&ca).await;
    let traffic = Traffic::start(&agents);
    let name = what.name();
    let mut places = vec![format!("{name}-keys-written")];
    places.extend(["within", "after"].map(|when| format!("{when}-{name}-prepared")));
    for step in ["activated", "tainted", "revoked"] {
        places.extend(["before", "within", "after"].map(|when| format!("{when}-{name}-{step}")));
    }
    places.extend(["before-key-destroyed", "after-key-destroyed"].map(ToOwned::to_owned));
    for place in &places {
        let before = ca.admin().await.rotations().await.unwrap().ended.len();
        ca.again(Some(place), &agents).await;
        // It may die before it can answer.
        let _ = ca.admin().await.rotate(order(what, Stage::Revoked)).await;
        ca.dies(place).await;
        ca.again(None, &agents).await;
        let ended = ca.settles().await;
        let status = ca.admin().await.rotations().await.unwrap();
        let never_begun = place.ends_with("-written") || place.ends_with("within-prepared");
        if status.ended.len() > before {
            assert_eq!(ended.as_deref(), Some("revoked"), "{place}");
        } else {
            assert!(
                never_begun || place.starts_with("within") && place.ends_with("-prepared"),
                "{place}: the rotation is lost"
            );
        }
        let active = |kind: &str| {
            let found = status.authorities.iter();
            found
                .filter(|record| record.kind == kind && record.state == "active")
                .count()
        };
        assert_eq!(
            (active("root"), active("issuing"), active("jwt")),
            (1, 1, 1)
        );
        let between = status
            .authorities
            .iter()
            .find(|record| !matches!(record.state.as_str(), "active" | "retired"));
        assert_eq!(between, None, "{place}");
        for record in &status.authorities {
            assert_eq!(
                record.key_here,
                record.state == "active",
                "{place}: {record:?}"
            );
        }
    }
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_s_rotation_survives_kill_9_everywhere() {
    walk(What::Root).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuing_ca_s_rotation_survives_kill_9_everywhere() {
    walk(What::Issuing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_key_s_rotation_survives_kill_9_everywhere() {
    walk(What::Jwt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_survives_kill_9_everywhere() {
    let mut ca = Mortal::new().await;
    let agents = agents(&ca).await;
    let traffic = Traffic::start(&agents);
    let bundle = ca.admin().await.bundle().await.unwrap();
    for place in ["before-abort", "within-abort", "after-abort"] {
        ca.again(Some(place), &agents).await;
        let mut admin = ca.admin().await;
        let started = admin
            .rotate(order(What::Root, Stage::Prepared))
            .await
            .unwrap();
        let _ = admin.abort_rotation(started.id, "a test").await;
        ca.dies(place).await;
        ca.again(None, &agents).await;
        let mut admin = ca.admin().await;
        if let Some(live) = admin.rotations().await.unwrap().live.first() {
            assert_eq!(live.stage, "prepared", "{place}");
            admin.abort_rotation(live.id, "a test").await.unwrap();
        }
        assert_eq!(ca.settles().await.as_deref(), Some("aborted"), "{place}");
        let after = admin.bundle().await.unwrap();
        assert!(after.fingerprints().eq(bundle.fingerprints()), "{place}");
    }
    traffic.end().await;
}
