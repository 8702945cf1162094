//! The CA goes away, the agent is killed and started again: workloads notice nothing.

use std::time::Duration;

use super::world::{Ca, Workload};

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_keeps_its_identities_while_the_ca_is_away_and_hears_of_news_when_it_is_back()
 {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;
    let (folder, port) = ca.stop().await;
    let mut reached = agent.link().reached();
    reached.wait_for(Option::is_none).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!workload.state.has_changed().unwrap());

    let mut ca = Ca::serve(folder, port).await;
    ca.entry("more", "web1").await;
    let after = workload.until_ids(&["web", "more"]).await;
    assert_eq!(before.svids[0].chain, after.svids[0].chain);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_again_without_the_ca_serves_what_the_last_one_had() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;
    // The file is written after the stream has heard.
    let folder = node.memory.path().join("svids");
    let written = async {
        while super::world::kept(&folder, "pem") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::world::LONG, written)
        .await
        .unwrap();
    let _away = ca.stop().await;
    drop(agent);

    let agent = node.start();
    let workload = Workload::of(&agent).await;
    // At once: nothing is waited for.
    let after = super::world::material(&workload.state.borrow());
    assert_eq!(before.svids[0].chain, after.svids[0].chain);
    assert_eq!(before.svids[0].key, after.svids[0].key);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_whose_entry_went_while_the_agent_was_down_is_dropped_when_it_hears_of_it() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    let entry = ca.entry("web", "web1").await;
    ca.entry("stays", "web1").await;
    workload.until_ids(&["web", "stays"]).await;
    drop(agent);
    ca.admin.delete_entry(&entry.id, "a test").await.unwrap();
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    workload.until_ids(&["stays"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_server_does_not_answer_finds_another_one() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let agent = node.start();
    let address = ca.address.to_string();
    agent.link().set_servers(vec![silent, address.clone()]);
    let mut reached = agent.link().reached();
    reached.wait_for(Option::is_some).await.unwrap();
    let (folder, port) = ca.stop().await;
    reached.wait_for(Option::is_none).await.unwrap();
    let _ca = Ca::serve(folder, port).await;
    let found = tokio::time::timeout(
        super::world::LONG,
        reached.wait_for(|at| at.as_deref() == Some(address.as_str())),
    );
    found.await.unwrap().unwrap();
}
