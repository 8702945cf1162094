//! SPIFFE's rules by their numbers, and ours, against certificates
//! that a real CA signed wrongly.

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::TrustDomain;

use super::*;
use crate::certificate::profile::{self, Profile, Serial20, Validity};
use crate::certificate::{NODE_BINDING, PROOF_USAGE};
use crate::model::Denial;

const NOW: u64 = 1_800_000_000;

type Change<'a> = &'a dyn Fn(&mut CertificateParams);

/// A root, an issuing CA under it, and whatever they are told to sign.
struct Pki {
    bundle: TrustBundle,
    issuing_der: CertificateDer<'static>,
    issuing: Issuer<'static, KeyPair>,
}

fn validity() -> Validity {
    Validity {
        not_before: NOW - 1000,
        not_after: NOW + 1000,
    }
}

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

impl Pki {
    fn new() -> Self {
        Self::with(&|_| {}, &|_| {}).unwrap()
    }

    fn with(change_root: Change<'_>, change_issuing: Change<'_>) -> Result<Self, crate::Error> {
        let authority = |name, len| {
            profile::authority(&domain(), name, Some(len), validity(), &Serial20::random()).unwrap()
        };
        let mut root = authority("root", 1);
        change_root(&mut root);
        let root_key = KeyPair::generate().unwrap();
        let root_der = root.self_signed(&root_key).unwrap().der().clone();
        let root = Issuer::new(root, root_key);
        let mut issuing = authority("issuing", 0);
        change_issuing(&mut issuing);
        let key = KeyPair::generate().unwrap();
        let issuing_der = issuing.signed_by(&key, &root).unwrap().der().clone();
        Ok(Self {
            bundle: TrustBundle::new(domain(), 1, [root_der.to_vec()])?,
            issuing_der,
            issuing: Issuer::new(issuing, key),
        })
    }

    fn sign(&self, params: &CertificateParams) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuing).unwrap();
        vec![leaf.der().clone(), self.issuing_der.clone()]
    }

    fn workload(&self, change: Change<'_>) -> Vec<CertificateDer<'static>> {
        let mut params = leaf(
            "spiffe://example.org/web",
            &Profile::Workload { dns_names: &[] },
        );
        change(&mut params);
        self.sign(&params)
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(self.bundle.clone(), DenyList::empty())
    }

    fn judge(&self, change: Change<'_>) -> Result<WorkloadSvid, Rejection> {
        self.verifier().workload(&self.workload(change), at(NOW))
    }
}

fn leaf(id: &str, profile: &Profile<'_>) -> CertificateParams {
    let id = spiffe::SpiffeId::new(id).unwrap();
    profile::leaf(&id, profile, validity(), &Serial20::random()).unwrap()
}

fn binding() -> NodeBinding {
    NodeBinding {
        name: "web1".parse().unwrap(),
        prefixes: vec!["10.1.0.0/24".parse().unwrap()],
        assignment: 3,
    }
}

fn proof() -> ProofBinding {
    ProofBinding {
        node: "web1".parse().unwrap(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
    }
}

const NODE: &str = "spiffe://example.org/handfast/node/web1";

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn broken(result: Result<WorkloadSvid, Rejection>, expected: &str) {
    match result {
        Err(Rejection::Spiffe { rule, .. }) => assert_eq!(rule, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn good_certificates_are_accepted() {
    let pki = Pki::new();
    let svid = pki.judge(&|_| {}).unwrap();
    assert_eq!(svid.spiffe_id.to_string(), "spiffe://example.org/web");
    let node = pki.sign(&leaf(NODE, &Profile::Node(&binding())));
    assert_eq!(
        pki.verifier().node(&node, at(NOW)).unwrap().prefixes,
        binding().prefixes
    );
    let chain = pki.sign(&leaf("spiffe://example.org/web", &Profile::Proof(&proof())));
    assert_eq!(
        pki.verifier().proof(&chain, at(NOW)).unwrap().labels,
        proof().labels
    );
}

#[test]
fn x1_exactly_one_uri() {
    let pki = Pki::new();
    broken(pki.judge(&|params| params.subject_alt_names.clear()), "X-1");
    broken(
        pki.judge(&|params| params.subject_alt_names.push(uri("spiffe://example.org/b"))),
        "X-1",
    );
    broken(
        pki.judge(&|params| params.subject_alt_names.push(uri("https://example.org/b"))),
        "X-1",
    );
    broken(
        pki.judge(&|params| params.subject_alt_names = vec![uri("https://example.org/b")]),
        "X-1",
    );
    let dns = |params: &mut CertificateParams| {
        params
            .subject_alt_names
            .push(SanType::DnsName("web.example.org".try_into().unwrap()));
    };
    assert!(pki.judge(&dns).is_ok(), "other names are allowed");
}

#[test]
fn x2_a_leaf_has_a_path_and_an_authority_has_none() {
    let pki = Pki::new();
    broken(
        pki.judge(&|params| params.subject_alt_names = vec![uri("spiffe://example.org")]),
        "X-2",
    );
    let change = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![uri("spiffe://example.org/ca")];
    };
    broken(Pki::with(&|_| {}, &change).unwrap().judge(&|_| {}), "X-2");
    assert!(Pki::with(&change, &|_| {}).is_err());
}

#[test]
fn x3_no_subject_means_critical_names() {
    // rcgen marks the names critical exactly when there is no subject; so undo that by hand.
    let pki = Pki::new();
    let mut params = leaf(
        "spiffe://example.org/web",
        &Profile::Workload { dns_names: &[] },
    );
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            let tag = yasna::Tag::context(6);
            writer.next().write_tagged_implicit(tag, |writer| {
                writer.write_ia5_string("spiffe://example.org/web");
            });
        });
    });
    params.subject_alt_names.clear();
    params
        .custom_extensions
        .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    broken(pki.verifier().workload(&pki.sign(&params), at(NOW)), "X-3");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "web");
    assert!(pki.verifier().workload(&pki.sign(&params), at(NOW)).is_ok());
}

#[test]
fn x4_a_leaf_is_no_ca_and_an_issuer_is_one() {
    let pki = Pki::new();
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    broken(pki.judge(&|params| params.is_ca = ca), "X-4");
    assert!(
        pki.judge(&|params| params.is_ca = IsCa::NoCa).is_ok(),
        "absent means no CA"
    );
    let no_ca = |params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa;
    assert!(Pki::with(&|_| {}, &no_ca).unwrap().judge(&|_| {}).is_err());
    assert!(Pki::with(&no_ca, &|_| {}).is_err());
}

#[test]
fn x5_key_usage_is_there_and_fits() {
    let pki = Pki::new();
    broken(pki.judge(&|params| params.key_usages.clear()), "X-5");
    for extra in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        broken(pki.judge(&|params| params.key_usages.push(extra)), "X-5");
    }
    broken(
        pki.judge(&|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
        "X-5",
    );
    assert!(
        pki.judge(&|params| params.key_usages.push(KeyUsagePurpose::KeyEncipherment))
            .is_ok()
    );
    let not_critical = |params: &mut CertificateParams| {
        params.key_usages.clear();
        let content = vec![0x03, 0x02, 0x07, 0x80];
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&[2, 5, 29, 15], content));
    };
    broken(pki.judge(&not_critical), "X-5");
    // The library ignores the key usage of issuers; we do not.
    let no_sign =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let weak = Pki::with(&|_| {}, &no_sign);
    // rcgen refuses to sign with such an issuer, which is as good.
    if let Ok(weak) = weak {
        let params = leaf(
            "spiffe://example.org/web",
            &Profile::Workload { dns_names: &[] },
        );
        let key = KeyPair::generate().unwrap();
        if let Ok(signed) = params.signed_by(&key, &weak.issuing) {
            let chain = [signed.der().clone(), weak.issuing_der.clone()];
            broken(weak.verifier().workload(&chain, at(NOW)), "X-5");
        }
    }
}

#[test]
fn x6_extended_key_usage_is_both_or_absent() {
    let pki = Pki::new();
    assert!(
        pki.judge(&|params| params.extended_key_usages.clear())
            .is_ok()
    );
    for one in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ] {
        broken(
            pki.judge(&|params| params.extended_key_usages = vec![one.clone()]),
            "X-6",
        );
    }
}

#[test]
fn x8_only_the_own_trust_domain_and_a_valid_path() {
    let pki = Pki::new();
    let foreign = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![uri("spiffe://other.org/web")];
    };
    assert!(matches!(
        pki.judge(&foreign),
        Err(Rejection::TrustDomain(_))
    ));
    let other = Pki::new();
    let chain = other.workload(&|_| {});
    assert!(matches!(
        pki.verifier().workload(&chain, at(NOW)),
        Err(Rejection::Path(_))
    ));
    let without_issuer = &pki.workload(&|_| {})[..1];
    assert!(matches!(
        pki.verifier().workload(without_issuer, at(NOW)),
        Err(Rejection::Path(_))
    ));
    let late = pki
        .verifier()
        .workload(&pki.workload(&|_| {}), at(NOW + 1001));
    assert!(matches!(late, Err(Rejection::Time { .. })));
    let early = pki
        .verifier()
        .workload(&pki.workload(&|_| {}), at(NOW - 1001));
    assert!(matches!(early, Err(Rejection::Time { .. })));
}

#[test]
fn x8_an_expired_root_ends_nothing() {
    let expire = |params: &mut CertificateParams| {
        params.not_after = time::OffsetDateTime::from_unix_timestamp((NOW - 1) as i64).unwrap();
    };
    let pki = Pki::with(&expire, &|_| {}).unwrap();
    assert!(matches!(pki.judge(&|_| {}), Err(Rejection::Path(_))));
}

#[test]
fn x9_a_signing_certificate_is_never_a_peer() {
    let pki = Pki::new();
    let chain = [pki.issuing_der.clone()];
    assert!(pki.verifier().workload(&chain, at(NOW)).is_err());
    assert!(pki.verifier().node(&chain, at(NOW)).is_err());
}

#[test]
fn only_the_first_certificate_counts() {
    let pki = Pki::new();
    let mut chain = pki.workload(&|_| {});
    chain.reverse();
    assert!(pki.verifier().workload(&chain, at(NOW)).is_err());
}

#[test]
fn a_node_is_called_what_its_id_says() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let kind = |params: &CertificateParams| verifier.node(&pki.sign(params), at(NOW)).unwrap_err();
    let other = leaf(
        "spiffe://example.org/handfast/node/db1",
        &Profile::Node(&binding()),
    );
    assert!(matches!(kind(&other), Rejection::Kind { .. }));
    let plain = leaf(NODE, &Profile::Workload { dns_names: &[] });
    assert!(matches!(kind(&plain), Rejection::Kind { .. }));
    let mut torn = plain;
    let content = binding().encode()[..10].to_vec();
    torn.custom_extensions
        .push(CustomExtension::from_oid_content(NODE_BINDING, content));
    assert!(matches!(kind(&torn), Rejection::Kind { .. }));
    let mut twice = leaf(NODE, &Profile::Node(&binding()));
    let content = binding().encode();
    twice
        .custom_extensions
        .push(CustomExtension::from_oid_content(NODE_BINDING, content));
    assert!(verifier.node(&pki.sign(&twice), at(NOW)).is_err());
}

#[test]
fn a_proof_is_good_for_proofs_alone() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let good = leaf("spiffe://example.org/web", &Profile::Proof(&proof()));
    assert!(verifier.workload(&pki.sign(&good), at(NOW)).is_err());
    let mut tls_too = good.clone();
    tls_too
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ClientAuth);
    assert!(verifier.proof(&pki.sign(&tls_too), at(NOW)).is_err());
    let mut other_too = good.clone();
    other_too
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 99]));
    assert!(verifier.proof(&pki.sign(&other_too), at(NOW)).is_err());
    let mut none = good;
    none.extended_key_usages.clear();
    assert!(verifier.proof(&pki.sign(&none), at(NOW)).is_err());
    let of_a_node = leaf(NODE, &Profile::Proof(&proof()));
    assert!(verifier.proof(&pki.sign(&of_a_node), at(NOW)).is_err());
    let mut unbound = leaf(
        "spiffe://example.org/web",
        &Profile::Workload { dns_names: &[] },
    );
    unbound.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(PROOF_USAGE.to_vec())];
    assert!(verifier.proof(&pki.sign(&unbound), at(NOW)).is_err());
}

#[test]
fn the_deny_list_cuts_by_id_node_and_serial_issuers_too() {
    let pki = Pki::new();
    let chain = pki.sign(&leaf("spiffe://example.org/web", &Profile::Proof(&proof())));
    let svid = pki.verifier().proof(&chain, at(NOW)).unwrap();
    let issuer = rules::check_intermediate(&pki.issuing_der, &domain()).unwrap();
    for subject in [
        Subject::SpiffeId(svid.spiffe_id.clone()),
        Subject::Node(svid.node.clone()),
        Subject::SpiffeId(spiffe::SpiffeId::new(NODE).unwrap()),
        Subject::Serial(svid.serial.clone()),
        Subject::Serial(issuer),
    ] {
        let denial = Denial {
            subject: subject.clone(),
            reason: "test".to_owned(),
            since_ms: 0,
        };
        let verifier = Verifier::new(pki.bundle.clone(), DenyList::unsigned(1, vec![denial]));
        let result = verifier.proof(&chain, at(NOW));
        assert!(
            matches!(result, Err(Rejection::Denied(_))),
            "{subject}: {result:?}"
        );
    }
}

#[test]
fn long_chains_and_large_certificates_are_not_looked_at() {
    let pki = Pki::new();
    let mut chain = pki.workload(&|_| {});
    chain.extend(std::iter::repeat_n(pki.issuing_der.clone(), 8));
    assert_eq!(
        pki.verifier().workload(&chain, at(NOW)),
        Err(Rejection::Chain(10))
    );
    assert_eq!(
        pki.verifier().workload(&[], at(NOW)),
        Err(Rejection::Chain(0))
    );
    let large = [CertificateDer::from(vec![0x30; MAX_CERTIFICATE + 1])];
    assert_eq!(
        pki.verifier().workload(&large, at(NOW)),
        Err(Rejection::Chain(1))
    );
}

fn ask_all(verifier: &Verifier, chain: &[CertificateDer<'_>]) -> bool {
    verifier.node(chain, at(NOW)).is_ok()
        || verifier.proof(chain, at(NOW)).is_ok()
        || verifier.workload(chain, at(NOW)).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let pki = Pki::new();
        prop_assert!(!ask_all(&pki.verifier(), &[CertificateDer::from(bytes.clone())]));
        let _ = TrustBundle::from_bytes(&bytes);
        let _ = DenyList::from_bytes(&bytes, &pki.bundle);
        prop_assert!(TrustBundle::new(domain(), 1, [bytes]).is_err());
    }

    #[test]
    fn a_changed_byte_anywhere_never_passes(at: prop::sample::Index, flip in 1u8..) {
        let pki = Pki::new();
        let profile = Profile::Node(&binding());
        for chain in [pki.sign(&leaf(NODE, &profile)), pki.workload(&|_| {})] {
            let mut der = chain[0].to_vec();
            let at = at.index(der.len());
            der[at] ^= flip;
            let damaged = [CertificateDer::from(der), chain[1].clone()];
            prop_assert!(!ask_all(&pki.verifier(), &damaged));
        }
    }
}
