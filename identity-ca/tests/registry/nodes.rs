//! Nodes that are put out: evicted, banned, and let in again.

use handfast_ca::client::Section;
use handfast_ca::model::{NodeAct, Subject};

use super::common::{Ca, end, next};

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_node_gets_nothing_until_it_attests_again() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    let names = ["web1".parse().unwrap()];
    let error = ca.admin.change_nodes(NodeAct::Evict, &names, " ").await;
    assert!(error.unwrap_err().to_string().contains("say why"));
    assert!(
        ca.admin
            .change_nodes(NodeAct::Evict, &names, "a test")
            .await
            .unwrap()
    );
    assert!(
        !ca.admin
            .change_nodes(NodeAct::Evict, &names, "again")
            .await
            .unwrap()
    );

    let ended = end(&mut updates).await;
    assert!(
        ended.is_denial() && ended.to_string().contains("evicted"),
        "{ended}"
    );
    let error = ca
        .connect(&joined)
        .await
        .unwrap()
        .updates()
        .await
        .unwrap_err();
    assert!(error.is_denial(), "{error}");
    assert!(ca.admin.nodes().await.unwrap()[0].evicted);

    let stolen = joined;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let node = ca.admin.nodes().await.unwrap().remove(0);
    assert!(!node.evicted);
    // Whoever has the certificate from before has not attested again.
    let late = match ca.connect(&stolen).await {
        Ok(agent) => agent.updates().await.map(drop).unwrap_err(),
        Err(error) => error,
    };
    assert!(late.is_denial(), "{late}");
    assert_eq!(node.attestation, "join_token");
    ca.connect(&joined).await.unwrap().updates().await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_node_stays_out_until_that_is_lifted() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let before = ca.token("web1", "10.1.0.0/24").await;
    let names = ["web1".parse().unwrap()];
    assert!(
        ca.admin
            .change_nodes(NodeAct::Ban, &names, "stolen")
            .await
            .unwrap()
    );
    assert!(ca.connect(&joined).await.is_err(), "cut at once");
    // Its peers hear of it.
    let peer = ca.connect(&other).await.unwrap();
    let deny = next(&mut peer.updates().await.unwrap())
        .await
        .deny_list
        .unwrap();
    assert!(deny.denies(&Subject::Node("web1".parse().unwrap())));
    let error = handfast_ca::client::join(&before)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("void"), "{error}");
    let fresh = ca.token("web1", "10.1.0.0/24").await;
    let error = handfast_ca::client::join(&fresh)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("banned (stolen)"), "{error}");

    assert!(
        ca.admin
            .change_nodes(NodeAct::Unban, &names, "found")
            .await
            .unwrap()
    );
    assert!(ca.admin.revocations().await.unwrap().1.is_empty());
    let error = ca
        .connect(&joined)
        .await
        .unwrap()
        .updates()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("attest again"), "{error}");
    let joined = handfast_ca::client::join(&fresh).await.unwrap();
    ca.connect(&joined).await.unwrap().updates().await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_is_told_to_the_others_alone_and_what_agents_say_of_themselves_to_nobody() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    ca.join("db1", "10.2.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    let first = next(&mut updates).await;
    assert!(matches!(first.nodes, Some(Section::All(all)) if all.len() == 2));

    // A token changes what the registry knows of a node, but its peers nothing before it has joined.
    let token = ca.token("db2", "10.3.0.0/24").await;
    handfast_ca::client::join(&token).await.unwrap();
    let mut told = Vec::new();
    while told.is_empty() {
        match next(&mut updates).await.nodes {
            Some(Section::Changes { changed, removed }) => {
                assert!(removed.is_empty());
                told = changed;
            }
            Some(Section::All(all)) => panic!("all {} of them again", all.len()),
            None => {}
        }
    }
    let names: Vec<&str> = told.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["db2"]);

    agent.ack(first.sequence, Some("a problem")).await.unwrap();
    ca.entry("spiffe://example.org/web", Some("web1")).await;
    let update = next(&mut updates).await;
    assert!(update.entries.is_some() && update.nodes.is_none());
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joining_node_becomes_managed_and_joining_again_and_others_hear_of_it() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let peer = ca.connect(&other).await.unwrap();
    let mut updates = peer.updates().await.unwrap();
    next(&mut updates).await;
    let names = [joined.node.name.clone()];
    for (act, managed) in [(NodeAct::Relax, false), (NodeAct::Enforce, true)] {
        assert!(ca.admin.change_nodes(act, &names, "a test").await.unwrap());
        assert!(!ca.admin.change_nodes(act, &names, "again").await.unwrap());
        loop {
            let told = next(&mut updates).await.nodes;
            let mut told = told.iter().flat_map(|nodes| nodes.named());
            let about = told.rfind(|node| node.name == names[0]);
            if about.is_some_and(|web| web.managed == managed) {
                break;
            }
        }
        // It stays in the mesh all the while.
        ca.connect(&joined).await.unwrap();
    }
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_of_a_denied_node_are_free_and_it_does_not_come_back_to_them() {
    let mut ca = Ca::start().await;
    let gone = ca.join("old1", "10.1.0.0/24").await;
    let subject = || Subject::Node(gone.node.name.clone());
    let error = refused_token(&mut ca, "new1", "10.1.0.0/24").await;
    assert!(error.contains("revoke --node old1"), "{error}");
    ca.admin
        .revoke(&subject(), "its machine is gone")
        .await
        .unwrap();
    let new = ca.join("new1", "10.1.0.0/24").await;
    assert!(new.node.assignment > gone.node.assignment);
    let error = ca.admin.unrevoke(&subject(), "found").await.unwrap_err();
    assert!(error.to_string().contains("of node new1"), "{error}");

    // Evicted, it may have others, and is a new assignment to its peers.
    let names = [new.node.name.clone()];
    let error = refused_token(&mut ca, "new1", "10.3.0.0/24").await;
    assert!(error.contains("evict"), "{error}");
    ca.admin
        .change_nodes(NodeAct::Evict, &names, "moved")
        .await
        .unwrap();
    let moved = ca.join("new1", "10.3.0.0/24").await;
    assert!(moved.node.assignment > new.node.assignment);
    ca.admin.unrevoke(&subject(), "found").await.unwrap();
    ca.stop().await;
}

async fn refused_token(ca: &mut Ca, node: &str, prefix: &str) -> String {
    let order = ca.order(node, prefix);
    ca.admin.create_token(&order).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_a_few_streams_of_updates_and_no_more() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut streams = Vec::new();
    let error = loop {
        assert!(streams.len() < 8);
        match agent.updates().await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("as many streams"), "{error}");
    ca.connect(&other).await.unwrap().updates().await.unwrap();
    ca.stop().await;
}
