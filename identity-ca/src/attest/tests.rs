//! x509pop against certificates and answers that are wrong in one way each.

use std::path::PathBuf;

use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::bundle::{Fingerprint, pem};
use crate::proto;

const KEY: [u8; 32] = [7; 32];

type Change<'a> = &'a dyn Fn(&mut CertificateParams);

/// Another CA, and the CA of ours that takes its certificates.
struct World {
    _folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    attestors: Attestors,
}

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn device_ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
    let mut rule = Rule::default();
    change(&mut rule);
    rule
}

fn dns_rule() -> Rule {
    rule(|rule| rule.dns = Some("*.nodes.example.org".to_owned()))
}

impl World {
    fn with(nodes: Vec<Rule>) -> Result<Self, Error> {
        let folder = tempfile::tempdir().unwrap();
        let issuer = device_ca();
        let ca: PathBuf = folder.path().join("devices.pem");
        std::fs::write(&ca, pem("CERTIFICATE", issuer.der())).unwrap();
        let config = AttestationConfig {
            x509pop: Some(X509PopConfig { ca, nodes }),
        };
        Ok(Self {
            _folder: folder,
            issuer,
            attestors: Attestors::open(&config, &domain())?,
        })
    }

    fn new() -> Self {
        Self::with(vec![dns_rule()]).unwrap()
    }

    fn device(&self, change: Change<'_>) -> Device {
        Device::of(&self.issuer, &rcgen::PKCS_ECDSA_P256_SHA256, change)
    }

    async fn attest(&self, caller: &mut dyn Caller, claim: &[u8]) -> Result<Proven, Error> {
        let kind = self.attestors.kind("x509pop").unwrap();
        kind.attest(claim, &KEY, caller).await
    }

    async fn judge(&self, device: &mut Device) -> Result<String, String> {
        let claim = device.claim();
        match self.attest(device, &claim).await {
            Ok(Proven::Node(order)) => Ok(order.name.to_string()),
            Ok(Proven::Token(_)) => panic!("no token was shown"),
            Err(error) => Err(error.to_string()),
        }
    }
}

type Answer = fn(&Device, Vec<u8>) -> Result<Vec<u8>, Error>;

/// A machine with a certificate; it answers rightly unless told otherwise.
struct Device {
    chain: Vec<Vec<u8>>,
    key: KeyPair,
    answer: Answer,
    asked: usize,
}

impl Device {
    fn of(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        algorithm: &'static rcgen::SignatureAlgorithm,
        change: Change<'_>,
    ) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec!["web1.nodes.example.org".to_owned()]).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        change(&mut params);
        let leaf = params.signed_by(&key, issuer).unwrap();
        Self {
            chain: vec![leaf.der().to_vec()],
            key,
            answer: |device, challenge| device.sign(&signed_message(&domain(), &challenge, &KEY)),
            asked: 0,
        }
    }

    fn claim(&self) -> Vec<u8> {
        let chain = self.chain.clone();
        proto::X509PopClaim { chain }.encode_to_vec()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let der = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
        let signer = key.choose_scheme(SCHEMES).unwrap();
        let signature = signer.sign(message).unwrap();
        let scheme = u16::from(signer.scheme()).into();
        Ok(proto::X509PopAnswer { scheme, signature }.encode_to_vec())
    }
}

#[tonic::async_trait]
impl Caller for Device {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.asked += 1;
        assert_eq!(challenge.len(), CHALLENGE);
        (self.answer)(self, challenge)
    }
}

fn words(result: Result<String, String>, expected: &str) {
    let error = result.unwrap_err();
    assert!(
        error.contains(expected),
        "{expected:?} is missing in: {error}"
    );
}

#[tokio::test]
async fn who_holds_the_key_of_a_certificate_is_the_node_that_it_names() {
    let world = World::new();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let mut device = Device::of(&world.issuer, algorithm, &|_| {});
        assert_eq!(
            world.judge(&mut device).await.unwrap(),
            "web1",
            "{algorithm:?}"
        );
        // As often as needed.
        assert_eq!(world.judge(&mut device).await.unwrap(), "web1");
        assert_eq!(device.asked, 2);
    }
}

#[tokio::test]
async fn an_answer_with_another_key_or_for_another_thing_is_refused() {
    let world = World::new();
    let wrong: [Answer; 7] =
        [
            |_, challenge| {
                Device::of(&device_ca(), &rcgen::PKCS_ECDSA_P256_SHA256, &|_| {})
                    .sign(&signed_message(&domain(), &challenge, &KEY))
            },
            // An older challenge, replayed.
            |device, _| device.sign(&signed_message(&domain(), &[0; CHALLENGE], &KEY)),
            // Relayed, for the certificate of somebody else's key.
            |device, challenge| device.sign(&signed_message(&domain(), &challenge, &[8; 32])),
            |device, challenge| {
                let other = TrustDomain::new("other.org").unwrap();
                device.sign(&signed_message(&other, &challenge, &KEY))
            },
            |device, challenge| device.sign(&challenge),
            // A scheme that is none, with a right signature.
            |device, challenge| {
                let good = device.sign(&signed_message(&domain(), &challenge, &KEY))?;
                let mut answer = proto::X509PopAnswer::decode(good.as_slice()).unwrap();
                answer.scheme = 0x1_0403;
                Ok(answer.encode_to_vec())
            },
            |_, _| Ok(Vec::new()),
        ];
    for answer in wrong {
        let mut device = world.device(&|_| {});
        device.answer = answer;
        words(world.judge(&mut device).await, "not signed with the key");
    }
    let mut device = world.device(&|_| {});
    device.answer = |_, _| Ok(vec![0xff; 100]);
    words(world.judge(&mut device).await, "malformed answer");
    device.answer = |_, _| Err(Error::invalid("attestation", "hung up"));
    words(world.judge(&mut device).await, "hung up");
}

#[tokio::test]
async fn a_certificate_that_is_not_good_gets_no_challenge() {
    let world = World::new();
    let when = |year| rcgen::date_time_ymd(year, 1, 1);
    let bad: [(Change<'_>, &str); 5] = [
        (&|params| params.not_after = when(2020), "CertExpired"),
        (&|params| params.not_before = when(2090), "CertNotValidYet"),
        (
            &|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "CaUsedAsEndEntity",
        ),
        (
            &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "RequiredEkuNotFound",
        ),
        (
            &|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement],
            "may not sign",
        ),
    ];
    for (change, expected) in bad {
        let mut device = world.device(change);
        words(world.judge(&mut device).await, expected);
        assert_eq!(device.asked, 0, "{expected}");
    }
    let mut stranger = Device::of(&device_ca(), &rcgen::PKCS_ECDSA_P256_SHA256, &|_| {});
    words(
        world.judge(&mut stranger).await,
        "InvalidSignatureForPublicKey",
    );
    let mut device = world.device(&|_| {});
    device.chain = vec![];
    words(world.judge(&mut device).await, "a chain of none");
    device.chain = vec![vec![0x30; 17 << 10]];
    words(world.judge(&mut device).await, "too long");
    device.chain = vec![vec![0x30; 10]; 9];
    words(world.judge(&mut device).await, "too many");
    let error = world.attest(&mut device, &[0xff; 50]).await.unwrap_err();
    assert!(error.to_string().contains("malformed claim"), "{error}");
    assert_eq!((stranger.asked, device.asked), (0, 0));
}

#[tokio::test]
async fn rules_say_which_node_it_is_and_the_first_that_matches_counts() {
    let named = |change: &'static (dyn Fn(&mut Rule) + Sync)| rule(|rule| change(rule));
    let world = World::with(vec![
        named(&|rule| {
            rule.common_name = Some("printer".to_owned());
            rule.node = Some("web9".parse().unwrap());
        }),
        dns_rule(),
        named(&|rule| rule.common_name = Some("node-*".to_owned())),
    ])
    .unwrap();
    let common_name = |name: &'static str| {
        move |params: &mut CertificateParams| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, name);
        }
    };
    for (name, node) in [("printer", "web9"), ("node-a7", "a7")] {
        let mut device = world.device(&common_name(name));
        assert_eq!(world.judge(&mut device).await.unwrap(), node);
    }
    for (name, expected) in [
        ("scanner", "no rule"),
        ("node-", "no rule"),
        ("node-a.b", "no rule"),
        ("node-A7", "node name"),
        ("node-../x", "no rule"),
    ] {
        let mut device = world.device(&common_name(name));
        words(world.judge(&mut device).await, expected);
    }
    let two = |params: &mut CertificateParams| {
        let other = "db1.nodes.example.org".try_into().unwrap();
        params
            .subject_alt_names
            .push(rcgen::SanType::DnsName(other));
    };
    words(world.judge(&mut world.device(&two)).await, "several names");
    let deep = |params: &mut CertificateParams| {
        let name = "a.b.nodes.example.org".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    };
    words(world.judge(&mut world.device(&deep)).await, "no rule");
}

#[tokio::test]
async fn a_fingerprint_names_one_certificate_and_nothing_else() {
    let world = World::new();
    let mut device = world.device(&|_| {});
    let mut other = world.device(&|_| {});
    let print = Fingerprint::of(&device.chain[0]).to_string();
    let rule = rule(|rule| {
        rule.fingerprint = Some(print);
        rule.node = Some("web7".parse().unwrap());
        rule.prefixes = vec!["10.7.0.0/24".parse().unwrap()];
        rule.underlay = vec!["192.0.2.7".to_owned()];
        rule.joining = true;
    });
    let config = X509PopConfig {
        ca: world._folder.path().join("devices.pem"),
        nodes: vec![rule],
    };
    let config = AttestationConfig {
        x509pop: Some(config),
    };
    let attestors = Attestors::open(&config, &domain()).unwrap();
    let kind = attestors.kind("x509pop").unwrap();
    let claim = device.claim();
    let Proven::Node(order) = kind.attest(&claim, &KEY, &mut device).await.unwrap() else {
        panic!("no node");
    };
    assert_eq!((order.name.as_str(), order.managed), ("web7", false));
    assert_eq!(order.prefixes, ["10.7.0.0/24".parse().unwrap()]);
    assert_eq!(order.underlay, ["192.0.2.7:7250".parse().unwrap()]);
    let claim = other.claim();
    assert!(kind.attest(&claim, &KEY, &mut other).await.is_err());
}

#[test]
fn rules_that_mean_nothing_stop_the_start() {
    let node = || Some("web1".parse().unwrap());
    let bad = [
        rule(|_| {}),
        rule(|rule| rule.node = node()),
        rule(|rule| rule.dns = Some("web1.example.org".to_owned())),
        rule(|rule| {
            rule.dns = Some("web1.example.org".to_owned());
            rule.common_name = Some("web1".to_owned());
            rule.node = node();
        }),
        rule(|rule| {
            rule.dns = Some("*.example.org".to_owned());
            rule.node = node();
        }),
        rule(|rule| rule.dns = Some("*.*.example.org".to_owned())),
        rule(|rule| {
            rule.fingerprint = Some("sha256:12".to_owned());
            rule.node = node();
        }),
        rule(|rule| {
            rule.common_name = Some("web1".to_owned());
            rule.node = node();
            rule.underlay = vec!["nowhere".to_owned()];
        }),
    ];
    for rule in bad {
        let shown = format!("{rule:?}");
        assert!(World::with(vec![rule]).is_err(), "{shown}");
    }
    assert!(World::with(vec![]).is_err());
    let absent = X509PopConfig {
        ca: PathBuf::from("/nonexistent/devices.pem"),
        nodes: vec![dns_rule()],
    };
    let config = AttestationConfig {
        x509pop: Some(absent),
    };
    assert!(Attestors::open(&config, &domain()).is_err());
}
