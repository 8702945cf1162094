//! SPIFFE's rules for bundles by their numbers: X-10, X-11, J-4, B-1 to B-6.

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData};
use serde_json::{Value, json};
use spiffe::TrustDomain;

use super::*;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn root_with(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate_for(algorithm).unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn root() -> Vec<u8> {
    root_with(&rcgen::PKCS_ECDSA_P256_SHA256)
}

fn jwt_key(name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> JwtKey {
    let key = KeyPair::generate_for(algorithm).unwrap();
    JwtKey::new(name, &key.subject_public_key_info(), 0).unwrap()
}

fn bundle() -> TrustBundle {
    TrustBundle::new(domain("example.org"), 7, [root(), root()])
        .unwrap()
        .with_jwt_keys(vec![jwt_key("k1", &rcgen::PKCS_ECDSA_P256_SHA256)])
        .unwrap()
        .with_refresh_hint(60)
}

fn read(text: &Value) -> Result<Read, Error> {
    TrustBundle::from_spiffe_json(domain("example.org"), text.to_string().as_bytes())
}

/// A good bundle's JSON, changed.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Read, Error> {
    let mut text = bundle().to_spiffe_json();
    change(&mut text);
    read(&text)
}

#[test]
fn x10_one_jwk_a_root_without_kid_and_one_certificate_each() {
    let text = bundle().to_spiffe_json();
    let keys = text["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 3);
    for key in keys.iter().filter(|key| key["use"] == "x509-svid") {
        assert_eq!(key["kid"], Value::Null);
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
        assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")));
    }
}

#[test]
fn x10_roots_and_keys_of_every_kind_come_back_as_they_went() {
    let algorithms = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_RSA_SHA256,
    ];
    let keys = algorithms.iter().enumerate();
    let keys = keys.map(|(at, algorithm)| jwt_key(&format!("k{at}"), algorithm));
    let roots = algorithms.iter().map(|algorithm| root_with(algorithm));
    let bundle = TrustBundle::new(
        domain("example.org"),
        u64::MAX,
        roots.chain([root_with(&rcgen::PKCS_ED25519)]),
    )
    .unwrap()
    .with_jwt_keys(keys.collect())
    .unwrap()
    .with_refresh_hint(60);
    let back = read(&bundle.to_spiffe_json()).unwrap();
    assert_eq!((back.bundle, back.ignored), (bundle.clone(), vec![]));
    assert_eq!(TrustBundle::from_bytes(&bundle.to_bytes()).unwrap(), bundle);
    assert_eq!(bundle.jwt_jwks()["keys"].as_array().unwrap().len(), 4);
}

#[test]
fn x11_no_certificate_is_ignored_and_of_several_the_first_counts() {
    let read = changed(|text| {
        let second = text["keys"][1]["x5c"][0].clone();
        text["keys"][0]["x5c"].as_array_mut().unwrap().push(second);
        text["keys"][1]["x5c"] = json!([]);
    })
    .unwrap();
    assert_eq!((read.bundle.roots().count(), read.ignored.len()), (1, 1));
    let read = changed(|text| {
        text["keys"][0].as_object_mut().unwrap().remove("x5c");
    });
    assert_eq!(read.unwrap().bundle.roots().count(), 1);
    let garbage = [json!("***"), json!("AAAA"), json!(3), json!({"a": 1})];
    for garbage in garbage {
        let read = changed(|text| text["keys"][0]["x5c"] = json!([garbage])).unwrap();
        assert_eq!((read.bundle.roots().count(), read.ignored.len()), (1, 1));
    }
}

#[test]
fn j4_a_jwt_key_has_a_name_of_its_own() {
    let text = bundle().to_spiffe_json();
    assert_eq!(
        (&text["keys"][2]["use"], &text["keys"][2]["kid"]),
        (&json!("jwt-svid"), &json!("k1"))
    );
    for kid in [
        Value::Null,
        json!(""),
        json!(7),
        json!("a\nb"),
        json!("x".repeat(300)),
    ] {
        let read = changed(|text| text["keys"][2]["kid"] = kid).unwrap();
        assert_eq!((read.bundle.jwt_keys().len(), read.ignored.len()), (0, 1));
    }
    let twice = |text: &mut Value| {
        let mut other = text["keys"][2].clone();
        other["x"] = text["keys"][0]["x"].clone();
        other["y"] = text["keys"][0]["y"].clone();
        text["keys"].as_array_mut().unwrap().push(other);
    };
    let error = changed(twice).unwrap_err().to_string();
    assert!(error.contains("two JWT keys are called \"k1\""), "{error}");
}

#[test]
fn b1_no_keys_at_all_is_an_error_and_an_empty_list_revokes_everything() {
    for bad in [
        json!({}),
        json!({"keys": null}),
        json!({"keys": {}}),
        json!([]),
        json!(""),
    ] {
        assert!(read(&bad).is_err(), "{bad}");
    }
    let empty = read(&json!({"keys": [], "spiffe_sequence": 9}))
        .unwrap()
        .bundle;
    assert!(empty.is_empty());
    // Nothing ends in it.
    assert!(empty.anchors(crate::now()).is_empty());
}

#[test]
fn b2_the_sequence_has_64_bits() {
    assert_eq!(changed(|_| {}).unwrap().bundle.sequence(), 7);
    let most = changed(|text| text["spiffe_sequence"] = json!(u64::MAX)).unwrap();
    assert_eq!(most.bundle.sequence(), u64::MAX);
    for bad in [json!(-1), json!(1.5), json!("7")] {
        assert!(changed(|text| text["spiffe_sequence"] = bad).is_err());
    }
    assert_eq!(read(&json!({"keys": []})).unwrap().bundle.sequence(), 0);
}

#[test]
fn b3_the_refresh_hint_is_seconds_and_five_minutes_if_absent() {
    assert_eq!(bundle().to_spiffe_json()["spiffe_refresh_hint"], 60);
    assert_eq!(changed(|_| {}).unwrap().bundle.refresh_hint(), Some(60));
    let without = bundle().with_refresh_hint(0);
    assert_eq!(without.to_spiffe_json()["spiffe_refresh_hint"], 300);
    let absent = read(&json!({"keys": []})).unwrap().bundle;
    assert_eq!(absent.refresh_hint(), None);
    let endless = changed(|text| text["spiffe_refresh_hint"] = json!(u64::MAX)).unwrap();
    assert!(endless.bundle.refresh_hint().unwrap() <= 24 * 3600);
}

#[test]
fn b4_keys_of_unknown_kind_or_use_are_ignored() {
    let unknown: [&dyn Fn(&mut Value); 6] = [
        &|key| key["kty"] = json!("quantum"),
        &|key| key["kty"] = Value::Null,
        &|key| key["use"] = json!("wit-svid"),
        &|key| key["use"] = json!("X509-SVID"),
        &|key| key["use"] = Value::Null,
        &|key| *key = json!("a key"),
    ];
    for make_unknown in unknown {
        let read = changed(|text| make_unknown(&mut text["keys"][0])).unwrap();
        assert_eq!((read.bundle.roots().count(), read.ignored.len()), (1, 1));
        assert_eq!(read.bundle.jwt_keys().len(), 1);
    }
    let read = changed(|text| text["unknown"] = json!({"a": [1]})).unwrap();
    assert!(read.ignored.is_empty(), "unknown members are skipped");
}

#[test]
fn b4_keys_that_are_none_are_ignored() {
    let damage: [&dyn Fn(&mut Value); 5] = [
        &|key| key["crv"] = json!("P-384"),
        &|key| key["crv"] = json!("secp256k1"),
        &|key| key["x"] = json!("AAAA"),
        &|key| key["y"] = key["x"].clone(),
        &|key| key["x"] = json!("+/=="),
    ];
    for damage in damage {
        let read = changed(|text| damage(&mut text["keys"][2])).unwrap();
        assert_eq!((read.bundle.jwt_keys().len(), read.ignored.len()), (0, 1));
    }
    let weak = |n: &[u8], e: &[u8]| {
        let text = |bytes| data_encoding::BASE64URL_NOPAD.encode(bytes);
        let key = json!({"use": "jwt-svid", "kid": "r", "kty": "RSA", "n": text(n), "e": text(e)});
        read(&json!({"keys": [key]}))
            .unwrap()
            .bundle
            .jwt_keys()
            .len()
    };
    let modulus = |bytes: usize| [vec![0xff; bytes - 1], vec![1]].concat();
    assert_eq!(weak(&modulus(256), &[1, 0, 1]), 1);
    assert_eq!(weak(&modulus(128), &[1, 0, 1]), 0, "1024 bits are too few");
    assert_eq!(
        weak(&modulus(2048), &[1, 0, 1]),
        0,
        "16384 bits cost too much"
    );
    assert_eq!(
        weak(&modulus(256), &[1]),
        0,
        "an exponent of one signs nothing"
    );
    assert_eq!(weak(&[], &[]), 0);
}

#[test]
fn b4_a_leaf_is_no_root() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert!(TrustBundle::new(domain("example.org"), 1, [leaf.der().to_vec()]).is_err());
    let text = data_encoding::BASE64.encode(leaf.der());
    let read = changed(|text_of| text_of["keys"][0]["x5c"] = json!([text])).unwrap();
    assert_eq!((read.bundle.roots().count(), read.ignored.len()), (1, 1));
}

#[test]
fn b5_a_text_does_not_say_whose_bundle_it_is() {
    let text = bundle().to_spiffe_json().to_string();
    let read = TrustBundle::from_spiffe_json(domain("other.org"), text.as_bytes()).unwrap();
    assert_eq!(read.bundle.trust_domain(), &domain("other.org"));
    let both: BundleMap = [bundle(), read.bundle].into_iter().collect();
    assert_eq!(both.iter().count(), 2, "never merged");
    assert_eq!(both.get(&domain("third.org")), None);
}

#[test]
fn b6_a_map_is_read_as_a_whole_and_names_stand_there_once() {
    let other = TrustBundle::new(domain("other.org"), 3, [root()]).unwrap();
    let own = bundle();
    let map: BundleMap = [own.clone(), other].into_iter().collect();
    let text = map.to_spiffe_json().to_string();
    let (back, ignored) = BundleMap::from_spiffe_json(text.as_bytes()).unwrap();
    assert!(ignored.is_empty());
    let found = back.get(&domain("example.org")).unwrap();
    assert!(
        found.same_content(&own.with_refresh_hint(0)),
        "its hint is ignored"
    );
    let one = r#"{"keys": []}"#;
    for bad in [
        format!(r#"{{"trust_domains": {{"a.org": {one}, "a.org": {one}}}}}"#),
        format!(r#"{{"trust_domains": {{"a.org": {one}}}, "trust_domains": {{}}}}"#),
        format!(r#"{{"trust_domains": {{"a.org": {one}, "spiffe://a.org": {one}}}}}"#),
        format!(r#"{{"trust_domains": {{"a.org": {one}, "b.org": 3}}}}"#),
        format!(r#"{{"trust_domains": {{"not a name": {one}}}}}"#),
        r#"{"trust_domains": []}"#.to_owned(),
        "{}".to_owned(),
    ] {
        assert!(
            BundleMap::from_spiffe_json(bad.as_bytes()).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn more_than_a_bundle_may_hold_is_refused() {
    let certificate = root();
    let many = (0..65).map(|_| root());
    assert!(TrustBundle::new(domain("example.org"), 1, many).is_err());
    let same = std::iter::repeat_n(certificate, 60);
    let same = TrustBundle::new(domain("example.org"), 1, same).unwrap();
    assert_eq!(same.roots().count(), 1, "the same one again is one");
    assert!(read(&json!({"keys": vec![json!({}); 257]})).is_err());
    let long = vec![b' '; MAX_JSON + 1];
    assert!(TrustBundle::from_spiffe_json(domain("example.org"), &long).is_err());
    let deep = "[".repeat(100_000);
    assert!(TrustBundle::from_spiffe_json(domain("example.org"), deep.as_bytes()).is_err());
}

#[test]
fn pem_is_read_and_written() {
    let (first, second) = (root(), root());
    let bundle = TrustBundle::new(domain("example.org"), 0, [first, second]).unwrap();
    let text = format!("a comment\n{}", bundle.to_pem());
    assert_eq!(
        TrustBundle::from_pem(domain("example.org"), &text).unwrap(),
        bundle
    );
    for bad in [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(
            TrustBundle::from_pem(domain("example.org"), bad).is_err(),
            "{bad}"
        );
    }
}

proptest! {
    #[test]
    fn hostile_texts_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = TrustBundle::from_spiffe_json(domain("example.org"), &bytes);
        let _ = BundleMap::from_spiffe_json(&bytes);
        let _ = TrustBundle::from_bytes(&bytes);
        let _ = JwtKey::new("k", &bytes, 0);
    }

    #[test]
    fn a_damaged_text_never_adds_a_root(at: prop::sample::Index, byte: u8) {
        let good = bundle();
        let mut text = good.to_spiffe_json().to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(read) = TrustBundle::from_spiffe_json(domain("example.org"), &text) {
            // A certificate whose signature is damaged is still what the text says;
            // but nothing comes out that was not put in as one.
            prop_assert!(read.bundle.roots().count() <= 2);
            prop_assert!(read.bundle.jwt_keys().len() <= 1);
        }
    }
}
