//! What nodes see under rules in audit mode, summed up for operators.

use handfast_ca::model::ObservedPair;

use super::common::Ca;

const POLICY: &str = "HandfastPolicy/shop/db";

fn pair(version: u64, destination: &str) -> ObservedPair {
    ObservedPair {
        policy: POLICY.to_owned(),
        version,
        field: "spec.ingress[0]".to_owned(),
        source: "spiffe://example.org/web".to_owned(),
        destination: destination.to_owned(),
        flows: 2,
        unproven: 1,
        proven_at_ms: None,
        unproven_at_ms: Some(1000),
    }
}

fn text(comment: &str) -> (String, String) {
    (POLICY.to_owned(), format!("# {comment}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_add_up_until_the_policy_changes() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    ca.admin.put_policies(&[text("one")]).await.unwrap();
    agent.observe(&[], 0).await.unwrap();
    agent.observe(&[pair(1, "db")], 0).await.unwrap();
    let proven = ObservedPair {
        unproven: 0,
        proven_at_ms: Some(2000),
        unproven_at_ms: None,
        ..pair(1, "db")
    };
    agent.observe(&[proven, pair(1, "cache")], 3).await.unwrap();
    // Of a version that is not in force, and of a policy that is not there.
    agent.observe(&[pair(7, "old")], 0).await.unwrap();
    let stranger = ObservedPair {
        policy: "HandfastPolicy/none".to_owned(),
        ..pair(1, "db")
    };
    agent.observe(&[stranger], 0).await.unwrap();

    let seen = ca.admin.observations(POLICY).await.unwrap();
    let [node] = seen.as_slice() else {
        panic!("{seen:?}")
    };
    assert_eq!((node.node.as_str(), node.lost), ("web1", 3));
    let [cache, db] = node.pairs.as_slice() else {
        panic!("{node:?}")
    };
    assert!(!cache.is_proven() && db.is_proven());
    assert_eq!((db.flows, db.unproven), (4, 1));

    ca.admin.put_policies(&[text("two")]).await.unwrap();
    let seen = ca.admin.observations(POLICY).await.unwrap();
    assert!(seen[0].pairs.is_empty(), "{seen:?}");
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_too_large_or_not_plain_is_refused_whole() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    ca.admin.put_policies(&[text("one")]).await.unwrap();
    let many = vec![pair(1, "db"); 1025];
    assert!(agent.observe(&many, 0).await.is_err());
    for destination in ["", "a\nb", &"x".repeat(2049)] {
        let error = agent
            .observe(&[pair(1, "db"), pair(1, destination)], 0)
            .await;
        assert!(error.unwrap_err().to_string().contains("observed pair"));
    }
    let seen = ca.admin.observations(POLICY).await.unwrap();
    assert!(seen.iter().all(|node| node.pairs.is_empty()), "{seen:?}");
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_has_changed_meanwhile_is_not_replaced() {
    let mut ca = Ca::start().await;
    let first = ca
        .admin
        .put_policies(&[text("one")])
        .await
        .unwrap()
        .remove(0);
    ca.admin.put_policies(&[text("two")]).await.unwrap();
    let late = ca
        .admin
        .replace_policy(&first, "# three".to_owned(), "a test")
        .await;
    assert!(late.unwrap_err().to_string().contains("changed meanwhile"));
    let second = ca.admin.policy(POLICY).await.unwrap();
    assert_eq!(second.text, "# two");
    ca.admin
        .replace_policy(&second, "# three".to_owned(), "a test")
        .await
        .unwrap();
    assert_eq!(ca.admin.policy(POLICY).await.unwrap().text, "# three");
    ca.stop().await;
}
