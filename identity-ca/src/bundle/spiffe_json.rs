//! Bundles in SPIFFE's JSON form: a JWK Set (SPIFFE Trust Domain and Bundle, section 4).
//!
//! A key that is of no use to us is left out, and the reader is told why; the
//! rest of the bundle counts all the same (RFC 7517 section 5, B-4, X-11).

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use spiffe::TrustDomain;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::public_key::PublicKey;
use super::root::Root;
use super::{DEFAULT_REFRESH_HINT, JwtKey, TrustBundle, invalid};
use crate::Error;

/// Longer texts are not read.
pub const MAX_JSON: usize = 1 << 20;
const MAX_KEYS: usize = 256;
/// A hint beyond this (seconds) is taken for this: a day.
const MAX_REFRESH_HINT: u64 = 24 * 3600;

/// A bundle that was read, and what of it was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The bundle.
    pub bundle: TrustBundle,
    /// For each key that is ignored, which and why.
    pub ignored: Vec<String>,
}

/// Unknown members are skipped; a known one twice is an error.
#[derive(Deserialize)]
pub(super) struct Document {
    keys: Vec<Value>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

impl TrustBundle {
    /// Reads SPIFFE's JSON form. `trust_domain` says whose it is: the text
    /// does not (B-5).
    pub fn from_spiffe_json(trust_domain: TrustDomain, text: &[u8]) -> Result<Read, Error> {
        if text.len() > MAX_JSON {
            return Err(invalid(format!("longer than {MAX_JSON} bytes")));
        }
        let document: Document = serde_json::from_slice(text)
            .map_err(|error| invalid(format!("not a SPIFFE bundle: {error}")))?;
        document.read(trust_domain)
    }

    /// The bundle in SPIFFE's JSON form (X-10, J-4, B-1 to B-3).
    pub fn to_spiffe_json(&self) -> Value {
        let roots = self.roots.iter().filter_map(root_to_jwk);
        let keys: Vec<Value> = roots.chain(self.jwt_keys.iter().map(to_jwk)).collect();
        let hint = self.refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT);
        json!({ "keys": keys, "spiffe_sequence": self.sequence, "spiffe_refresh_hint": hint })
    }

    /// The JWT keys alone, as a JWK Set: what the Workload API's JWT bundles
    /// are (W-11).
    pub fn jwt_jwks(&self) -> Value {
        let keys: Vec<Value> = self.jwt_keys.iter().map(to_jwk).collect();
        json!({ "keys": keys })
    }
}

impl Document {
    pub(super) fn read(self, trust_domain: TrustDomain) -> Result<Read, Error> {
        if self.keys.len() > MAX_KEYS {
            return Err(invalid(format!("more than {MAX_KEYS} keys")));
        }
        let (mut roots, mut jwt_keys, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        for (at, jwk) in self.keys.into_iter().enumerate() {
            match Key::read(jwk) {
                Ok(Key::Root(der)) => roots.push(der),
                Ok(Key::Jwt(key)) => jwt_keys.push(key),
                Err(why) => ignored.push(format!("key {} {why}", at + 1)),
            }
        }
        let hint = self.spiffe_refresh_hint.unwrap_or(0).min(MAX_REFRESH_HINT);
        let bundle = TrustBundle::new(trust_domain, self.spiffe_sequence.unwrap_or(0), roots)?
            .with_jwt_keys(jwt_keys)?
            .with_refresh_hint(hint);
        Ok(Read { bundle, ignored })
    }
}

enum Key {
    Root(Vec<u8>),
    Jwt(JwtKey),
}

impl Key {
    /// Why a key is of no use ends the sentence "key 3 …".
    fn read(jwk: Value) -> Result<Self, String> {
        let Value::Object(jwk) = jwk else {
            return Err("is not an object".to_owned());
        };
        // Anything else under `kty` may mean something that we do not know (B-4).
        let kind = jwk.get("kty").and_then(Value::as_str);
        if !matches!(kind, Some("EC" | "RSA" | "OKP")) {
            return Err("has a kty that is not known here".to_owned());
        }
        match jwk.get("use").and_then(Value::as_str) {
            Some("x509-svid") => Self::root(&jwk),
            Some("jwt-svid") => {
                let id = jwk.get("kid").and_then(Value::as_str);
                let id = id.ok_or("is for JWT-SVIDs and has no kid")?;
                let key = PublicKey::from_jwk(&jwk)
                    .ok_or("is not well-formed, or of no kind that is verified here")?;
                JwtKey::of(id.to_owned(), key, 0).map(Self::Jwt)
            }
            Some(_) => Err("has a use that is not known here".to_owned()),
            None => Err("has no use".to_owned()),
        }
    }

    /// the first certificate counts, whatever follows it.
    fn root(jwk: &Map<String, Value>) -> Result<Self, String> {
        let first = jwk
            .get("x5c")
            .and_then(Value::as_array)
            .and_then(|x5c| x5c.first());
        let first = first
            .and_then(Value::as_str)
            .ok_or("has no certificate in x5c")?;
        let der = BASE64
            .decode(first.as_bytes())
            .map_err(|_| "has an x5c that is not base64")?;
        Root::read(der.clone())?;
        Ok(Self::Root(der))
    }
}

fn to_jwk(key: &JwtKey) -> Value {
    let mut jwk = key.key().to_jwk();
    jwk.insert("use".to_owned(), "jwt-svid".into());
    jwk.insert("kid".to_owned(), key.key_id().into());
    Value::Object(jwk)
}

fn root_to_jwk(root: &Root) -> Option<Value> {
    let (_, certificate) = X509Certificate::from_der(&root.der).ok()?;
    let mut jwk = root_key(certificate.public_key())?;
    jwk.insert("use".to_owned(), "x509-svid".into());
    jwk.insert("x5c".to_owned(), json!([BASE64.encode(&root.der)]));
    Some(Value::Object(jwk))
}

/// The key of a root as the members of a JWK; none if it is of no kind that is
/// verified here, or no key at all.
pub(super) fn root_key(spki: &SubjectPublicKeyInfo<'_>) -> Option<Map<String, Value>> {
    if let Some(key) = PublicKey::from_spki(spki.raw) {
        return Some(key.to_jwk());
    }
    // RFC 8037 section 2.
    let key = spki.subject_public_key.data.as_ref();
    (spki.algorithm.algorithm == OID_SIG_ED25519 && key.len() == 32).then_some(())?;
    let x = BASE64URL_NOPAD.encode(key);
    match json!({ "kty": "OKP", "crv": "Ed25519", "x": x }) {
        Value::Object(jwk) => Some(jwk),
        _ => None,
    }
}
