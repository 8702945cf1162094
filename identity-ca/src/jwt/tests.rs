//! SPIFFE's rules for JWT-SVIDs by their numbers, J-1 to J-5.

use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::authority;
use crate::bundle::JwtKey;
use crate::certificate::PrivateKey;

const NOW: u64 = 1_800_000_000;
const WEB: &str = "spiffe://example.org/web";

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn bundle(keys: Vec<JwtKey>) -> TrustBundle {
    let empty = TrustBundle::new(domain(), 1, []).unwrap();
    empty.with_jwt_keys(keys).unwrap()
}

/// A foreign signer: any algorithm, any header, any claims.
enum Signer {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Signer {
    fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    fn rsa(encoding: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(
            RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap(),
            encoding,
        )
    }

    fn key(&self) -> JwtKey {
        let spki = match self {
            Self::Ec(pair) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Self::Rsa(pair, _) => {
                AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(pair.public_key())
                    .unwrap()
                    .as_ref()
                    .to_vec()
            }
        };
        JwtKey::new("k1", &spki, 0).unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |part: &Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = match self {
            Self::Ec(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message.as_bytes());
                signature.unwrap().as_ref().to_vec()
            }
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let random = SystemRandom::new();
                pair.sign(*encoding, &random, message.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
        };
        format!("{message}.{}", BASE64URL_NOPAD.encode(&signature))
    }
}

fn header(alg: &str) -> Value {
    json!({ "alg": alg, "kid": "k1", "typ": "JWT" })
}

fn claims() -> Value {
    json!({ "sub": WEB, "aud": ["db"], "exp": NOW + 300, "iat": NOW })
}

fn judge(token: &str, bundle: &TrustBundle) -> Result<JwtSvid, JwtError> {
    verify(
        token,
        "db",
        |named| (*named == domain()).then_some(bundle),
        now(),
    )
}

/// Judges a token of one good key with this header and these claims.
fn with(header: &Value, claims: &Value) -> Result<JwtSvid, JwtError> {
    let signer = Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    judge(&signer.sign(header, claims), &bundle(vec![signer.key()]))
}

fn broken(result: Result<JwtSvid, JwtError>, expected: &str) {
    match result {
        Err(JwtError::Spiffe { rule, .. }) => assert_eq!(rule, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

fn our_key(not_after: u64) -> authority::JwtKey {
    authority::JwtKey::new(&PrivateKey::generate().unwrap(), not_after).unwrap()
}

fn ours(key: &authority::JwtKey, audiences: &[&str]) -> Result<Issued, crate::Error> {
    let audiences: Vec<String> = audiences.iter().map(ToString::to_string).collect();
    issue(key, &SpiffeId::new(WEB).unwrap(), &audiences, 300, NOW)
}

fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

#[test]
fn j1_what_is_issued_has_a_header_of_alg_kid_and_typ_and_nothing_else() {
    let key = our_key(NOW + 1000);
    let issued = ours(&key, &["db"]).unwrap();
    assert_eq!(issued.token.split('.').count(), 3);
    assert_eq!(
        part(&issued.token, 0),
        json!({ "alg": "ES256", "kid": key.key_id(), "typ": "JWT" })
    );
    let published = JwtKey::new(key.key_id(), key.public_key(), 0).unwrap();
    let svid = judge(&issued.token, &bundle(vec![published])).unwrap();
    assert_eq!(svid.spiffe_id.to_string(), WEB);
    assert_eq!(
        (svid.audiences, svid.expires_at),
        (vec!["db".to_owned()], NOW + 300)
    );
}

#[test]
fn j1_the_type_is_jwt_or_jose_or_absent_and_nothing_is_critical() {
    for good in [
        json!({"typ": "JOSE"}),
        json!({"typ": null}),
        json!({"unknown": 1}),
    ] {
        let mut header = header("ES256");
        header
            .as_object_mut()
            .unwrap()
            .extend(good.as_object().unwrap().clone());
        assert!(with(&header, &claims()).is_ok(), "{good}");
    }
    for bad in [
        json!({"typ": "at+jwt"}),
        json!({"typ": "jwt"}),
        json!({"crit": ["b64"]}),
    ] {
        let mut header = header("ES256");
        header
            .as_object_mut()
            .unwrap()
            .extend(bad.as_object().unwrap().clone());
        broken(with(&header, &claims()), "J-1");
    }
}

#[test]
fn j2_all_nine_algorithms_are_verified() {
    let signers: [(&str, Signer); 9] = [
        ("ES256", Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING)),
        ("ES384", Signer::ec(&ECDSA_P384_SHA384_FIXED_SIGNING)),
        ("ES512", Signer::ec(&ECDSA_P521_SHA512_FIXED_SIGNING)),
        ("RS256", Signer::rsa(&RSA_PKCS1_SHA256)),
        ("RS384", Signer::rsa(&RSA_PKCS1_SHA384)),
        ("RS512", Signer::rsa(&RSA_PKCS1_SHA512)),
        ("PS256", Signer::rsa(&RSA_PSS_SHA256)),
        ("PS384", Signer::rsa(&RSA_PSS_SHA384)),
        ("PS512", Signer::rsa(&RSA_PSS_SHA512)),
    ];
    for (name, signer) in &signers {
        let bundle = bundle(vec![signer.key()]);
        let token = signer.sign(&header(name), &claims());
        judge(&token, &bundle).unwrap_or_else(|error| panic!("{name}: {error}"));
        // The key is good for what it was made for, whatever the header says.
        for (other, _) in signers.iter().filter(|(other, _)| other != name) {
            let token = signer.sign(&header(other), &claims());
            let judged = judge(&token, &bundle);
            assert!(
                matches!(judged, Err(JwtError::Signature { .. })),
                "{name} as {other}"
            );
        }
    }
}

#[test]
fn j2_none_hmac_and_others_are_refused_before_anything_is_verified() {
    for alg in [
        "none", "None", "", "HS256", "HS384", "HS512", "EdDSA", "es256", "ES256K",
    ] {
        let judged = with(&header(alg), &claims());
        assert!(
            matches!(judged, Err(JwtError::Algorithm(_))),
            "{alg}: {judged:?}"
        );
        // Not even whose token it is has been looked at.
        let judged = with(&header(alg), &json!({}));
        assert!(
            matches!(judged, Err(JwtError::Algorithm(_))),
            "{alg}: {judged:?}"
        );
    }
    let unsigned = format!(
        "{}.{}.",
        BASE64URL_NOPAD.encode(header("none").to_string().as_bytes()),
        BASE64URL_NOPAD.encode(claims().to_string().as_bytes()),
    );
    let judged = judge(&unsigned, &bundle(vec![]));
    assert!(matches!(judged, Err(JwtError::Algorithm(_))));
}

#[test]
fn j3_the_subject_is_a_spiffe_id_of_a_domain_that_is_known() {
    for bad in [
        json!(null),
        json!(7),
        json!(""),
        json!("web"),
        json!("https://example.org/web"),
    ] {
        let mut claims = claims();
        claims["sub"] = bad;
        broken(with(&header("ES256"), &claims), "J-3");
    }
    let mut foreign = claims();
    foreign["sub"] = json!("spiffe://other.org/web");
    let judged = with(&header("ES256"), &foreign);
    assert_eq!(judged, Err(JwtError::TrustDomain("other.org".to_owned())));
}

#[test]
fn j3_the_audience_is_there_and_names_the_verifier() {
    for good in [json!("db"), json!(["db"]), json!(["x", "db"])] {
        let mut claims = claims();
        claims["aud"] = good;
        assert!(with(&header("ES256"), &claims).is_ok());
    }
    for bad in [
        json!(null),
        json!([]),
        json!(7),
        json!(["db", 7]),
        json!({"db": 1}),
    ] {
        let mut claims = claims();
        claims["aud"] = bad;
        broken(with(&header("ES256"), &claims), "J-3");
    }
    for other in [json!("web"), json!([""]), json!(["DB", "db "])] {
        let mut claims = claims();
        claims["aud"] = other;
        let judged = with(&header("ES256"), &claims);
        assert!(
            matches!(judged, Err(JwtError::Audience { .. })),
            "{judged:?}"
        );
    }
}

#[test]
fn j3_the_expiry_is_there_and_in_the_future() {
    let mut without = claims();
    without.as_object_mut().unwrap().remove("exp");
    broken(with(&header("ES256"), &without), "J-3");
    for (claim, at, good) in [
        ("exp", json!(NOW + 1), true),
        ("exp", json!(NOW as f64 + 0.5), true),
        ("exp", json!(NOW - LEEWAY + 1), true),
        ("exp", json!(NOW - LEEWAY), false),
        ("exp", json!(0), false),
        ("nbf", json!(NOW + LEEWAY), true),
        ("nbf", json!(NOW + LEEWAY + 1), false),
        ("iat", json!(NOW + LEEWAY + 1), false),
    ] {
        let mut claims = claims();
        claims[claim] = at.clone();
        let judged = with(&header("ES256"), &claims);
        assert_eq!(judged.is_ok(), good, "{claim} {at}: {judged:?}");
        assert!(good || matches!(judged, Err(JwtError::Time { .. })));
    }
    for bad in [json!("soon"), json!(-1), json!(1e300), json!([])] {
        let mut claims = claims();
        claims["exp"] = bad;
        let judged = with(&header("ES256"), &claims);
        assert!(matches!(judged, Err(JwtError::Malformed(_))), "{judged:?}");
    }
}

#[test]
fn j4_the_key_is_found_by_its_name_and_only_while_it_lives() {
    let signer = Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING);
    let token = signer.sign(&header("ES256"), &claims());
    let (key, other) = (
        signer.key(),
        Signer::ec(&ECDSA_P256_SHA256_FIXED_SIGNING).key(),
    );
    let named = |name: &str, until| JwtKey::new(name, &key.public_key(), until).unwrap();
    assert!(judge(&token, &bundle(vec![named("k1", 0)])).is_ok());
    assert!(judge(&token, &bundle(vec![named("k1", NOW * 1000)])).is_ok());
    for keys in [
        vec![],
        vec![named("k2", 0)],
        vec![named("k1", NOW * 1000 - 1)],
        // The right name for the wrong key.
        vec![other.clone(), named("k2", 0)],
    ] {
        let judged = judge(&token, &bundle(keys));
        assert!(
            matches!(judged, Err(JwtError::Signature { .. })),
            "{judged:?}"
        );
    }
    let nameless = signer.sign(&json!({"alg": "ES256"}), &claims());
    assert!(judge(&nameless, &bundle(vec![other, named("k2", 0)])).is_ok());
}

#[test]
fn j5_few_audiences_a_number_of_its_own_and_a_short_life() {
    let key = our_key(NOW + 1000);
    let (one, two) = (ours(&key, &["db"]).unwrap(), ours(&key, &["db"]).unwrap());
    assert_ne!(part(&one.token, 1)["jti"], part(&two.token, 1)["jti"]);
    assert_eq!(one.not_after, NOW + 300);
    assert_eq!(
        ours(&our_key(NOW + 60), &["db"]).unwrap().not_after,
        NOW + 60
    );
    assert!(
        ours(&our_key(NOW), &["db"]).is_err(),
        "a dead key signs nothing"
    );
    let (many, long) = (["db"; 17], "x".repeat(513));
    for bad in [&[][..], &[""], &["a\nb"], &many, &[long.as_str()]] {
        assert!(
            matches!(ours(&key, bad), Err(crate::Error::Invalid { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let empty = bundle(vec![]);
    let long = format!("{}.e30.", "A".repeat(MAX_TOKEN));
    for bad in [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "e30.e30.",
        "e30=.e30.e30",
        "W10.e30.e30",
        &long,
    ] {
        let judged = judge(bad, &empty);
        assert!(
            matches!(judged, Err(JwtError::Malformed(_))),
            "{bad:.20}: {judged:?}"
        );
    }
    let twice = BASE64URL_NOPAD.encode(br#"{"alg":"ES256","alg":"none"}"#);
    assert!(matches!(
        judge(&format!("{twice}.e30.e30"), &empty),
        Err(JwtError::Malformed(_))
    ));
}

proptest! {
    #[test]
    fn hostile_tokens_never_panic(token in "[A-Za-z0-9._=-]{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let empty = bundle(vec![]);
        prop_assert!(judge(&token, &empty).is_err());
        let part = BASE64URL_NOPAD.encode(&bytes);
        let token = format!("{part}.{part}.{part}");
        prop_assert!(judge(&token, &empty).is_err());
    }

    #[test]
    fn a_changed_character_never_passes(at: prop::sample::Index, other in "[A-Za-z0-9_-]") {
        let key = our_key(NOW + 1000);
        let token = ours(&key, &["db"]).unwrap().token;
        let published = JwtKey::new(key.key_id(), key.public_key(), 0).unwrap();
        let at = at.index(token.len());
        let mut damaged = token.clone();
        damaged.replace_range(at..=at, &other);
        prop_assume!(damaged != token);
        prop_assert!(judge(&damaged, &bundle(vec![published])).is_err());
    }
}
