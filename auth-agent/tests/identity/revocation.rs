//! What is revoked, as workloads see it: a certificate is replaced without a word between, tokens are refused.

use std::path::Path;
use std::time::Duration;

use handfast_agent::identity::{Change, NodeStore};
use handfast_agent::workload_api::{Source, WorkloadState};
use handfast_ca::jwt;
use handfast_ca::model::Subject;
use handfast_ca::verify::Verifier;
use spiffe::SpiffeId;

use super::world::{Ca, LONG, Workload};

async fn until_stored(data: &Path, deny_list: u64) -> Verifier {
    let stored = async {
        loop {
            let trust = NodeStore::open(data).unwrap().trust().unwrap();
            if trust.deny_list().number() >= deny_list {
                return trust;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, stored).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_replaced_without_its_workload_ever_being_nobody() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;
    let serial = agent.workloads().svids()[0].serial.clone();
    let mut states = workload.state.clone();
    let watching = tokio::spawn(async move {
        let mut nobody = 0;
        loop {
            states.changed().await.unwrap();
            match &**states.borrow_and_update() {
                WorkloadState::NoIdentity => nobody += 1,
                WorkloadState::Initialising => {}
                WorkloadState::Ready(now) if now.svids[0].chain == before.svids[0].chain => {}
                WorkloadState::Ready(_) => return nobody,
            }
        }
    });
    let subject = Subject::Serial(serial.parse().unwrap());
    ca.admin.revoke(&subject, "leaked").await.unwrap();
    let nobody = tokio::time::timeout(LONG, watching).await.unwrap().unwrap();
    assert_eq!(nobody, 0, "its stream would have ended");
}

/// A node that hears of a revocation by way of another one, while the CA is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_certificate_is_revoked_waits_for_the_ca_to_come_back() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let peer = ca.join("db1", 2).await;
    let other = peer.start();
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let before = workload.until_ids(&["web"]).await;
    let serial = agent.workloads().svids()[0].serial.clone();
    let folder = node.memory.path().join("svids");
    let kept = async {
        while super::world::kept(&folder, "pem") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, kept).await.unwrap();
    drop(agent);
    let subject = Subject::Serial(serial.parse().unwrap());
    let number = ca.admin.revoke(&subject, "leaked").await.unwrap();
    let trust = until_stored(&peer.data, number).await;
    drop(other);
    let (folder, port) = ca.stop().await;

    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    let still = workload.until_ids(&["web"]).await;
    assert_eq!(
        still.svids[0].chain, before.svids[0].chain,
        "it knows of nothing yet"
    );
    agent.workloads().apply(Change {
        verifier: Some(trust),
        ..Change::default()
    });
    assert!(matches!(
        **workload.state.borrow(),
        WorkloadState::Initialising
    ));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(
        **workload.state.borrow(),
        WorkloadState::Initialising
    ));

    let _ca = Ca::serve(folder, port).await;
    let after = workload.until_ids(&["web"]).await;
    assert_ne!(after.svids[0].chain, before.svids[0].chain);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_revoked_identity_are_denied_and_judged_by_the_cas_clock() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    let material = workload.until_ids(&["web"]).await;
    let workloads = agent.workloads();
    let tokens = workloads.jwt_svids(&workload.attested, vec!["db".to_owned()], None);
    let token = tokens.await.unwrap().remove(0).token;
    let verified = |now| {
        let bundle = |domain: &_| material.bundles.of(domain);
        jwt::verify(&token, "db", bundle, now)
    };
    assert!(verified(workloads.now()).is_ok());
    let id = SpiffeId::new("spiffe://example.org/web").unwrap();
    assert!(!workloads.denies(&id));
    let subject = Subject::spiffe_id("spiffe://example.org/web").unwrap();
    ca.admin.revoke(&subject, "stolen").await.unwrap();
    workload
        .until(|state| matches!(state, WorkloadState::NoIdentity))
        .await;
    assert!(workloads.denies(&id));

    // The CA's clock is an hour ahead of this machine's, which was set back.
    let ahead = (workloads.now().as_secs() + 3600) * 1000;
    workloads.apply(Change {
        ca_time_ms: Some(ahead),
        ..Change::default()
    });
    assert!(workloads.now().as_secs() * 1000 >= ahead);
    assert!(matches!(
        verified(workloads.now()),
        Err(jwt::JwtError::Time { claim: "exp", .. })
    ));
}
