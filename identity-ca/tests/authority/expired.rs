//! A CA that was off until its issuing CA had expired comes back by itself, or says what it needs.

use std::time::Duration;

use handfast_ca::authority;
use handfast_ca::client;

use super::common::postgres::Postgres;
use super::common::{Ca, offline, options, setup};
use super::pair::{self, connect, entry, svid, vouch, wanted, within};

const SHORT: u64 = 5;

async fn out_of_time() {
    tokio::time::sleep(Duration::from_secs(SHORT + 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_roots_key_it_makes_itself_a_new_issuing_ca_and_jwt_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    wanted.lifetimes.issuing = SHORT;
    wanted.lifetimes.jwt_key = SHORT;
    authority::init(&wanted).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    let web = entry(&mut ca.admin, "web").await;
    let before = ca.admin.rotations().await.unwrap().authorities;
    let folder = ca.stop().await;
    out_of_time().await;

    let mut ca = Ca::serve(folder, 0).await;
    // At once: it does not wait for agents who cannot connect before.
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    svid(&agent, &web).await.unwrap();
    let token = agent.issue_jwt(&web, &["someone".to_owned()]).await;
    token.unwrap().unwrap();
    let status = ca.admin.rotations().await.unwrap();
    for kind in ["issuing", "jwt"] {
        let old = before.iter().find(|one| one.kind == kind).unwrap();
        let now = status.authorities.iter().find(|one| one.id == old.id);
        assert!(
            now.is_none_or(|now| now.state != "active"),
            "{kind}: {now:?}"
        );
        let mut journals = status.live.iter().chain(&status.ended);
        let journal = journals.find(|one| one.what == kind).unwrap();
        assert_eq!(journal.steps[1].step, "activated");
        assert!(journal.steps[0].reason.contains("expired while"));
    }
    let mut acts = Vec::new();
    let filter = handfast_ca::audit::Filter {
        act: Some("rotation.revive".to_owned()),
        ..Default::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        acts.push(record.subject);
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    assert_eq!(acts, ["issuing", "jwt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_offline_root_it_says_what_to_do_and_signs_once_that_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let root = offline::init(folder.path(), SHORT).await;
    let ca = Ca::serve(folder, 0).await;
    let folder = ca.stop().await;
    out_of_time().await;

    let options = options(&folder, 0);
    let server = handfast_ca::server::Server::bind(&options).await.unwrap();
    let health = server.health();
    let mut ca = Ca::run(folder, &options, server).await;
    assert_eq!(ca.admin.bundle().await.unwrap().roots().count(), 1);
    let web = entry(&mut ca.admin, "web").await;
    within(5, "what to do is said", async || {
        let unready = health.check().unwrap_err();
        unready.contains("has expired") && unready.contains("ca root install")
    })
    .await;
    let token = ca.token("web1", "10.1.0.0/24").await;
    assert!(
        client::join(&token).await.is_err(),
        "nobody joins meanwhile"
    );

    let (request, server) = ca.admin.request_issuing("it expired").await.unwrap();
    let certificate = root.sign(&request, &server, 50_000).unwrap();
    ca.admin.install_issuing(certificate).await.unwrap();
    within(5, "it is ready", async || health.check().is_ok()).await;
    let joined = client::join(&token).await.unwrap();
    let agent = ca.connect(&joined).await.unwrap();
    svid(&agent, &web).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_roots_key_is_helped_by_one_that_has_it() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let url = postgres.url("handfast");
    let mut first = wanted(folder, "east", &url);
    first.lifetimes.issuing = SHORT;
    authority::init(&first).await.unwrap();
    let mut east = pair::serve(&pair::options(folder, "east")).await;
    authority::init(&wanted(folder, "west", &url))
        .await
        .unwrap();
    vouch(&mut east, folder, "west").await;
    let west = pair::serve(&pair::options(folder, "west")).await;
    west.stop().await;
    out_of_time().await;

    let mut west = pair::serve(&pair::options(folder, "west")).await;
    let took = within(10, "it signs again", async || west.health.check().is_ok()).await;
    println!("helped after {took:?}");
    let joined = pair::join(&mut west, "web1", "10.1.0.0/24").await;
    connect(west.address, &joined).await.unwrap();
}
