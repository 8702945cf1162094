//! SPIFFE's rules for IDs (ID-1 to ID-7) on certificates that carry them, and for chains that end in other
//! than one's own single root: cross-signed, tainted, foreign, of other kinds of keys.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateParams, CertifiedIssuer, CustomExtension, GeneralSubtree, KeyPair, NameConstraints,
    SanType, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::{SpiffeId, TrustDomain};

use super::*;
use crate::certificate::profile::{self, Profile, Serial20, Validity};
use crate::model::Denial;
use crate::names::{MAX_ID, operator_id};

const NOW: u64 = 1_800_000_000;
const WEB: &str = "spiffe://example.org/web";

type Issuer = CertifiedIssuer<'static, KeyPair>;
type Chain = Vec<CertificateDer<'static>>;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn validity() -> Validity {
    Validity {
        not_before: NOW - 1000,
        not_after: NOW + 1000,
    }
}

fn authority(name: &str, path_len: impl Into<Option<u8>>) -> CertificateParams {
    let name = domain(name);
    profile::authority(
        &name,
        "a CA",
        path_len.into(),
        validity(),
        &Serial20::random(),
    )
    .unwrap()
}

fn root_of(name: &str, algorithm: &'static SignatureAlgorithm) -> Issuer {
    let key = KeyPair::generate_for(algorithm).unwrap();
    CertifiedIssuer::self_signed(authority(name, 1), key).unwrap()
}

fn root(name: &str) -> Issuer {
    root_of(name, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn issuing(name: &str, root: &Issuer) -> Issuer {
    CertifiedIssuer::signed_by(authority(name, 0), KeyPair::generate().unwrap(), root).unwrap()
}

/// A leaf with this text as its URI, under an issuing CA.
fn leaf(uri: &str, issuing: &Issuer) -> Option<Chain> {
    let id = SpiffeId::new(WEB).unwrap();
    let profile = Profile::Workload { dns_names: &[] };
    let mut params = profile::leaf(&id, &profile, validity(), &Serial20::random()).unwrap();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().ok()?)];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, issuing).unwrap();
    Some(vec![leaf.der().clone(), issuing.der().clone()])
}

fn bundle(name: &str, roots: &[&Issuer]) -> TrustBundle {
    let roots = roots.iter().map(|root| root.der().to_vec());
    TrustBundle::new(domain(name), 1, roots).unwrap()
}

fn verifier(bundle: TrustBundle) -> Verifier {
    Verifier::new(bundle, DenyList::empty())
}

/// Is a certificate with this ID taken for a workload of its trust domain?
fn accepts(uri: &str, name: &str) -> bool {
    let root = root(name);
    let verifier = verifier(bundle(name, &[&root]));
    let Some(chain) = leaf(uri, &issuing(name, &root)) else {
        return false;
    };
    verifier.workload(&chain, at(NOW)).is_ok()
}

fn all(uris: &[&str], expected: bool) {
    for uri in uris {
        assert_eq!(accepts(uri, "example.org"), expected, "{uri}");
    }
}

#[test]
fn id1_the_scheme_is_spiffe_without_query_or_fragment() {
    all(&[WEB], true);
    all(
        &[
            "https://example.org/web",
            "spiffe:/example.org/web",
            "spiffe:///web",
            "spiffe:example.org/web",
            "//example.org/web",
            "example.org/web",
            "spiffe://example.org/web?x",
            "spiffe://example.org/web?",
            "spiffe://example.org/web#x",
            "spiffe://example.org/web#",
        ],
        false,
    );
}

#[test]
fn id2_a_trust_domain_has_no_user_no_port_and_plain_characters() {
    all(
        &[
            "spiffe://user@example.org/web",
            "spiffe://example.org:443/web",
            "spiffe://example.org:/web",
            "spiffe://example%2eorg/web",
            "spiffe://exämple.org/web",
            "spiffe://example!org/web",
            "spiffe://example org/web",
        ],
        false,
    );
    for plain in ["a_b-c.d", "1", "example"] {
        assert!(accepts(&format!("spiffe://{plain}/web"), plain), "{plain}");
    }
    // What operators write is emitted as it is: lower case only.
    assert!(operator_id("spiffe://Example.org/web").is_err());
    assert!(operator_id("SPIFFE://example.org/web").is_err());
}

#[test]
fn id3_what_looks_like_an_ipv4_address_is_a_name_and_ipv6_is_none() {
    assert!(accepts("spiffe://192.0.2.1/web", "192.0.2.1"));
    assert!(TrustDomain::new("[2001:db8::1]").is_err());
    all(&["spiffe://[2001:db8::1]/web"], false);
}

#[test]
fn id4_segments_of_a_path_are_plain_and_none_is_empty() {
    let good = ["...", ".x", "..x", "x.", "A-Z_0.9"];
    for segment in good {
        let uri = format!("spiffe://example.org/{segment}/web");
        assert!(accepts(&uri, "example.org"), "{uri}");
    }
    all(
        &[
            "spiffe://example.org//web",
            "spiffe://example.org/web/",
            "spiffe://example.org/./web",
            "spiffe://example.org/../web",
            "spiffe://example.org/web/..",
            "spiffe://example.org/w%65b",
            "spiffe://example.org/web~",
            "spiffe://example.org/web:1",
            "spiffe://example.org/w eb",
        ],
        false,
    );
}

#[test]
fn id5_paths_have_cases_and_a_leaf_has_a_path() {
    let root = root("example.org");
    let verifier = verifier(bundle("example.org", &[&root]));
    let chain = leaf("spiffe://example.org/Web", &issuing("example.org", &root)).unwrap();
    let svid = verifier.workload(&chain, at(NOW)).unwrap();
    assert_eq!(svid.spiffe_id.to_string(), "spiffe://example.org/Web");
    assert_ne!(svid.spiffe_id, SpiffeId::new(WEB).unwrap());
    all(&["spiffe://example.org", "spiffe://example.org/"], false);
}

#[test]
fn id6_2048_bytes_are_accepted_and_no_more_are_made() {
    let long = |bytes: usize| format!("{WEB}/{}", "x".repeat(bytes - WEB.len() - 1));
    assert!(accepts(&long(MAX_ID), "example.org"));
    assert!(operator_id(&long(MAX_ID)).is_ok());
    assert!(operator_id(&long(MAX_ID + 1)).is_err());
    assert!(TrustDomain::new("x".repeat(255)).is_ok());
    assert!(crate::authority::trust_domain(&"x".repeat(256)).is_err());
}

#[tokio::test]
async fn id7_the_authority_has_an_id_of_its_own_without_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let setup = crate::authority::Setup::new(dir.clone(), domain("example.org"), vec![]);
    crate::authority::init(&setup).await.unwrap();
    let authority = crate::authority::Authority::open(&dir).await.unwrap();
    let bundle = authority.bundle(1).unwrap();
    for root in bundle.roots() {
        let text = b"spiffe://example.org";
        let found = root.windows(text.len()).position(|window| window == text);
        // The URI ends there: no path follows it.
        assert_ne!(root[found.unwrap() + text.len()], b'/');
        check_intermediate(root, bundle.trust_domain()).unwrap();
    }
}

#[test]
fn x7_constraints_on_uris_fail_closed_and_on_other_names_say_nothing() {
    let root = root("example.org");
    let verifier = verifier(bundle("example.org", &[&root]));
    let judge = |params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        let narrow = CertifiedIssuer::signed_by(params, key, &root).unwrap();
        verifier.workload(&leaf(WEB, &narrow).unwrap(), at(NOW))
    };
    let mut dns = authority("example.org", 0);
    dns.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("other.example".to_owned())],
        excluded_subtrees: vec![],
    });
    assert!(judge(dns).is_ok());
    // RFC 5280 4.2.1.10: permitted is the very host of the ID; the library
    // judges no constraint on URIs, and so refuses all.
    let mut uris = authority("example.org", 0);
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            let tag = yasna::Tag::context(0);
            writer.next().write_tagged_implicit(tag, |writer| {
                writer.write_sequence(|writer| {
                    writer.next().write_sequence(|writer| {
                        let uri = yasna::Tag::context(6);
                        writer.next().write_tagged_implicit(uri, |writer| {
                            writer.write_ia5_string("example.org");
                        });
                    });
                });
            });
        });
    });
    let mut constraints = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    constraints.set_criticality(true);
    uris.custom_extensions.push(constraints);
    assert!(matches!(judge(uris), Err(Rejection::Path(_))));
}

#[test]
fn x8_a_root_that_is_cross_signed_is_followed_to() {
    let old = root("example.org");
    let subject = authority("example.org", 1);
    let key = KeyPair::generate().unwrap();
    let new = CertifiedIssuer::self_signed(subject.clone(), key).unwrap();
    // The new root's name and key, signed by another.
    let cross_signed = |by: &Issuer| {
        let mut subject = subject.clone();
        subject.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x42; 20]));
        subject.signed_by(new.key(), by).unwrap().der().clone()
    };
    let cross = cross_signed(&old);
    let chain = leaf(WEB, &issuing("example.org", &new)).unwrap();
    let slept = verifier(bundle("example.org", &[&old]));
    assert!(matches!(
        slept.workload(&chain, at(NOW)),
        Err(Rejection::Path(_))
    ));
    // Shown by the peer, or known from the bundle.
    let shown: Chain = chain.iter().chain([&cross]).cloned().collect();
    slept.workload(&shown, at(NOW)).unwrap();
    let known = bundle("example.org", &[&old]).with_cross_signed(vec![cross.to_vec()]);
    verifier(known.unwrap()).workload(&chain, at(NOW)).unwrap();
    // By somebody else it is worth nothing.
    let stranger = cross_signed(&root("example.org"));
    let forged: Chain = chain.iter().chain([&stranger]).cloned().collect();
    assert!(slept.workload(&forged, at(NOW)).is_err());
    // And not for ever: the deny list cuts it by its serial number.
    let serial = check_intermediate(&cross, &domain("example.org")).unwrap();
    let denial = Denial {
        subject: Subject::Serial(serial),
        reason: "compromised".to_owned(),
        since_ms: 0,
    };
    let cut = Verifier::new(
        bundle("example.org", &[&old]),
        DenyList::unsigned(1, vec![denial]),
    );
    assert!(matches!(
        cut.workload(&shown, at(NOW)),
        Err(Rejection::Denied(_))
    ));
}

#[test]
fn x8_tainted_roots_count_until_they_leave_the_bundle() {
    let (old, new) = (root("example.org"), root("example.org"));
    let (before, after) = (issuing("example.org", &old), issuing("example.org", &new));
    let (before, after) = (leaf(WEB, &before).unwrap(), leaf(WEB, &after).unwrap());
    let both = verifier(bundle("example.org", &[&old, &new]));
    assert!(both.workload(&before, at(NOW)).is_ok());
    assert!(both.workload(&after, at(NOW)).is_ok());
    let revoked = verifier(bundle("example.org", &[&new]));
    assert!(revoked.workload(&before, at(NOW)).is_err());
    assert!(revoked.workload(&after, at(NOW)).is_ok());
    let nobody = verifier(bundle("example.org", &[]));
    assert!(nobody.workload(&after, at(NOW)).is_err());
}

#[test]
fn x8_roots_of_every_kind_of_key_are_verified_with() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let root = root_of("partner.example", algorithm);
        let chain = leaf(
            "spiffe://partner.example/web",
            &issuing("partner.example", &root),
        );
        let verifier = verifier(bundle("partner.example", &[&root]));
        verifier
            .workload(&chain.unwrap(), at(NOW))
            .unwrap_or_else(|error| {
                panic!("{algorithm:?}: {error}");
            });
    }
}

#[test]
fn x8_every_trust_domain_by_its_own_bundle_and_no_other() {
    let (ours, theirs) = (root("example.org"), root("partner.example"));
    let own = verifier(bundle("example.org", &[&ours]));
    let foreign = Arc::new(bundle("partner.example", &[&theirs]));
    let domains = Domains::new(own.clone(), [Arc::clone(&foreign)]);
    let judge = |uri: &str, root: &Issuer, name: &str| {
        domains.workload(&leaf(uri, &issuing(name, root)).unwrap(), at(NOW))
    };
    let (web, partner) = (WEB, "spiffe://partner.example/web");
    assert!(judge(web, &ours, "example.org").is_ok());
    assert!(judge(partner, &theirs, "partner.example").is_ok());
    // Each CA signs for the other's domain, and for a third one.
    for (uri, root, name) in [
        (partner, &ours, "partner.example"),
        (web, &theirs, "example.org"),
        (partner, &ours, "example.org"),
        (web, &theirs, "partner.example"),
        ("spiffe://third.example/web", &ours, "third.example"),
        ("spiffe://third.example/web", &theirs, "third.example"),
    ] {
        assert!(judge(uri, root, name).is_err(), "{uri} signed by {name}");
    }
    // A foreign bundle that claims our name changes nothing.
    let impostor = Arc::new(bundle("example.org", &[&theirs]));
    let domains = Domains::new(own, [impostor]);
    let chain = leaf(web, &issuing("example.org", &theirs)).unwrap();
    assert!(domains.workload(&chain, at(NOW)).is_err());
    // An empty one trusts nobody.
    let own = domains.own().clone();
    let revoked = Arc::new(bundle("partner.example", &[]));
    let chain = leaf(partner, &issuing("partner.example", &theirs)).unwrap();
    assert!(
        Domains::new(own, [revoked])
            .workload(&chain, at(NOW))
            .is_err()
    );
}

#[test]
fn x9_a_foreign_signing_certificate_is_no_peer() {
    let (ours, theirs) = (root("example.org"), root("partner.example"));
    let own = verifier(bundle("example.org", &[&ours]));
    let domains = Domains::new(own, [Arc::new(bundle("partner.example", &[&theirs]))]);
    for chain in [
        vec![issuing("partner.example", &theirs).der().clone()],
        vec![theirs.der().clone()],
        vec![],
    ] {
        assert!(domains.workload(&chain, at(NOW)).is_err());
    }
}
