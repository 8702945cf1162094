//! What `handfast svid fetch` does with what it gets.

use std::os::unix::fs::PermissionsExt;

use handfast_agent::workload_api::WorkloadState;
use handfast_agent::workload_api::client::{Client, FetchError, JwtFetched};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::support::{Ca, Node, ready};

#[tokio::test]
async fn x509_svids_are_written_with_keys_for_their_owner_only() {
    let (ca, node, svids) = ready().await;
    let other = Ca::start("other.example").await;
    node.desk.give_with(
        svids.clone(),
        ca.bundle.clone(),
        [other.bundle.clone()],
        Vec::new(),
    );
    let client = Client::connect(&node.path()).await.unwrap();
    let fetched = client.x509_svids().await.unwrap();
    let folder = node.folder.path().join("written");
    let written = fetched.write(&folder).unwrap();
    assert_eq!(written.len(), 8);
    for path in &written {
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    let mode = folder.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    for (number, svid) in svids.iter().enumerate() {
        let read = |name: String| std::fs::read(folder.join(name)).unwrap();
        let chain = read(format!("svid.{number}.pem"));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
        assert_eq!(chain.unwrap(), svid.chain);
        let key = PrivatePkcs8KeyDer::from_pem_slice(&read(format!("svid.{number}.key"))).unwrap();
        assert_eq!(key.secret_pkcs8_der(), svid.key.as_slice());
        let bundle = read(format!("bundle.{number}.pem"));
        assert_eq!(bundle, ca.bundle.to_pem().into_bytes());
        let foreign = read(format!("federated_bundle.{number}.0.pem"));
        assert_eq!(foreign, other.bundle.to_pem().into_bytes());
        assert_eq!(fetched.svids[number].not_after, svid.not_after);
    }
}

#[tokio::test]
async fn jwt_svids_are_fetched_for_an_audience_and_written() {
    let (_ca, node, _) = ready().await;
    let client = Client::connect(&node.path()).await.unwrap();
    let svids = client.jwt_svids(vec!["db".to_owned()], None).await.unwrap();
    assert_eq!(svids.len(), 2);
    let written = JwtFetched::write(&svids, &node.folder.path().join("tokens")).unwrap();
    let mode = written[0].metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read(&written[0]).unwrap();
    assert_eq!(token, svids[0].token.as_bytes());
    let none = client.jwt_svids(Vec::new(), None).await.unwrap_err();
    assert!(matches!(none, FetchError::Refused { .. }), "{none}");
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let node = Node::start();
    node.desk.set(WorkloadState::NoIdentity);
    let client = Client::connect(&node.path()).await.unwrap();
    let denied = client.x509_svids().await.unwrap_err().to_string();
    assert!(denied.contains("no registration entry"), "{denied}");
    assert!(denied.contains("entry list"), "{denied}");
    let elsewhere = node.folder.path().join("else");
    let nobody = Client::connect(&elsewhere).await.unwrap_err().to_string();
    assert!(nobody.contains("handfast agent run"), "{nobody}");
}
