//! A server that no longer hears what the others decide signs for a stated time, and then not.

use std::time::{Duration, Instant};

use handfast_ca::authority;
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::server::Server;

use super::common::next;
use super::common::postgres::Postgres;
use super::pair::{One, connect, entry, join, options, serve, svid, vouch, wanted, within};

const LIMIT: Duration = Duration::from_secs(8);

async fn two(folder: &std::path::Path, url: &str) -> (One, One) {
    authority::init(&wanted(folder, "east", url)).await.unwrap();
    let mut east = serve(&options(folder, "east")).await;
    authority::init(&wanted(folder, "west", url)).await.unwrap();
    vouch(&mut east, folder, "west").await;
    let mut limited = options(folder, "west");
    limited.sign_without_store = LIMIT;
    (east, serve(&limited).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_store_a_server_signs_for_the_stated_time_and_goes_on_when_it_is_back() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (_east, mut west) = two(folder.path(), &postgres.url("handfast")).await;
    let joined = join(&mut west, "web1", "10.1.0.0/24").await;
    let web = entry(&mut west.admin, "web").await;
    let agent = connect(west.address, &joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    tokio::time::sleep(LIMIT + Duration::from_secs(2)).await;
    svid(&agent, &web).await.unwrap();
    west.health.check().unwrap();

    let since = Instant::now();
    postgres.stop();
    svid(&agent, &web).await.unwrap();
    // What was open ends, so that the agent goes to who has a store.
    within(LIMIT.as_secs() + 3, "the stream ends", async || {
        let next = tokio::time::timeout(Duration::from_millis(50), updates.next()).await;
        matches!(next, Ok(Err(_) | Ok(None)))
    })
    .await;
    assert!(
        since.elapsed() > LIMIT - Duration::from_secs(3),
        "not before"
    );
    let again = connect(west.address, &joined).await.unwrap();
    let refusal = svid(&again, &web).await.unwrap_err();
    assert!(refusal.contains("has not reached its store"), "{refusal}");
    let refusal = again
        .issue_jwt(&web, &["someone".to_owned()])
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refusal.contains("has not reached its store"), "{refusal}");
    let refusal = again.updates().await.err().unwrap();
    assert!(!refusal.is_denial(), "the agent is not to blame: {refusal}");
    let unready = west.health.check().unwrap_err();
    assert!(unready.contains("has not reached its store"), "{unready}");

    postgres.start_again();
    within(15, "it signs again", async || {
        svid(&again, &web).await.is_ok()
    })
    .await;
    west.health.check().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_removed_stops_at_once_and_does_not_come_back() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let url = postgres.url("handfast");
    let (mut east, mut west) = two(folder.path(), &url).await;
    let joined = join(&mut west, "web1", "10.1.0.0/24").await;
    let web = entry(&mut west.admin, "web").await;
    let agent = connect(west.address, &joined).await.unwrap();
    svid(&agent, &web).await.unwrap();

    east.admin.remove_server("west", "a test").await.unwrap();
    let stopped = within(3, "west signs no more", async || {
        svid(&agent, &web).await.is_err()
    })
    .await;
    println!("a removed server signed for {stopped:?}");
    let unready = west.health.check().unwrap_err();
    assert!(unready.contains("was removed"), "{unready}");
    within(3, "agents are turned away", async || {
        let refused = connect(west.address, &joined).await.err();
        refused.is_some_and(|refused| !refused.is_denial())
    })
    .await;
    // The agent goes to the other one with what it has.
    let agent = connect(east.address, &joined).await.unwrap();
    svid(&agent, &web).await.unwrap();

    // It holds no rotation back, and gets no part in it, though it still runs.
    east.admin
        .change_nodes(
            handfast_ca::model::NodeAct::Evict,
            &["web1".parse().unwrap()],
            "it is no agent that follows",
        )
        .await
        .unwrap();
    let order = NewRotation {
        what: What::Root,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    };
    let started = east.admin.rotate(order).await.unwrap();
    within(15, "the rotation ends", async || {
        let status = east.admin.rotations().await.unwrap();
        status
            .ended
            .iter()
            .any(|ended| ended.id == started.id && ended.stage == "revoked")
    })
    .await;
    let authorities = east.admin.rotations().await.unwrap().authorities;
    let mut of_west = authorities.iter().filter(|one| one.server == "west");
    assert!(
        of_west.all(|one| one.state == "retired"),
        "{authorities:#?}"
    );

    west.stop().await;
    let error = Server::bind(&options(folder.path(), "west")).await.err();
    let error = error.unwrap().to_string();
    assert!(error.contains("was removed"), "{error}");
}
