//! Node attestation over the wire: x509pop, again and again, and what ends it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Ca, options, setup};
use handfast_ca::attest::{AttestationConfig, Rule, X509PopConfig};
use handfast_ca::authority;
use handfast_ca::bundle::{Fingerprint, TrustBundle, pem};
use handfast_ca::client::{self, Attestation, CaTrust, X509Pop};
use handfast_ca::model::NodeAct;
use handfast_ca::server::Options;
use handfast_ca::{Error, client::Joined};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use spiffe::TrustDomain;
use tempfile::TempDir;

/// A CA that takes certificates of a device CA, and a device `web1`.
struct World {
    ca: Ca,
    root: Fingerprint,
    device: X509Pop,
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn device(folder: &Path) -> (AttestationConfig, X509Pop) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["web1.nodes.example.org".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let ca = write(folder, "devices.pem", &pem("CERTIFICATE", issuer.der()));
    let chain = write(folder, "web1.pem", &pem("CERTIFICATE", leaf.der()));
    let key = write(folder, "web1.key", &key.serialize_pem());
    let rule = Rule {
        dns: Some("*.nodes.example.org".to_owned()),
        ..Rule::default()
    };
    let config = AttestationConfig {
        x509pop: Some(X509PopConfig {
            ca,
            nodes: vec![rule],
        }),
    };
    (config, X509Pop::read(&chain, &key).unwrap())
}

impl World {
    async fn start() -> Self {
        let folder: TempDir = tempfile::tempdir().unwrap();
        let setup = setup(folder.path().join("ca"));
        let root = authority::init(&setup).await.unwrap();
        let (attestation, device) = device(folder.path());
        let options = Options {
            attestation,
            ..options(&folder, 0)
        };
        let ca = Ca::serve_with(folder, options).await;
        Self { ca, root, device }
    }

    fn trust(&self) -> CaTrust {
        CaTrust::Root(TrustDomain::new("example.org").unwrap(), self.root)
    }

    async fn change(&mut self, act: NodeAct, reason: &str) {
        let web1 = "web1".parse().unwrap();
        let changed = self.ca.admin.change_nodes(act, &[web1], reason).await;
        assert!(changed.unwrap());
    }

    async fn attest(&self, attestation: &dyn Attestation) -> Result<Joined, Error> {
        client::attest(&self.ca.address.to_string(), &self.trust(), attestation).await
    }
}

fn words(error: impl std::fmt::Display, expected: &[&str]) {
    let text = error.to_string();
    for word in expected {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn a_key_that_is_not_the_certificates_is_found_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    device(folder.path());
    let other = KeyPair::generate().unwrap().serialize_pem();
    let other = write(folder.path(), "other.key", &other);
    let error = X509Pop::read(&folder.path().join("web1.pem"), &other);
    words(error.err().unwrap(), &["other.key", "web1.pem"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_attests_by_its_certificate_as_often_as_it_needs() {
    let mut world = World::start().await;
    let first = world.attest(&world.device).await.unwrap();
    assert_eq!(first.node.name.as_str(), "web1");
    assert_eq!(
        first.node.spiffe_id.to_string(),
        "spiffe://example.org/handfast/node/web1"
    );
    world.ca.connect(&first).await.unwrap();
    // It has lost everything; the bundle is known from elsewhere.
    let trust = CaTrust::Bundle(first.bundle.clone());
    let address = world.ca.address.to_string();
    let again = client::attest(&address, &trust, &world.device)
        .await
        .unwrap();
    assert_eq!(again.node.name, first.node.name);
    let nodes = world.ca.admin.nodes().await.unwrap();
    assert_eq!((nodes.len(), nodes[0].attestation.as_str()), (1, "x509pop"));
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_what_was_registered_for_its_name() {
    let mut world = World::start().await;
    let order = world.ca.order("web1", "10.1.0.0/24");
    world.ca.admin.create_token(&order).await.unwrap();
    let joined = world.attest(&world.device).await.unwrap();
    assert_eq!(joined.node.prefixes, ["10.1.0.0/24".parse().unwrap()]);
    world.ca.stop().await;
}

/// An attestation that goes wrong in the middle.
struct Bad<'a> {
    good: &'a X509Pop,
    claim: fn(Vec<u8>) -> Vec<u8>,
    answer: fn(Vec<u8>) -> Result<Vec<u8>, Error>,
    kind: &'static str,
}

impl<'a> Bad<'a> {
    fn of(good: &'a X509Pop) -> Self {
        Self {
            good,
            claim: |claim| claim,
            answer: Ok,
            kind: "x509pop",
        }
    }
}

impl Attestation for Bad<'_> {
    fn kind(&self) -> &str {
        self.kind
    }

    fn claim(&self) -> Result<Vec<u8>, Error> {
        self.good.claim().map(self.claim)
    }

    fn answer(
        &self,
        trust_domain: &TrustDomain,
        challenge: &[u8],
        key_hash: &[u8; 32],
    ) -> Result<Vec<u8>, Error> {
        (self.answer)(self.good.answer(trust_domain, challenge, key_hash)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_nothing_comes_of_it() {
    let mut world = World::start().await;
    let attest = |bad| {
        let world = &world;
        async move { world.attest(&bad).await.unwrap_err() }
    };
    let good = || Bad::of(&world.device);
    let kind = Bad {
        kind: "tpm",
        ..good()
    };
    words(attest(kind).await, &["join_token or x509pop", "\"tpm\""]);
    let oversize = Bad {
        claim: |_| vec![0; 200 << 10],
        ..good()
    };
    words(attest(oversize).await, &["too large"]);
    let oversize = Bad {
        answer: |_| Ok(vec![0; 200 << 10]),
        ..good()
    };
    words(attest(oversize).await, &["too large"]);
    let flipped = |mut answer: Vec<u8>| {
        *answer.last_mut().unwrap() ^= 1;
        Ok(answer)
    };
    let wrong = Bad {
        answer: flipped,
        ..good()
    };
    words(attest(wrong).await, &["not signed with the key"]);
    let hang_up = |_| Err(Error::Protocol("hung up".to_owned()));
    for _ in 0..200 {
        let gone = Bad {
            answer: hang_up,
            ..good()
        };
        words(attest(gone).await, &["hung up"]);
    }
    assert!(
        world.ca.admin.nodes().await.unwrap().is_empty(),
        "nothing was registered"
    );
    // Those who hung up are in nobody's way.
    world.attest(&world.device).await.unwrap();
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_is_not_told_anything() {
    let world = World::start().await;
    let other = Ca::start().await;
    let address = other.address.to_string();
    let error = client::attest(&address, &world.trust(), &world.device).await;
    assert!(matches!(error, Err(Error::Rejected(_))));
    let empty = TrustBundle::new(TrustDomain::new("example.org").unwrap(), 1, []).unwrap();
    let address = world.ca.address.to_string();
    let error = client::attest(&address, &CaTrust::Bundle(empty), &world.device).await;
    assert!(matches!(error, Err(Error::Rejected(_))));
    other.stop().await;
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_in_the_stream_too_and_works_once() {
    let mut world = World::start().await;
    let token = world.ca.token("db1", "10.2.0.0/24").await;
    struct Token(String);
    impl Attestation for Token {
        fn kind(&self) -> &str {
            "join_token"
        }
        fn claim(&self) -> Result<Vec<u8>, Error> {
            Ok(self.0.clone().into_bytes())
        }
        fn answer(&self, _: &TrustDomain, _: &[u8], _: &[u8; 32]) -> Result<Vec<u8>, Error> {
            panic!("nothing is asked")
        }
    }
    let token = Token(token.secret.expose().to_owned());
    assert_eq!(
        world.attest(&token).await.unwrap().node.name.as_str(),
        "db1"
    );
    words(world.attest(&token).await.unwrap_err(), &["used already"]);
    assert_eq!(world.ca.admin.status().await.unwrap().alarms, 1);
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_evicted_attests_again_and_who_is_banned_never() {
    let mut world = World::start().await;
    let joined = world.attest(&world.device).await.unwrap();
    let agent = world.ca.connect(&joined).await.unwrap();
    let mut updates = agent.updates().await.unwrap();
    common::next(&mut updates).await;
    world.change(NodeAct::Evict, "lost").await;
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        while let Ok(Some(_)) = updates.next().await {}
    });
    ended.await.expect("its stream ends");
    let refused = async { world.ca.connect(&joined).await?.updates().await };
    assert!(
        refused.await.is_err(),
        "its old certificate is worth nothing"
    );
    let again = world.attest(&world.device).await.unwrap();
    world
        .ca
        .connect(&again)
        .await
        .unwrap()
        .updates()
        .await
        .unwrap();
    world.change(NodeAct::Ban, "stolen").await;
    words(
        world.attest(&world.device).await.unwrap_err(),
        &["banned", "stolen"],
    );
    world.ca.stop().await;
}
