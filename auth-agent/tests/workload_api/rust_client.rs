//! The `spiffe` crate as a client.

use std::time::Duration;

use futures::StreamExt;
use handfast_agent::workload_api::WorkloadState;
use spiffe::WorkloadApiClient;

use crate::support::ready;

#[tokio::test]
async fn the_rust_client_follows_a_renewal() {
    let (mut ca, node, _) = ready().await;
    let address = format!("unix://{}", node.path().display());
    let client = WorkloadApiClient::connect_to(&address).await.unwrap();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert!(bundles.get(ca.bundle.trust_domain()).is_some());
    let mut updates = Box::pin(client.stream_x509_svids().await.unwrap());
    let first = updates.next().await.unwrap().unwrap();
    assert_eq!(first.spiffe_id().to_string(), "spiffe://example.org/web");
    let entry = ca.entry("spiffe://example.org/web2").await;
    node.desk
        .give(vec![ca.issue(&entry, "").await], ca.bundle.clone());
    let second = tokio::time::timeout(Duration::from_secs(30), updates.next()).await;
    let second = second.unwrap().unwrap().unwrap();
    assert_eq!(second.spiffe_id().to_string(), "spiffe://example.org/web2");
    node.desk.set(WorkloadState::NoIdentity);
    let end = tokio::time::timeout(Duration::from_secs(30), updates.next()).await;
    assert!(end.unwrap().unwrap().is_err(), "W-9");
}
