//! The audit log of a running CA: what is in it, and what happens without it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::fs;

use common::Ca;
use handfast_ca::audit::{self, Filter, Outcome, Record};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::client::{SvidKind, SvidRequest};
use handfast_ca::model::Subject;
use handfast_ca::rotation::{Stage, What};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

async fn records(ca: &mut Ca, filter: Filter) -> Vec<Record> {
    let mut records = Vec::new();
    let take = |record| {
        records.push(record);
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    records
}

fn workload(entry: &str) -> SvidRequest {
    SvidRequest {
        kind: SvidKind::Workload {
            entry_id: entry.to_owned(),
        },
        csr: PrivateKey::generate().unwrap().csr().unwrap(),
    }
}

#[tokio::test]
async fn issuance_refusal_and_administration_stand_in_one_chain_that_verifies() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut answers = agent
        .issue(vec![workload(&entry.id), workload("nobody")])
        .await
        .unwrap();
    assert!(answers.remove(0).is_ok() && answers.remove(0).is_err());

    let issued = records(
        &mut ca,
        Filter {
            act: Some("svid".to_owned()),
            ..Filter::default()
        },
    )
    .await;
    let outcomes: Vec<Outcome> = issued.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Done, Outcome::Refused]);
    assert_eq!(issued[0].by, "spiffe://example.org/handfast/node/web1");
    assert_eq!(issued[0].subject, "spiffe://example.org/web");
    assert!(issued[0].detail.contains_key("serial"));

    let acts: Vec<String> = records(&mut ca, Filter::default())
        .await
        .into_iter()
        .map(|record| record.act)
        .collect();
    for act in ["token.create", "node.join", "entry.create", "svid.issue"] {
        assert!(acts.iter().any(|found| found == act), "{act} in {acts:?}");
    }
    let verified = ca.admin.verify_audit(vec![]).await.unwrap().unwrap();
    assert_eq!(verified.entries, acts.len() as u64);
}

#[tokio::test]
async fn a_line_that_was_changed_behind_the_cas_back_is_named() {
    let mut ca = Ca::start().await;
    ca.entry("spiffe://example.org/web", None).await;
    ca.entry("spiffe://example.org/db", None).await;
    let folder = ca.folder.path().join("ca").join(audit::FOLDER);
    let file = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = fs::read_to_string(&file).unwrap();
    let at = text
        .lines()
        .position(|line| line.contains("example.org/web"));
    fs::write(&file, text.replace("example.org/web", "example.org/wub")).unwrap();
    let problem = ca.admin.verify_audit(vec![]).await.unwrap().unwrap_err();
    let place = format!("line {}: its hash does not fit", at.unwrap() + 1);
    assert!(problem.contains(&place), "{problem}");
}

#[tokio::test]
async fn without_a_log_that_can_be_written_nothing_is_signed_or_changed() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let folder = ca.stop().await;
    let log = folder.path().join("ca").join(audit::FOLDER);
    fs::rename(&log, folder.path().join("audit.kept")).unwrap();
    fs::create_dir(&log).unwrap();
    // A file that takes nothing, as a full disk.
    let full = log.join("audit-00000000000000000001.jsonl");
    std::os::unix::fs::symlink("/dev/full", full).unwrap();

    let mut ca = Ca::serve(folder, 0).await;
    let agent = ca.connect(&joined).await.unwrap();
    let error = agent.issue(vec![workload(&entry.id)]).await.unwrap_err();
    assert!(error.to_string().contains("audit log"), "{error}");
    let error = ca
        .admin
        .delete_entry(&entry.id, "a test")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("audit log"), "{error}");
    assert_eq!(ca.admin.entries().await.unwrap().len(), 1);
}

/// Who issued each list, with how many serial numbers stand on it, once there are as many as that.
async fn lists(updates: &mut handfast_ca::client::Updates, count: usize) -> Vec<(String, usize)> {
    loop {
        let Some(crls) = common::next(updates).await.crls else {
            continue;
        };
        let lists: Vec<(String, usize)> = crls
            .iter()
            .map(|der| {
                let (_, crl) = CertificateRevocationList::from_der(der).unwrap();
                (
                    crl.issuer().to_string(),
                    crl.iter_revoked_certificates().count(),
                )
            })
            .collect();
        if lists.len() >= count && lists.iter().all(|(_, serials)| *serials > 0) {
            return lists;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_issuing_ca_whose_certificates_live_has_a_revocation_list() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    agent.issue(vec![workload(&entry.id)]).await.unwrap();
    // The agent leaves nothing, so the issuing CA that is replaced is not given up.
    let order = NewRotation {
        what: What::Issuing,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    };
    ca.admin.rotate(order).await.unwrap();
    while ca
        .admin
        .rotations()
        .await
        .unwrap()
        .live
        .iter()
        .any(|one| one.stage == "prepared")
    {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut updates = agent.updates().await.unwrap();
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    let both = lists(&mut updates, 2).await;
    assert_ne!(both[0].0, both[1].0, "{both:?}");
    // They outlive the server.
    drop(updates);
    let ca = Ca::serve(ca.stop().await, 0).await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    assert_eq!(lists(&mut updates, 2).await, both);
    ca.stop().await;
}

/// Serial numbers on the newest revocation list, once there is one with any.
async fn revoked_serials(updates: &mut handfast_ca::client::Updates) -> Vec<String> {
    loop {
        let Some(crls) = common::next(updates).await.crls else {
            continue;
        };
        let serials: Vec<String> = crls
            .iter()
            .flat_map(|der| {
                let (_, crl) = CertificateRevocationList::from_der(der).unwrap();
                let revoked = crl.iter_revoked_certificates();
                let serials = revoked.map(|one| format!("{:x}", one.user_certificate));
                serials.collect::<Vec<_>>()
            })
            .collect();
        if !serials.is_empty() {
            return serials;
        }
    }
}

#[tokio::test]
async fn who_is_revoked_by_name_is_on_the_revocation_list_by_serial() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let other = ca.entry("spiffe://example.org/db", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    let svids = agent
        .issue(vec![workload(&entry.id), workload(&other.id)])
        .await
        .unwrap();
    let serial = {
        let chain = &svids[0].as_ref().unwrap().chain;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        format!("{:x}", leaf.tbs_certificate.serial)
    };
    let mut updates = agent.updates().await.unwrap();
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    assert_eq!(revoked_serials(&mut updates).await, [serial]);
}

#[tokio::test]
async fn a_revocation_reads_no_log_but_what_an_earlier_run_has_left() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    agent.issue(vec![workload(&entry.id)]).await.unwrap();
    // A restart takes in what was signed before it.
    let mut ca = Ca::serve(ca.stop().await, 0).await;
    let agent = ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    let first = common::next(&mut updates).await.crls;
    if first.is_none() {
        let made = async { while common::next(&mut updates).await.crls.is_none() {} };
        tokio::time::timeout(std::time::Duration::from_secs(60), made)
            .await
            .unwrap();
    }
    agent.issue(vec![workload(&entry.id)]).await.unwrap();
    let log = ca.folder.path().join("ca").join(audit::FOLDER);
    for file in fs::read_dir(&log).unwrap() {
        let file = file.unwrap();
        fs::rename(file.path(), ca.folder.path().join(file.file_name())).unwrap();
    }
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    assert_eq!(revoked_serials(&mut updates).await.len(), 2);
}

#[tokio::test]
async fn what_an_import_and_a_bulk_deletion_did_to_each_entry_stands_in_the_log() {
    let mut ca = Ca::start().await;
    let wanted = |name: String| handfast_ca::client::admin::NewEntry {
        spiffe_id: format!("spiffe://example.org/{name}"),
        selectors: vec!["netns:web".to_owned()],
        ..Default::default()
    };
    // More than one batch of lines.
    let mut many: Vec<_> = (0..1500).map(|n| wanted(format!("w{n}"))).collect();
    ca.admin.import_entries(&many, false, false).await.unwrap();
    many[7].hint = "changed".to_owned();
    ca.admin.import_entries(&many, true, false).await.unwrap();
    let known = ca.admin.entries().await.unwrap();
    let ids: Vec<String> = known.iter().map(|entry| entry.id.clone()).collect();
    ca.admin.delete_entries(&ids, "a test").await.unwrap();
    let filter = |act: &str| Filter {
        act: Some(act.to_owned()),
        subject: Some("spiffe://".to_owned()),
        ..Filter::default()
    };
    let created = records(&mut ca, filter("entry.create")).await;
    assert_eq!(created.len(), 1500);
    for record in &created {
        let id = record.detail["id"].as_str().unwrap();
        let entry = known.iter().find(|entry| entry.id == id).unwrap();
        assert_eq!(record.subject, entry.spiffe_id.to_string());
    }
    let updated = records(&mut ca, filter("entry.update")).await;
    assert_eq!(updated.len(), 1);
    assert_eq!(updated[0].subject, "spiffe://example.org/w7");
    let deleted = records(&mut ca, filter("entry.delete")).await;
    assert_eq!(deleted.len(), 1500);
    assert!(deleted.iter().all(|one| one.detail["reason"] == "a test"));
}

#[tokio::test]
async fn what_destroys_is_refused_without_a_reason_and_changes_nothing() {
    let mut ca = Ca::start().await;
    ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let (ids, policies) = ([entry.id.clone()], ["a".to_owned()]);
    let nodes = ["web1".parse().unwrap()];
    let web = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    let act = handfast_ca::model::NodeAct::Ban;
    for reason in ["", "   ", "two\nlines"] {
        let refusals = [
            ca.admin.delete_entry(&entry.id, reason).await.err(),
            ca.admin.delete_entries(&ids, reason).await.err(),
            ca.admin.delete_policies(&policies, reason).await.err(),
            ca.admin.change_nodes(act, &nodes, reason).await.err(),
            ca.admin.delete_nodes(&nodes, true, reason).await.err(),
            ca.admin.revoke(&web, reason).await.err(),
            ca.admin.unrevoke(&web, reason).await.err(),
            ca.admin.remove_operator("uid:7", reason).await.err(),
            ca.admin.remove_server("ca2", reason).await.err(),
            ca.admin.finish_recovery(reason).await.err(),
        ];
        for (at, refusal) in refusals.into_iter().enumerate() {
            let refusal = refusal.unwrap_or_else(|| panic!("call {at} with {reason:?}"));
            assert!(refusal.to_string().contains("say why"), "{at}: {refusal}");
        }
    }
    assert_eq!(ca.admin.entries().await.unwrap().len(), 1);
    assert_eq!(ca.admin.nodes().await.unwrap().len(), 1);
    assert!(ca.admin.revocations().await.unwrap().1.is_empty());
}

/// Somebody else writes to the store for a while.
async fn occupied(store: &std::path::Path) -> sqlx::AnyConnection {
    use sqlx::Connection;
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}?mode=rw", store.display());
    let mut other = sqlx::AnyConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_is_written_down_though_the_caller_is_gone() {
    let mut ca = Ca::start().await;
    let token = ca.token("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let store = ca.store();
    let mut other = occupied(&store).await;
    let short = std::time::Duration::from_secs(3);
    // A node that joins over TCP, and an operator on the socket: both hang up while the store is busy.
    let joining = tokio::time::timeout(short, handfast_ca::client::join(&token));
    let deleting = tokio::time::timeout(short, ca.admin.delete_entry(&entry.id, "a test"));
    let (joined, deleted) = tokio::join!(joining, deleting);
    assert!(joined.is_err() && deleted.is_err(), "both still wait");
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    drop(other);
    for _ in 0..600 {
        let acts = records(&mut ca, Filter::default()).await;
        let done = |act: &str| {
            acts.iter()
                .any(|one| one.act == act && one.outcome == Outcome::Done)
        };
        if done("node.join") && done("entry.delete") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("what was done does not stand in the log");
}
