//! Rotations from their first step to their last, and what stops them on the way.

use std::time::Duration;

use handfast_ca::authority;
use handfast_ca::client::admin::Admin;
use handfast_ca::client::rotation::{Force, NewRotation, Rotation};
use handfast_ca::deny::DenyList;
use handfast_ca::model::Subject;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::verify::Verifier;

use super::agent::{Agent, Traffic, eventually, issuer, now};
use super::common::{Ca, next, setup};

pub fn order(what: What, goal: Stage) -> NewRotation {
    NewRotation {
        what,
        goal,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    }
}

pub async fn agents(ca: &mut Ca, count: usize, entries: usize) -> Vec<Agent> {
    for entry in 0..entries {
        ca.entry(&format!("spiffe://example.org/w{entry}"), None)
            .await;
    }
    let mut agents = Vec::new();
    for at in 0..count {
        let name = format!("n{at}");
        let joined = ca.join(&name, &format!("10.1.{at}.0/24")).await;
        agents.push(Agent::start(&name, ca.address.to_string(), joined));
    }
    for agent in &agents {
        agent.has(entries).await;
    }
    agents
}

/// The rotation, once it stands where it should.
pub async fn until(admin: &mut Admin, id: u64, stage: &str) -> Rotation {
    for _ in 0..1200 {
        let status = admin.rotations().await.unwrap();
        let found = status
            .live
            .into_iter()
            .chain(status.ended)
            .find(|rotation| rotation.id == id);
        if let Some(rotation) = found
            && rotation.stage == stage
        {
            return rotation;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let status = admin.rotations().await.unwrap();
    panic!(
        "rotation {id} is not {stage} within 30 s: {:#?}",
        status.live
    );
}

fn key_files(ca: &Ca, kind: &str) -> usize {
    let keys = std::fs::read_dir(ca.folder.path().join("ca/keys")).unwrap();
    keys.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with(kind)
    })
    .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_takes_over_with_every_handshake_good() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 3, 5).await;
    let before = ca.admin.bundle().await.unwrap();
    let old: Vec<String> = agents
        .iter()
        .flat_map(Agent::chains)
        .map(|chain| issuer(&chain))
        .collect();
    let traffic = Traffic::start(&agents);
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap();
    let ended = until(&mut ca.admin, started.id, "revoked").await;
    traffic.end().await;
    let steps: Vec<&str> = ended.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(steps, ["prepared", "activated", "tainted", "revoked"]);
    assert_eq!(ended.steps[0].reason, "a test");

    let after = ca.admin.bundle().await.unwrap();
    assert_eq!(after.roots().count(), 1);
    assert_ne!(after.fingerprints().next(), before.fingerprints().next());
    assert!(after.sequence() > before.sequence());
    eventually("agents have the new bundle alone", || {
        agents
            .iter()
            .all(|agent| agent.held.bundle.lock().unwrap().roots().count() == 1)
    })
    .await;
    for agent in &agents {
        for chain in agent.chains() {
            assert!(!old.contains(&issuer(&chain)));
        }
        // Not even by accident: what is new does not verify by what is gone.
        let gone = Verifier::new(before.clone(), DenyList::empty());
        assert!(gone.workload(&agent.chains()[1], now()).is_err());
    }
    // What may sign nothing any more is destroyed.
    assert_eq!((key_files(&ca, "root"), key_files(&ca, "issuing")), (1, 1));
    // Who joins now begins with the new root.
    ca.join("late", "10.2.0.0/24").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuing_ca_is_replaced_without_a_new_bundle() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 2, 3).await;
    let before = ca.admin.bundle().await.unwrap();
    let old = issuer(&agents[0].chains()[1]);
    let traffic = Traffic::start(&agents);
    let started = ca
        .admin
        .rotate(order(What::Issuing, Stage::Revoked))
        .await
        .unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
    traffic.end().await;
    assert_eq!(ca.admin.bundle().await.unwrap(), before);
    for chain in agents.iter().flat_map(Agent::chains) {
        assert_ne!(issuer(&chain), old);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_key_leaves_the_bundle_when_its_last_token_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = setup(folder.path().join("ca"));
    setup.lifetimes.jwt = 2;
    authority::init(&setup).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    let _agents = agents(&mut ca, 2, 1).await;
    let keys = |bundle: &handfast_ca::bundle::TrustBundle| bundle.jwt_keys().len();
    let before = ca.admin.bundle().await.unwrap();
    assert_eq!(keys(&before), 1);
    let started = ca
        .admin
        .rotate(order(What::Jwt, Stage::Revoked))
        .await
        .unwrap();
    let tainted = until(&mut ca.admin, started.id, "tainted").await;
    assert_eq!(keys(&ca.admin.bundle().await.unwrap()), 2);
    let ended = until(&mut ca.admin, started.id, "revoked").await;
    let at = |name: &str| {
        let step = ended.steps.iter().find(|step| step.step == name);
        step.unwrap().at_ms
    };
    assert!(at("revoked") - at("tainted") >= 2000);
    assert!(tainted.stragglers.iter().any(|who| who.subject == "tokens"));
    let after = ca.admin.bundle().await.unwrap();
    assert_eq!(keys(&after), 1);
    assert_ne!(after.jwt_keys()[0].key_id(), before.jwt_keys()[0].key_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn activation_waits_for_who_is_cut_off_and_names_it() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 3, 2).await;
    let traffic = Traffic::start(&agents);
    agents[1].cut(true);
    eventually_connected(&mut ca, 2).await;
    let plan = ca.admin.plan_rotation(What::Root, false).await.unwrap();
    assert_eq!(plan.breaks.len(), 1, "{:?}", plan.breaks);
    assert_eq!(plan.breaks[0].subject, "n1");
    assert!(plan.breaks[0].reason.contains("not connected"));
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap();
    // The others confirm; it does not.
    only(&mut ca.admin, "n1").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let waiting = ca.admin.rotations().await.unwrap().live.remove(0);
    assert_eq!(waiting.stage, "prepared");
    let names: Vec<&str> = waiting
        .stragglers
        .iter()
        .map(|who| who.subject.as_str())
        .collect();
    assert_eq!(names, ["n1"]);
    let node = waiting.nodes.iter().find(|node| node.name == "n1").unwrap();
    assert!(!node.confirmed && !node.connected);
    // It comes back, and everything goes on by itself.
    agents[1].cut(false);
    until(&mut ca.admin, started.id, "revoked").await;
    traffic.end().await;
}

/// Waits until everybody else has confirmed.
async fn only(admin: &mut Admin, name: &str) {
    for _ in 0..400 {
        let waiting = admin.rotations().await.unwrap().live.remove(0);
        let mut names = waiting.stragglers.iter().map(|who| who.subject.as_str());
        if names.len() > 0 && names.all(|subject| subject == name) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {name} alone");
}

async fn eventually_connected(ca: &mut Ca, count: u64) {
    for _ in 0..400 {
        if ca.admin.status().await.unwrap().nodes_connected == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {count} nodes connected within 10 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_is_passed_for_a_reason_only_and_catches_up_by_the_cross_signature() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 2, 2).await;
    agents[0].cut(true);
    eventually_connected(&mut ca, 1).await;
    // Twice, so that it has to follow two signatures.
    for _ in 0..2 {
        let started = ca
            .admin
            .rotate(order(What::Root, Stage::Revoked))
            .await
            .unwrap();
        for stage in ["prepared", "activated", "tainted"] {
            until(&mut ca.admin, started.id, stage).await;
            only(&mut ca.admin, "n0").await;
            let unexplained = ca
                .admin
                .steer_rotation(started.id, Stage::Revoked, &Force::Everybody, "")
                .await;
            assert!(unexplained.unwrap_err().to_string().contains("--reason"));
            let reason = "n0 is in the cellar";
            ca.admin
                .steer_rotation(started.id, Stage::Revoked, &Force::Everybody, reason)
                .await
                .unwrap();
        }
        let ended = until(&mut ca.admin, started.id, "revoked").await;
        let passed: Vec<&String> = ended.steps.iter().flat_map(|step| &step.passed).collect();
        assert!(
            passed.len() >= 3 && passed.iter().all(|who| who.contains("n0")),
            "{passed:?}"
        );
        assert!(ended.steps.iter().any(|step| step.step == "force"
            && step.reason == "n0 is in the cellar"
            && step.by.contains("uid")));
    }
    // It knows a root that nobody signs by any more, and still finds its way.
    let known = agents[0].held.bundle.lock().unwrap().fingerprints().next();
    let now_valid = ca.admin.bundle().await.unwrap();
    assert!(!now_valid.fingerprints().any(|print| Some(print) == known));
    agents[0].cut(false);
    let want = now_valid.fingerprints().next();
    eventually("it has the new bundle", || {
        agents[0].held.bundle.lock().unwrap().fingerprints().next() == want
    })
    .await;
    eventually("it has new SVIDs", || {
        let verifier = agents[1].verifier();
        agents[0].chains()[1..]
            .iter()
            .all(|chain| verifier.workload(chain, now()).is_ok())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_follows_a_root_that_is_compromised() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 2, 1).await;
    agents[0].cut(true);
    eventually_connected(&mut ca, 1).await;
    let mut wanted = order(What::Root, Stage::Revoked);
    wanted.compromised = true;
    let started = ca.admin.rotate(wanted).await.unwrap();
    for stage in ["prepared", "activated", "tainted"] {
        until(&mut ca.admin, started.id, stage).await;
        only(&mut ca.admin, "n0").await;
        ca.admin
            .steer_rotation(started.id, Stage::Revoked, &Force::Everybody, "stolen key")
            .await
            .unwrap();
    }
    until(&mut ca.admin, started.id, "revoked").await;
    assert_eq!(ca.admin.bundle().await.unwrap().cross_signed().count(), 0);
    agents[0].held.last_error.lock().unwrap().clear();
    agents[0].cut(false);
    eventually("it is turned away", || {
        agents[0]
            .held
            .last_error
            .lock()
            .unwrap()
            .contains("no valid path")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_was_signed_under_a_root_of_the_past_still_speaks_for_the_log() {
    let mut ca = Ca::start().await;
    let joined = ca.join("slept", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    let heads = loop {
        if let Some(heads) = next(&mut updates).await.audit_heads {
            break heads;
        }
    };
    let kept: Vec<Vec<u8>> = heads.iter().map(|head| head.bytes().to_vec()).collect();
    assert!(!kept.is_empty());
    drop((updates, agent));
    let nodes = [joined.node.name.clone()];
    let act = handfast_ca::model::NodeAct::Evict;
    ca.admin.change_nodes(act, &nodes, "a test").await.unwrap();
    let started = ca.admin.rotate(order(What::Root, Stage::Revoked)).await;
    until(&mut ca.admin, started.unwrap().id, "revoked").await;
    let verified = ca.admin.verify_audit(kept.clone()).await.unwrap();
    assert!(verified.is_ok(), "{verified:?}");
    // The same of the files, where no CA runs.
    let folder = ca.stop().await;
    let dir = folder.path().join("ca");
    let (_, bundle) = authority::Authority::published(&dir).await.unwrap();
    for head in &kept {
        handfast_ca::audit::AuditHead::from_bytes(head, &bundle).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_root_does_not_wait_for_an_issuing_ca_that_it_replaces() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 2, 1).await;
    agents[0].cut(true);
    eventually_connected(&mut ca, 1).await;
    let issuing = order(What::Issuing, Stage::Revoked);
    let issuing = ca.admin.rotate(issuing).await.unwrap();
    until(&mut ca.admin, issuing.id, "activated").await;
    // An ordinary one does, and says how that ends.
    let mut wanted = order(What::Root, Stage::Revoked);
    let error = ca.admin.rotate(wanted.clone()).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("issuing CA of server ca is activated")
            && error.contains("--what issuing --force")
            && !error.contains("--abort"),
        "{error}"
    );
    wanted.compromised = true;
    let plan = ca.admin.plan_rotation(What::Root, true).await.unwrap();
    assert!(plan.breaks.iter().all(|one| one.subject != "rotation"));
    let root = ca.admin.rotate(wanted).await.unwrap();
    until(&mut ca.admin, issuing.id, "overtaken").await;
    agents[0].cut(false);
    until(&mut ca.admin, root.id, "revoked").await;
    let left = ca.admin.rotations().await.unwrap().authorities;
    let signing = left.iter().filter(|one| one.kind == "issuing");
    let signing: Vec<&str> = signing
        .filter(|one| one.state != "retired")
        .map(|one| one.state.as_str())
        .collect();
    assert_eq!(signing, ["active"], "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_taken_back_before_it_is_activated_and_not_after() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 1, 1).await;
    let before = ca.admin.bundle().await.unwrap();
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Prepared))
        .await
        .unwrap();
    assert_eq!(ca.admin.bundle().await.unwrap().roots().count(), 2);
    assert_eq!(key_files(&ca, "root"), 2);
    let second = ca.admin.rotate(order(What::Issuing, Stage::Revoked)).await;
    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains("nothing was changed")
    );
    let unsaid = ca.admin.abort_rotation(started.id, " ").await.unwrap_err();
    assert!(unsaid.to_string().contains("say why"), "{unsaid}");
    let aborted = ca
        .admin
        .abort_rotation(started.id, "changed my mind")
        .await
        .unwrap();
    assert_eq!(aborted.stage, "aborted");
    let after = ca.admin.bundle().await.unwrap();
    assert!(after.fingerprints().eq(before.fingerprints()));
    assert_eq!((key_files(&ca, "root"), key_files(&ca, "issuing")), (1, 1));
    eventually("the agent has dropped it again", || {
        agents[0].held.bundle.lock().unwrap().roots().count() == 1
    })
    .await;

    // Single steps go as far as they are told.
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Activated))
        .await
        .unwrap();
    until(&mut ca.admin, started.id, "activated").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    until(&mut ca.admin, started.id, "activated").await;
    let refused = ca.admin.abort_rotation(started.id, "too late").await;
    assert!(refused.unwrap_err().to_string().contains("can only go on"));
    ca.admin
        .steer_rotation(started.id, Stage::Revoked, &Force::Nobody, "")
        .await
        .unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_holds_nothing_up() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 2, 1).await;
    agents[0].cut(true);
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap();
    until(&mut ca.admin, started.id, "prepared").await;
    let node = Subject::Node("n0".parse().unwrap());
    ca.admin.revoke(&node, "stolen").await.unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn force_that_names_one_straggler_goes_on_waiting_for_the_others() {
    let mut ca = Ca::start().await;
    let agents = agents(&mut ca, 3, 1).await;
    agents[0].cut(true);
    agents[1].cut(true);
    eventually_connected(&mut ca, 1).await;
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Activated))
        .await
        .unwrap();
    let burnt = |name: &str| Force::Nodes(vec![name.parse().unwrap()]);
    for (whom, reason) in [("n0", " "), ("n9", "no such node")] {
        let steered = ca
            .admin
            .steer_rotation(started.id, Stage::Activated, &burnt(whom), reason)
            .await;
        assert!(steered.is_err(), "{whom} {reason:?}");
    }
    ca.admin
        .steer_rotation(started.id, Stage::Activated, &burnt("n0"), "n0 burnt down")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let waiting = until(&mut ca.admin, started.id, "prepared").await;
    assert!(waiting.stragglers.iter().any(|who| who.subject == "n1"));
    let forced = waiting.steps.iter().find(|step| step.step == "force");
    assert_eq!(forced.unwrap().passed, ["node n0"]);

    agents[1].cut(false);
    let done = until(&mut ca.admin, started.id, "activated").await;
    let step = done.steps.iter().find(|step| step.step == "activated");
    let step = step.unwrap();
    assert_eq!(step.passed.len(), 1, "{:?}", step.passed);
    assert!(step.passed[0].contains("n0"));
    assert_eq!(step.reason, "n0 burnt down");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_right_after_a_rotation_believes_all_that_it_is_told() {
    let mut ca = Ca::start().await;
    let _agents = agents(&mut ca, 1, 1).await;
    let order = order(What::Root, Stage::Revoked);
    let started = ca.admin.rotate(order).await.unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
    let joined = ca.join("late", "10.2.0.0/24").await;
    let mut updates = ca.connect(&joined).await.unwrap().updates().await.unwrap();
    let first = next(&mut updates).await;
    assert!(first.audit_heads.is_some_and(|heads| heads.len() == 1));
    assert!(first.problems.is_empty(), "{:?}", first.problems);
    ca.stop().await;
}
