//! A CA and its agents over real sockets: join, issue, watch, revoke.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::time::{Duration, Instant};

use common::{Ca, end, next};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::model::Subject;
use handfast_ca::verify::{Rejection, Verifier};
use rustls_pki_types::UnixTime;

fn request(kind: SvidKind) -> SvidRequest {
    SvidRequest {
        kind,
        csr: PrivateKey::generate().unwrap().csr().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_and_gets_all_three_kinds_of_certificate() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    assert_eq!(
        joined.node.spiffe_id.to_string(),
        "spiffe://example.org/handfast/node/web1"
    );
    assert_eq!(joined.node.prefixes, ["10.1.0.0/24".parse().unwrap()]);
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();

    let entry_id = entry.id.clone();
    let kinds = [
        SvidKind::Node,
        SvidKind::Proof {
            entry_id: entry_id.clone(),
        },
        SvidKind::Workload { entry_id },
    ];
    let issued = agent.issue(kinds.map(request).into()).await.unwrap();
    let [node, proof, workload] = issued.as_slice() else {
        panic!("{issued:?}")
    };

    let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
    let now = UnixTime::now();
    let chain = |svid: &Result<handfast_ca::client::Svid, _>| svid.clone().unwrap().chain;
    let node = verifier.node(&chain(node), now).unwrap();
    assert_eq!(
        (node.name.as_str(), node.assignment),
        ("web1", joined.node.assignment)
    );
    let proven = verifier.proof(&chain(proof), now).unwrap();
    assert_eq!(proven.spiffe_id.to_string(), "spiffe://example.org/web");
    assert_eq!(
        (proven.node.as_str(), &proven.labels),
        ("web1", &entry.labels)
    );
    let plain = verifier.workload(&chain(workload), now).unwrap();
    assert!(plain.not_after < proven.not_after);

    // Nobody takes one kind for another.
    assert!(verifier.workload(&chain(proof), now).is_err());
    assert!(verifier.node(&chain(proof), now).is_err());
    assert!(verifier.proof(&chain(workload), now).is_err());
    assert!(verifier.node(&chain(workload), now).is_err());
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_pushed_at_once_and_acknowledged() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let other = ca.join("db1", "10.2.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();

    let first = next(&mut updates).await;
    let names: Vec<String> = first
        .nodes
        .unwrap()
        .named()
        .iter()
        .map(|node| node.name.to_string())
        .collect();
    assert_eq!(names, ["db1", "web1"]);
    assert_eq!(first.bundle.unwrap().trust_domain().as_str(), "example.org");
    assert_eq!(
        (
            first.entries.unwrap().named().len(),
            first.policies.unwrap().len()
        ),
        (0, 0)
    );
    assert!(first.deny_list.unwrap().denials().is_empty());

    let mine = ca.entry("spiffe://example.org/web", Some("web1")).await;
    let update = next(&mut updates).await;
    assert!(update.sequence > first.sequence);
    assert_eq!(update.entries.unwrap().named(), std::slice::from_ref(&mine));
    assert!(update.policies.is_none() && update.nodes.is_none());
    ca.entry(
        "spiffe://example.org/db",
        Some("spiffe://example.org/handfast/node/db1"),
    )
    .await;
    let update = next(&mut updates).await;
    assert!(update.entries.is_none(), "others' entries stay away");

    let documents = [
        ("a".to_owned(), "one".to_owned()),
        ("b".to_owned(), "two".to_owned()),
    ];
    let put = ca.admin.put_policies(&documents).await.unwrap();
    assert_eq!(
        put.iter().map(|policy| policy.version).collect::<Vec<_>>(),
        [1, 1]
    );
    assert_eq!(next(&mut updates).await.policies.unwrap().len(), 2);

    let id = mine.spiffe_id.clone();
    let asked = Instant::now();
    let number = ca
        .admin
        .revoke(&Subject::SpiffeId(id.clone()), "stolen")
        .await
        .unwrap();
    let update = next(&mut updates).await;
    println!("{:?} after the order", asked.elapsed());
    let deny = update.deny_list.unwrap();
    assert_eq!(deny.number(), number);
    assert!(deny.denies_id(&id));
    // Relayed between nodes it is still believed, for its signature.
    assert!(
        DenyList::from_bytes(deny.bytes(), &other.bundle)
            .unwrap()
            .denies_id(&id)
    );

    agent.ack(update.sequence, None).await.unwrap();
    let node = |nodes: Vec<handfast_ca::model::Node>| {
        nodes
            .into_iter()
            .find(|node| node.name.as_str() == "web1")
            .unwrap()
    };
    assert_eq!(
        node(ca.admin.nodes().await.unwrap()).acknowledged,
        update.sequence
    );
    agent
        .ack(update.sequence, Some("policy b: no such field"))
        .await
        .unwrap();
    assert_eq!(
        node(ca.admin.nodes().await.unwrap()).problem,
        "policy b: no such field"
    );
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_is_not_issued_until_that_is_undone() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    let ask = || {
        vec![request(SvidKind::Proof {
            entry_id: entry.id.clone(),
        })]
    };
    let before = agent.issue(ask()).await.unwrap().remove(0).unwrap();

    let subject = Subject::SpiffeId(entry.spiffe_id.clone());
    ca.admin.revoke(&subject, "a test").await.unwrap();
    let refused = agent.issue(ask()).await.unwrap().remove(0).unwrap_err();
    assert!(refused.message.contains("is revoked"), "{refused}");
    let (number, list) = ca.admin.revocations().await.unwrap();
    assert_eq!((list.len(), list[0].reason.as_str()), (1, "a test"));

    assert!(ca.admin.unrevoke(&subject, "over").await.unwrap() > number);
    assert!(agent.issue(ask()).await.unwrap().remove(0).is_ok());
    assert!(ca.admin.unrevoke(&subject, "again").await.is_err());

    // One certificate alone.
    let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
    let serial = verifier
        .proof(&before.chain, UnixTime::now())
        .unwrap()
        .serial;
    ca.admin
        .revoke(&Subject::Serial(serial), "one")
        .await
        .unwrap();
    let mut updates = agent.updates().await.unwrap();
    let deny = next(&mut updates).await.deny_list.unwrap();
    let verifier = Verifier::new(joined.bundle.clone(), deny);
    let rejected = verifier.proof(&before.chain, UnixTime::now()).unwrap_err();
    assert!(matches!(rejected, Rejection::Denied(_)), "{rejected}");
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off_and_may_return_when_that_is_undone() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    let subject = Subject::Node("web1".parse().unwrap());
    ca.admin.revoke(&subject, "lost").await.unwrap();
    let ended = end(&mut updates).await.to_string();
    assert!(ended.contains("is revoked"), "{ended}");
    assert!(
        agent
            .issue(vec![request(SvidKind::Node)])
            .await
            .unwrap()
            .remove(0)
            .is_err()
    );
    let error = ca.connect(&joined).await.unwrap_err().to_string();
    assert!(error.contains("revoked"), "{error}");
    let token = ca
        .admin
        .create_token(&ca.order("web1", "10.1.0.0/24"))
        .await
        .unwrap();
    let error = handfast_ca::client::join(&token)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("is revoked"), "{error}");

    ca.admin.unrevoke(&subject, "found").await.unwrap();
    ca.connect(&joined).await.unwrap().updates().await.unwrap();
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_comes_back_as_it_was() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let before = ca.admin.status().await.unwrap();
    let (port, folder) = (ca.address.port(), ca.stop().await);
    assert!(!folder.path().join("run/ca.sock").exists());

    let mut ca = Ca::serve(folder, port).await;
    let after = ca.admin.status().await.unwrap();
    assert!(after.sequence > before.sequence);
    assert_eq!(after.root_fingerprint, before.root_fingerprint);
    assert_eq!(ca.admin.entries().await.unwrap(), [entry]);
    let agent = ca.connect(&joined).await.unwrap();
    assert_eq!(
        next(&mut agent.updates().await.unwrap())
            .await
            .nodes
            .unwrap()
            .named()
            .len(),
        1
    );
    assert_eq!(
        (after.nodes_joined, after.alarms, after.tokens_open),
        (1, 0, 0)
    );
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_open_streams_in_good_time() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    next(&mut updates).await;
    let asked = Instant::now();
    ca.stop().await;
    assert!(
        asked.elapsed() < Duration::from_secs(30),
        "{:?}",
        asked.elapsed()
    );
    assert!(!matches!(updates.next().await, Ok(Some(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_change_and_watch_at_once() {
    let mut ca = Ca::start().await;
    let mut watching = Vec::new();
    for number in 0..20 {
        let joined = ca
            .join(&format!("n{number}"), &format!("10.{number}.0.0/24"))
            .await;
        let agent = ca.connect(&joined).await.unwrap();
        let mut updates = agent.updates().await.unwrap();
        next(&mut updates).await;
        watching.push((agent, updates));
    }
    let joined = ca.admin.status().await.unwrap();
    assert_eq!((joined.nodes_joined, joined.nodes_connected), (20, 20));
    let mut changing = Vec::new();
    for number in 0..50 {
        let mut admin = ca.admin.clone();
        changing.push(tokio::spawn(async move {
            let entry = handfast_ca::client::admin::NewEntry {
                spiffe_id: format!("spiffe://example.org/w{number}"),
                selectors: vec![format!("netns:w{number}")],
                ..Default::default()
            };
            admin.create_entry(&entry).await.unwrap();
        }));
    }
    for change in changing {
        change.await.unwrap();
    }
    for (_agent, updates) in &mut watching {
        let (mut last, mut known) = (0, Vec::new());
        while known.len() < 50 {
            let update = next(updates).await;
            assert!(update.sequence > last);
            last = update.sequence;
            if let Some(entries) = update.entries {
                known = entries.onto(known);
            }
        }
    }
    ca.stop().await;
}
