//! Nodes that are gone for good, and the tokens that were made for them.

use handfast_ca::audit::Filter;
use handfast_ca::client::{Section, Updates, join};
use handfast_ca::model::{NodeAct, Subject};
use sqlx::Connection;

use super::common::{Ca, next};

/// Until a stream names all nodes anew, which it does when one is gone.
async fn all_nodes(updates: &mut Updates) -> Vec<String> {
    loop {
        if let Some(Section::All(all)) = next(updates).await.nodes {
            return all.iter().map(|node| node.name.to_string()).collect();
        }
    }
}

async fn names(ca: &mut Ca) -> Vec<String> {
    let nodes = ca.admin.nodes().await.unwrap();
    nodes.iter().map(|node| node.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_is_struck_off_and_stays_revoked_until_that_is_lifted() {
    let mut ca = Ca::start().await;
    let gone = ca.join("web1", "10.1.0.0/24").await;
    let spent = ca.token("db1", "10.2.0.0/24").await;
    let peer = join(&spent).await.unwrap();
    let entry = ca.entry("spiffe://example.org/web", Some("web1")).await;
    let other = ca.entry("spiffe://example.org/any", None).await;
    let agent = ca.connect(&peer).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    assert_eq!(all_nodes(&mut updates).await, ["db1", "web1"]);
    let nodes = [gone.node.name.clone()];

    // Its peers would go on with it, as a look ahead says too.
    let error = ca.admin.would_delete_nodes(&nodes, true, "a test").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("may count with its peers"), "{error}");
    let error = ca.admin.delete_nodes(&nodes, true, "a test").await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("may count with its peers") && error.contains("revoke --node web1"),
        "{error}"
    );
    let subject = Subject::Node(gone.node.name.clone());
    ca.admin.revoke(&subject, "its disk is lost").await.unwrap();
    // What would apply nowhere is in the way.
    let error = ca.admin.delete_nodes(&nodes, false, "a test").await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains(&entry.id) && error.contains("--with-entries"),
        "{error}"
    );
    assert_eq!(names(&mut ca).await, ["db1", "web1"]);
    // All or none.
    let both = [gone.node.name.clone(), peer.node.name.clone()];
    assert!(ca.admin.delete_nodes(&both, true, "a test").await.is_err());
    assert_eq!(names(&mut ca).await.len(), 2);

    let would = ca.admin.would_delete_nodes(&nodes, true, "a test").await;
    assert_eq!(would.unwrap(), [entry.id.as_str()]);
    assert_eq!(names(&mut ca).await.len(), 2, "a look changes nothing");
    let along = ca.admin.delete_nodes(&nodes, true, "a test").await.unwrap();
    assert_eq!(along, [entry.id]);
    assert_eq!(names(&mut ca).await, ["db1"]);
    assert_eq!(all_nodes(&mut updates).await, ["db1"]);
    let left = ca.admin.entries().await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, other.id);
    let error = ca.admin.delete_nodes(&nodes, true, "again").await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("no node") && error.ends_with("; nothing was changed"),
        "{error}"
    );
    let mut acts = Vec::new();
    let filter = Filter {
        subject: Some("web1".to_owned()),
        act: Some("node.delete".to_owned()),
        ..Filter::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        acts.push((record.outcome, record.detail));
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    let done = acts
        .iter()
        .filter(|(outcome, _)| *outcome == handfast_ca::audit::Outcome::Done);
    let done: Vec<_> = done.collect();
    assert_eq!(done.len(), 1, "{acts:?}");
    assert_eq!(
        (&done[0].1["reason"], &done[0].1["entries"]),
        (&"a test".into(), &1.into())
    );

    // Its name is not free of what stands on the deny list.
    assert!(ca.connect(&gone).await.is_err());
    let token = ca.token("web1", "10.1.0.0/24").await;
    let error = join(&token).await.unwrap_err().to_string();
    assert!(
        error.contains("is revoked") && error.contains("--undo --node web1"),
        "{error}"
    );
    ca.admin.unrevoke(&subject, "a new machine").await.unwrap();
    let back = join(&token).await.unwrap();
    assert!(back.node.assignment > gone.node.assignment);
    // The certificate of the machine that is gone is not its.
    let late = match ca.connect(&gone).await {
        Ok(agent) => agent.updates().await.map(drop).unwrap_err(),
        Err(error) => error,
    };
    assert!(late.is_denial(), "{late}");
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_outlives_the_node_that_it_was_for() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let nodes = [joined.node.name.clone()];
    let subject = Subject::Node(joined.node.name.clone());
    let ban = ca.admin.change_nodes(NodeAct::Ban, &nodes, "stolen").await;
    assert!(ban.unwrap());
    // Lifted by hand on the deny list, it still stands with the node.
    ca.admin.unrevoke(&subject, "by mistake").await.unwrap();
    ca.admin
        .delete_nodes(&nodes, false, "scrapped")
        .await
        .unwrap();
    assert!(names(&mut ca).await.is_empty());
    let (_, denials) = ca.admin.revocations().await.unwrap();
    assert_eq!(denials.len(), 1);
    assert_eq!(denials[0].reason, "banned: stolen");

    let token = ca.token("web1", "10.1.0.0/24").await;
    let error = join(&token).await.unwrap_err().to_string();
    assert!(error.contains("is revoked"), "{error}");
    assert!(ca.connect(&joined).await.is_err());
    ca.admin.unrevoke(&subject, "found").await.unwrap();
    join(&token).await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_node_that_was_deleted_are_void_and_spent_ones_still_known() {
    let mut ca = Ca::start().await;
    let spent = ca.token("web1", "10.1.0.0/24").await;
    let joined = join(&spent).await.unwrap();
    let again = ca.token("web1", "10.1.0.0/24").await;
    let expected = ca.token("db1", "10.2.0.0/24").await;
    let states = |tokens: Vec<handfast_ca::model::TokenRecord>| -> Vec<String> {
        let mut states: Vec<String> = tokens
            .iter()
            .map(|token| format!("{} {}", token.node, token.state(token.created_at_ms)))
            .collect();
        states.sort();
        states
    };
    let known = ca.admin.tokens().await.unwrap();
    assert_eq!(states(known), ["db1 open", "web1 open", "web1 used"]);
    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 2);

    // One that never joined goes at once.
    let nodes = ["db1".parse().unwrap()];
    ca.admin
        .delete_nodes(&nodes, false, "not needed")
        .await
        .unwrap();
    let subject = Subject::Node(joined.node.name.clone());
    ca.admin.revoke(&subject, "a test").await.unwrap();
    let nodes = [joined.node.name.clone()];
    ca.admin
        .delete_nodes(&nodes, false, "a test")
        .await
        .unwrap();
    let known = ca.admin.tokens().await.unwrap();
    let void = known
        .iter()
        .filter(|token| token.void == "its node was deleted");
    assert_eq!(void.count(), 2);
    assert_eq!(states(known), ["db1 void", "web1 used", "web1 void"]);
    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 0);
    for token in [expected, again] {
        let error = join(&token).await.unwrap_err().to_string();
        assert!(error.contains("void: its node was deleted"), "{error}");
    }
    let error = join(&spent).await.unwrap_err().to_string();
    assert!(error.contains("used already"), "{error}");
    assert_eq!(ca.admin.status().await.unwrap().alarms, 1);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_lost_is_deleted_alone_and_one_that_was_used_is_not() {
    let mut ca = Ca::start().await;
    let spent = ca.token("web1", "10.1.0.0/24").await;
    let joined = join(&spent).await.unwrap();
    let lost = ca.token("db1", "10.2.0.0/24").await;
    let kept = ca.token("db1", "10.2.0.0/24").await;
    let (id, other) = (lost.secret.id(), spent.secret.id());
    assert!(!lost.secret.expose().contains(&id.to_string()));

    // All or none.
    let error = ca.admin.delete_tokens(&[id, other], "lost").await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("web1 has joined with it") && error.contains("node evict web1"),
        "{error}"
    );
    let unknown = "0123456789abcdef".parse().unwrap();
    let error = ca.admin.delete_tokens(&[id, unknown], "lost").await;
    assert!(error.unwrap_err().to_string().contains("no token"));
    let error = ca.admin.delete_tokens(&[id], " ").await;
    assert!(error.unwrap_err().to_string().contains("say why"));
    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 2);

    let deleted = ca.admin.delete_tokens(&[id, id], "lost").await.unwrap();
    assert_eq!(deleted.len(), 1);
    assert_eq!((deleted[0].id, deleted[0].node.as_str()), (id, "db1"));
    assert_eq!(ca.admin.status().await.unwrap().tokens_open, 1);
    assert!(
        ca.admin
            .delete_tokens(&[id], "again")
            .await
            .unwrap()
            .is_empty()
    );
    let error = join(&lost).await.unwrap_err().to_string();
    assert!(error.contains("void: deleted: lost"), "{error}");
    let known = ca.admin.tokens().await.unwrap();
    let one = known.iter().find(|token| token.id == id).unwrap();
    assert_eq!(one.void, "deleted: lost");
    let mut acts = Vec::new();
    let filter = Filter {
        subject: Some("db1".to_owned()),
        act: Some("token.delete".to_owned()),
        ..Filter::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        if record.outcome == handfast_ca::audit::Outcome::Done {
            acts.push(record.detail);
        }
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    assert_eq!(acts.len(), 1, "{acts:?}");
    let told = (&acts[0]["id"], &acts[0]["reason"]);
    assert_eq!(told, (&id.to_string().into(), &"lost".into()));

    // The other one of the node, and the node that has joined, are as they were.
    join(&kept).await.unwrap();
    ca.connect(&joined).await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_changes_costs_no_look_at_the_others() {
    let mut ca = Ca::start().await;
    ca.join("web1", "10.1.0.0/24").await;
    let peer = ca.join("db1", "10.2.0.0/24").await;
    // Whoever reads this row fails.
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}?mode=rw", ca.store().display());
    let mut store = sqlx::AnyConnection::connect(&url).await.unwrap();
    let underlay: String = sqlx::query_scalar("SELECT underlay FROM nodes WHERE name = 'web1'")
        .fetch_one(&mut store)
        .await
        .unwrap();
    let write = "UPDATE nodes SET underlay = $1 WHERE name = 'web1'";
    sqlx::query(write)
        .bind("rubbish")
        .execute(&mut store)
        .await
        .unwrap();
    assert!(ca.admin.nodes().await.is_err(), "it would be noticed");

    let agent = ca.connect(&peer).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    ca.join("new1", "10.3.0.0/24").await;
    let mut order = ca.order("new2", "10.1.0.0/25");
    let error = ca.admin.create_token(&order).await.unwrap_err().to_string();
    assert!(error.contains("of node web1"), "{error}");
    order.prefixes = vec!["10.4.0.0/24".parse().unwrap()];
    ca.admin.create_token(&order).await.unwrap();
    let nodes = [peer.node.name.clone()];
    ca.admin
        .change_nodes(NodeAct::Relax, &nodes, "a test")
        .await
        .unwrap();
    let subject = Subject::Node("new1".parse().unwrap());
    ca.admin.revoke(&subject, "a test").await.unwrap();
    let mut told = (false, false, false);
    while told != (true, true, true) {
        let update = next(&mut updates).await;
        let Some(section) = update.nodes else {
            continue;
        };
        assert!(matches!(section, Section::Changes { .. }));
        for node in section.named() {
            match node.name.as_str() {
                "new1" => (told.0, told.1) = (true, told.1 || node.revoked),
                "db1" => told.2 |= !node.managed,
                other => panic!("{other} has not changed"),
            }
        }
    }
    sqlx::query(write)
        .bind(underlay)
        .execute(&mut store)
        .await
        .unwrap();
    assert_eq!(ca.admin.nodes().await.unwrap().len(), 4);
    ca.stop().await;
}
