//! Entries that come, change and go, as an open stream sees them.

use handfast_agent::workload_api::WorkloadState;
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;

use super::world::{Ca, Workload, entry};

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_gets_every_identity_that_matches_the_oldest_first_and_loses_what_is_deleted() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let _other = ca.join("db1", 2).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    workload
        .until(|state| matches!(state, WorkloadState::NoIdentity))
        .await;

    let first = ca.entry("first", "web1").await;
    workload.until_ids(&["first"]).await;
    ca.entry("second", "web1").await;
    ca.entry("elsewhere", "db1").await;
    let mut other = entry("other-user", "web1");
    other.selectors = vec!["unix:uid:4242".into()];
    ca.admin.create_entry(&other).await.unwrap();
    let material = workload.until_ids(&["first", "second"]).await;

    let verifier = Verifier::new(
        material.bundles.own.clone(),
        handfast_ca::deny::DenyList::empty(),
    );
    for svid in &material.svids {
        let verified = verifier.workload(&svid.chain, UnixTime::now()).unwrap();
        assert_eq!(verified.spiffe_id, svid.spiffe_id);
        let key = handfast_ca::certificate::PrivateKey::from_pkcs8(&svid.key).unwrap();
        let certified =
            rustls::sign::CertifiedKey::new(svid.chain.clone(), key.to_rustls().unwrap());
        certified.keys_match().unwrap();
    }

    ca.admin.delete_entry(&first.id, "a test").await.unwrap();
    workload.until_ids(&["second"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_asks_for_the_programs_hash_makes_the_agent_look_again_at_open_streams() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    assert!(
        !workload
            .attested
            .selectors
            .iter()
            .any(|selector| selector.value.starts_with("sha256:"))
    );
    let program = std::fs::read("/proc/self/exe").unwrap();
    let hash = data_encoding::HEXLOWER.encode(&handfast_ca::bundle::sha256(&program));
    let mut order = entry("hashed", "web1");
    order.selectors.push(format!("unix:sha256:{hash}"));
    ca.admin.create_entry(&order).await.unwrap();
    workload.until_ids(&["hashed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_revoked_is_withdrawn_from_open_streams_and_comes_back_when_lifted() {
    use handfast_ca::model::Subject;
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    workload.until_ids(&["web"]).await;
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    workload
        .until(|state| matches!(state, WorkloadState::NoIdentity))
        .await;
    ca.admin.unrevoke(&subject, "found").await.unwrap();
    workload.until_ids(&["web"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_entry_changes_open_streams_hint_names_and_identity() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    let mut entry = ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;

    entry.hint = "blue".into();
    let mut entry = ca.admin.update_entry(&entry).await.unwrap();
    let state = workload
        .until(|state| matches!(state, WorkloadState::Ready(now) if now.svids[0].hint == "blue"))
        .await;
    let hinted = super::world::material(&state);
    assert_eq!(
        before.svids[0].chain, hinted.svids[0].chain,
        "nothing was signed for it"
    );

    entry.dns_names = vec!["web.example.org".into()];
    let mut entry = ca.admin.update_entry(&entry).await.unwrap();
    workload
        .until(|state| {
            matches!(state, WorkloadState::Ready(now) if now.svids[0].chain != before.svids[0].chain)
        })
        .await;

    entry.spiffe_id = "spiffe://example.org/renamed".parse().unwrap();
    ca.admin.update_entry(&entry).await.unwrap();
    workload.until_ids(&["renamed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_entries_with_one_hint_the_older_keeps_it() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    for path in ["first", "second"] {
        let mut order = entry(path, "web1");
        order.hint = "same".into();
        ca.admin.create_entry(&order).await.unwrap();
    }
    let material = workload.until_ids(&["first", "second"]).await;
    let hints: Vec<&str> = material
        .svids
        .iter()
        .map(|svid| svid.hint.as_str())
        .collect();
    assert_eq!(hints, ["same", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_revoked_by_serial_is_replaced_on_open_streams() {
    use handfast_ca::model::Subject;
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;
    let serial = agent.workloads().svids()[0].serial.clone();
    let subject = Subject::Serial(serial.parse().unwrap());
    ca.admin.revoke(&subject, "leaked").await.unwrap();
    workload
        .until(|state| {
            matches!(state, WorkloadState::Ready(now) if now.svids[0].chain != before.svids[0].chain)
        })
        .await;
    assert_ne!(agent.workloads().svids()[0].serial, serial);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_of_an_entry_for_any_node_is_asked_for_by_the_first_workload_that_it_matches() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut order = entry("anywhere", "web1");
    order.parent = None;
    ca.admin.create_entry(&order).await.unwrap();
    ca.entry("here", "web1").await;
    let mut progress = agent.progress();
    progress
        .wait_for(|progress| progress.sequence > 0)
        .await
        .unwrap();
    // What names this node is ready before anybody asks.
    let ready = async {
        while agent.workloads().svids().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::world::LONG, ready)
        .await
        .unwrap();
    let svids = agent.workloads().svids();
    assert_eq!(svids.len(), 1, "{svids:?}");
    assert_eq!(svids[0].spiffe_id, "spiffe://example.org/here");
    let mut workload = Workload::of(&agent).await;
    workload.until_ids(&["anywhere", "here"]).await;
}
