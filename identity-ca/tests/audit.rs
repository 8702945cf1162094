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
use handfast_ca::client::{SvidKind, SvidRequest};
use handfast_ca::model::Subject;
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
    let error = ca.admin.delete_entry(&entry.id).await.unwrap_err();
    assert!(error.to_string().contains("audit log"), "{error}");
    assert_eq!(ca.admin.entries().await.unwrap().len(), 1);
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
