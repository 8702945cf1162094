//! Who was let in is judged again: a connection lasts no longer than the right to it.

use std::time::Duration;

use handfast_ca::client::AgentClient;
use handfast_ca::client::rotation::{Force, NewRotation};
use handfast_ca::model::{NodeAct, Subject};
use handfast_ca::rotation::{Stage, What};

use super::common::Ca;
use super::pair::{entry, svid, within};

/// Is the connection itself gone? A refusal comes over a living one. The client
/// has one connection and makes no other.
async fn is_closed(agent: &AgentClient) -> bool {
    agent
        .issue_jwt("none", &["someone".to_owned()])
        .await
        .is_err()
}

fn order(compromised: bool) -> NewRotation {
    NewRotation {
        what: What::Root,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised,
        root: None,
    }
}

/// Turns the root, past a node that confirms nothing.
async fn rotate_past(ca: &mut Ca, compromised: bool) {
    let started = ca.admin.rotate(order(compromised)).await.unwrap();
    for _ in 0..200 {
        let status = ca.admin.rotations().await.unwrap();
        if status.ended.iter().any(|ended| ended.id == started.id) {
            return;
        }
        // Refused if it has just gone on: then the next step is forced.
        let steered = ca
            .admin
            .steer_rotation(
                started.id,
                Stage::Revoked,
                &Force::Everybody,
                "it is no agent",
            )
            .await;
        drop(steered);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the rotation does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compromised_roots_connections_end_when_it_is_revoked() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let web = entry(&mut ca.admin, "web").await;
    let agent = ca.connect(&joined).await.unwrap();
    svid(&agent, &web).await.unwrap();
    rotate_past(&mut ca, true).await;
    let took = within(2, "the connection ends", async || is_closed(&agent).await).await;
    println!("cut {took:?} after the revocation");
    assert!(ca.connect(&joined).await.is_err(), "nor is it let in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_ordinary_rotation_agents_come_back_with_what_they_have_now() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let web = entry(&mut ca.admin, "web").await;
    let agent = ca.connect(&joined).await.unwrap();
    svid(&agent, &web).await.unwrap();
    rotate_past(&mut ca, false).await;
    within(8, "the connection ends", async || is_closed(&agent).await).await;
    // It slept: it is led to the new root.
    let now = ca.admin.bundle().await.unwrap();
    let verifier = handfast_ca::verify::Verifier::new(now, handfast_ca::deny::DenyList::empty());
    let back = AgentClient::connect(&ca.address.to_string(), &verifier, &joined.identity)
        .await
        .unwrap();
    svid(&back, &web).await.unwrap();
    // And stays: what it came with was known to be old.
    let mut jwt = order(false);
    jwt.what = What::Jwt;
    ca.admin.rotate(jwt).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    svid(&back, &web).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_an_evicted_and_a_revoked_node_lose_their_connections_and_others_keep_theirs() {
    let mut ca = Ca::start().await;
    let web = entry(&mut ca.admin, "web").await;
    let mut agents = Vec::new();
    for (at, name) in ["banned", "evicted", "revoked", "bystander"]
        .into_iter()
        .enumerate()
    {
        let joined = ca.join(name, &format!("10.1.{at}.0/24")).await;
        agents.push(ca.connect(&joined).await.unwrap());
    }
    for agent in &agents {
        svid(agent, &web).await.unwrap();
    }
    for (name, act) in [("banned", NodeAct::Ban), ("evicted", NodeAct::Evict)] {
        let names = [name.parse().unwrap()];
        ca.admin.change_nodes(act, &names, "a test").await.unwrap();
    }
    ca.admin
        .revoke(&Subject::Node("revoked".parse().unwrap()), "a test")
        .await
        .unwrap();
    for agent in &agents[..3] {
        within(4, "the connection ends", async || is_closed(agent).await).await;
    }
    svid(&agents[3], &web).await.unwrap();
}
