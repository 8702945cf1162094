//! A node that the CA evicts, and how it comes back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::identity::{IdentityError, Method, NodeStore, Standalone, X509PopFiles, join};
use handfast_ca::attest::{AttestationConfig, Rule, X509PopConfig};
use handfast_ca::bundle::pem;
use handfast_ca::client::CaTrust;
use handfast_ca::client::admin::TokenRequest;
use handfast_ca::model::NodeAct;
use handfast_ca::server::Options;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::world::{Ca, LONG, Node, Workload, options};

async fn token_file(ca: &mut Ca, name: &str, folder: &Path) -> Method {
    let order = TokenRequest {
        node: name.parse().unwrap(),
        prefixes: vec![],
        underlay: vec![],
        ca_address: ca.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let token = ca.admin.create_token(&order).await.unwrap();
    let file = folder.join(format!("{name}.token"));
    token.write(&file).unwrap();
    Method::Token { file }
}

async fn evict(ca: &mut Ca, name: &str) {
    let names = [name.parse().unwrap()];
    let evicted = ca.admin.change_nodes(NodeAct::Evict, &names, "a test");
    assert!(evicted.await.unwrap());
}

async fn until_turned_away(agent: &Standalone) {
    let mut reached = agent.link().reached();
    let turned_away = reached.wait_for(Option::is_none);
    tokio::time::timeout(LONG, turned_away)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_attests_again_only_if_it_is_told_to_and_stays_who_it_is() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let _other = ca.join("web2", 2).await;
    let folder = tempfile::tempdir().unwrap();
    let before = NodeStore::open(&node.data).unwrap().identity().unwrap();

    let other = token_file(&mut ca, "web2", folder.path()).await;
    let refused = join(&other, &node.data, true).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::AnotherNode { .. }),
        "{refused}"
    );

    let method = token_file(&mut ca, "web1", folder.path()).await;
    let refused = join(&method, &node.data, false).await.unwrap_err();
    assert!(
        matches!(refused, IdentityError::AlreadyJoined(_)),
        "{refused}"
    );
    let kept = NodeStore::open(&node.data).unwrap().identity().unwrap();
    assert_eq!(before.chain, kept.chain);

    // The token was not spent by the refusal.
    let joined = join(&method, &node.data, true).await.unwrap();
    assert_eq!(joined.spiffe_id.path(), "/handfast/node/web1");
    let after = NodeStore::open(&node.data).unwrap().identity().unwrap();
    assert_ne!(before.chain, after.chain);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_node_serves_what_it_has_and_hears_news_once_it_has_attested_again() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    workload.until_ids(&["web"]).await;
    evict(&mut ca, "web1").await;
    until_turned_away(&agent).await;
    workload.until_ids(&["web"]).await;
    drop((agent, workload));

    let folder = tempfile::tempdir().unwrap();
    let method = token_file(&mut ca, "web1", folder.path()).await;
    join(&method, &node.data, true).await.unwrap();
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("more", "web1").await;
    workload.until_ids(&["web", "more"]).await;
}

/// A certificate of a device CA for `web1`, and what the mesh's CA knows of that CA.
fn device(folder: &Path) -> (AttestationConfig, X509PopFiles) {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["web1.nodes.example.org".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let rule = Rule {
        dns: Some("web1.nodes.example.org".to_owned()),
        node: Some("web1".parse().unwrap()),
        prefixes: vec!["10.1.0.0/16".parse().unwrap()],
        underlay: vec!["192.0.2.1".to_owned()],
        ..Rule::default()
    };
    let config = AttestationConfig {
        x509pop: Some(X509PopConfig {
            ca: write("devices.pem", &pem("CERTIFICATE", issuer.der())),
            nodes: vec![rule],
        }),
    };
    let files = X509PopFiles {
        certificate: write("web1.pem", &pem("CERTIFICATE", leaf.der())),
        key: write("web1.key", &key.serialize_pem()),
    };
    (config, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_certificate_of_its_own_comes_back_by_itself_after_an_eviction_but_not_after_a_ban()
 {
    let folder = Ca::init().await;
    let (attestation, files) = device(folder.path());
    let options = Options {
        attestation,
        ..options(&folder, 0)
    };
    let mut ca = Ca::serve_with(Arc::clone(&folder), options).await;
    let data = folder.path().join("web1");
    let method = Method::X509Pop {
        files,
        ca_address: ca.address.to_string(),
        trust: CaTrust::Bundle(ca.admin.bundle().await.unwrap()),
    };
    join(&method, &data, false).await.unwrap();
    let node = Node {
        data,
        memory: tempfile::tempdir_in("/dev/shm").unwrap(),
    };
    let agent = node.start();
    let mut workload = Workload::of(&agent).await;
    ca.entry("web", "web1").await;
    workload.until_ids(&["web"]).await;

    evict(&mut ca, "web1").await;
    ca.entry("more", "web1").await;
    // Nobody touches the node.
    workload.until_ids(&["web", "more"]).await;

    let names = ["web1".parse().unwrap()];
    let banned = ca.admin.change_nodes(NodeAct::Ban, &names, "a test");
    assert!(banned.await.unwrap());
    until_turned_away(&agent).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(agent.link().reached().borrow().is_none());
}
