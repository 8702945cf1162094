//! Rotations as agents live through them: asleep, awake, and with workloads that meet all the while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use handfast_agent::identity::{Standalone, authority_of};
use handfast_agent::workload_api::{Material, Source, WorkloadState};
use handfast_ca::client::rotation::{Force, NewRotation};
use handfast_ca::deny::DenyList;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use super::world::{Ca, LONG, Workload, material};

pub fn order(what: What) -> NewRotation {
    NewRotation {
        what,
        goal: Stage::Revoked,
        reason: "a test".into(),
        compromised: false,
        root: None,
    }
}

/// Until the rotation has ended; its last stage.
pub async fn end(ca: &mut Ca, id: u64) -> String {
    let started = Instant::now();
    loop {
        let status = ca.admin.rotations().await.unwrap();
        if let Some(ended) = status.ended.iter().find(|rotation| rotation.id == id) {
            return ended.stage.clone();
        }
        assert!(started.elapsed() < 2 * LONG, "{:#?}", status.live);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Do two workloads accept each other, by what each holds at this moment?
fn meet(one: &WorkloadState, other: &WorkloadState) -> Result<(), String> {
    let judge = |judge: &Material, shown: &Material| {
        let verifier = Verifier::new(judge.bundles.own.clone(), DenyList::empty());
        shown.svids.iter().try_for_each(|svid| {
            let verified = verifier.workload(&svid.chain, UnixTime::now());
            verified.map(drop).map_err(|error| error.to_string())
        })
    };
    let (one, other) = (material(one), material(other));
    judge(&one, &other)?;
    judge(&other, &one)
}

/// Lets two workloads meet without a pause until told to stop. Counts meetings and failures.
pub struct Meetings {
    stop: Arc<AtomicBool>,
    counts: Arc<(AtomicU64, AtomicU64)>,
    thread: std::thread::JoinHandle<()>,
}

impl Meetings {
    pub fn between(
        one: watch::Receiver<Arc<WorkloadState>>,
        other: watch::Receiver<Arc<WorkloadState>>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                // One side's view may be older than the other's, as on two machines.
                let shown = Arc::clone(&one.borrow());
                std::thread::sleep(Duration::from_millis(1));
                let seen = Arc::clone(&other.borrow());
                if let Err(error) = meet(&shown, &seen) {
                    eprintln!("refused: {error}");
                    counted.1.fetch_add(1, Ordering::Relaxed);
                }
                counted.0.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            counts,
            thread,
        }
    }

    /// Meetings and failures.
    pub fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.counts.0), count(&self.counts.1))
    }
}

fn authorities(workload: &Workload) -> BTreeSet<Arc<str>> {
    let state = Arc::clone(&workload.state.borrow());
    let svids = material(&state).svids;
    svids.iter().map(|svid| authority_of(&svid.chain)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_reaches_every_svid_and_workloads_accept_each_other_all_the_while() {
    const SVIDS: usize = 30;
    let mut ca = Ca::start().await;
    let nodes = [ca.join("one", 1).await, ca.join("two", 2).await];
    for name in ["one", "two"] {
        for number in 0..SVIDS {
            ca.entry(&format!("{name}/{number}"), name).await;
        }
    }
    let agents: Vec<Standalone> = nodes.iter().map(|node| node.start()).collect();
    let mut workloads = Vec::new();
    for agent in &agents {
        let mut workload = Workload::of(agent).await;
        workload
            .until(|state| super::world::ids(state).is_some_and(|ids| ids.len() == SVIDS))
            .await;
        workloads.push(workload);
    }
    let before: Vec<_> = workloads.iter().map(authorities).collect();
    let meetings = Meetings::between(workloads[0].state.clone(), workloads[1].state.clone());
    for what in [What::Root, What::Issuing] {
        let started = Instant::now();
        let rotation = ca.admin.rotate(order(what)).await.unwrap();
        assert_eq!(end(&mut ca, rotation.id).await, "revoked");
        println!("{what:?}: {:.1?}", started.elapsed());
    }
    let (met, refused) = meetings.end();
    println!("{met} meetings");
    assert_eq!(refused, 0);
    assert!(met > 20, "{met}");
    for (workload, before) in workloads.iter().zip(&before) {
        assert!(authorities(workload).is_disjoint(before));
    }
    for agent in &agents {
        let in_use = agent.link().in_use();
        assert!(
            before
                .iter()
                .flatten()
                .all(|old| !in_use.contains(&old.to_string())),
            "{in_use:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_svids_of_a_key_that_was_rotated_are_not_given_out_again() {
    let mut ca = Ca::start().await;
    let node = ca.join("one", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "one").await;
    workload.until_ids(&["web"]).await;
    let audience = vec!["db".to_owned()];
    let fetch = || async {
        let svids = agent
            .workloads()
            .jwt_svids(&workload.attested, audience.clone(), None);
        svids.await.unwrap().remove(0)
    };
    let first = fetch().await;
    assert_eq!(
        *first.token,
        *fetch().await.token,
        "kept for half of its life"
    );
    let keys = agent.link().in_use();
    let rotation = ca.admin.rotate(order(What::Jwt)).await.unwrap();
    let activated = async {
        while agent.link().in_use().iter().all(|key| keys.contains(key)) {
            fetch().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, activated).await.unwrap();
    let next = fetch().await;
    assert_ne!(*first.token, *next.token);
    let bundle = material(&workload.state.borrow()).bundles.own.clone();
    handfast_ca::jwt::verify(&next.token, "db", |_| Some(&bundle), UnixTime::now()).unwrap();
    let live = ca.admin.rotations().await.unwrap().live;
    println!(
        "rotation {}: {:?}",
        rotation.id,
        live.first().map(|r| &r.stage)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_slept_through_a_rotation_catches_up_by_the_cross_signature() {
    let mut ca = Ca::start().await;
    let awake = ca.join("awake", 1).await;
    let sleeper = ca.join("sleeper", 2).await;
    ca.entry("web", "awake").await;
    ca.entry("db", "sleeper").await;
    let agent = awake.start();
    let sleeping = sleeper.start();
    let mut web = Workload::of(&agent).await;
    web.until_ids(&["web"]).await;
    let mut db = Workload::of(&sleeping).await;
    db.until_ids(&["db"]).await;
    drop((sleeping, db));

    let rotation = ca.admin.rotate(order(What::Root)).await.unwrap();
    let named = async {
        loop {
            let status = ca.admin.rotations().await.unwrap();
            let Some(live) = status.live.iter().find(|r| r.id == rotation.id) else {
                break;
            };
            if live
                .stragglers
                .iter()
                .any(|who| who.subject.contains("sleeper"))
            {
                let forced = ca
                    .admin
                    .steer_rotation(rotation.id, Stage::Revoked, &Force::Everybody, "it sleeps")
                    .await;
                // The step may have been taken meanwhile.
                drop(forced);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(2 * LONG, named).await.unwrap();
    assert_eq!(end(&mut ca, rotation.id).await, "revoked");

    let woken = sleeper.start();
    let mut db = Workload::of(&woken).await;
    let met = async {
        loop {
            let (one, other) = (
                Arc::clone(&web.state.borrow()),
                Arc::clone(&db.state.borrow()),
            );
            let ready = matches!(*other, WorkloadState::Ready(_));
            if ready && meet(&one, &other).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, met).await.unwrap();
    db.until_ids(&["db"]).await;
}
