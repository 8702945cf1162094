//! Public keys between X.509's form (SubjectPublicKeyInfo) and JOSE's (JWK, RFC 7518 section 6).

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;
use yasna::models::ObjectIdentifier;

const MAX_SPKI: usize = 4096;
/// Bits of an RSA modulus that are verified with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// id-ecPublicKey, RFC 5480 2.1.1.
const EC_PUBLIC_KEY: &[u64] = &[1, 2, 840, 10045, 2, 1];

/// A key that signatures can be verified with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PublicKey {
    /// An uncompressed point of a curve.
    Ec { curve: Curve, point: Vec<u8> },
    /// Big-endian, without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

/// The curves of ES256, ES384 and ES512.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// Name in a JWK, OID, bytes of a coordinate.
    fn facts(self) -> (&'static str, &'static [u64], usize) {
        match self {
            Self::P256 => ("P-256", &[1, 2, 840, 10045, 3, 1, 7], 32),
            Self::P384 => ("P-384", &[1, 3, 132, 0, 34], 48),
            Self::P521 => ("P-521", &[1, 3, 132, 0, 35], 66),
        }
    }

    /// Signatures in the form of JWS: r and s beside each other.
    pub(crate) fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo (DER); none if it is of no kind that is known here.
    pub(crate) fn from_spki(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_SPKI {
            return None;
        }
        let (rest, spki) = SubjectPublicKeyInfo::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        match spki.parsed().ok()? {
            Parsed::EC(_) => {
                let named = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
                let curve = if named == OID_EC_P256 {
                    Curve::P256
                } else if named == OID_NIST_EC_P384 {
                    Curve::P384
                } else if named == OID_NIST_EC_P521 {
                    Curve::P521
                } else {
                    return None;
                };
                Self::ec(curve, spki.subject_public_key.data.to_vec())
            }
            Parsed::RSA(key) => Self::rsa(key.modulus, key.exponent),
            _ => None,
        }
    }

    /// As SubjectPublicKeyInfo (DER).
    pub(crate) fn to_spki(&self) -> Vec<u8> {
        match self {
            Self::Ec { curve, point } => yasna::construct_der(|writer| {
                writer.write_sequence(|writer| {
                    writer.next().write_sequence(|writer| {
                        for oid in [EC_PUBLIC_KEY, curve.facts().1] {
                            writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
                        }
                    });
                    writer.next().write_bitvec_bytes(point, point.len() * 8);
                });
            }),
            // Made once already, by the constructor.
            Self::Rsa { n, e } => rsa_spki(n, e).unwrap_or_default(),
        }
    }

    /// Reads the key of a JWK; none if its `kty` or curve is not known here
    /// (SPIFFE B-4) or the key is not well-formed.
    pub(crate) fn from_jwk(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| {
            let text = text(name).filter(|text| text.len() <= MAX_SPKI)?;
            BASE64URL_NOPAD.decode(text.as_bytes()).ok()
        };
        match text("kty")? {
            "EC" => {
                let named = text("crv")?;
                let curve = Curve::ALL
                    .into_iter()
                    .find(|curve| curve.facts().0 == named)?;
                let size = curve.facts().2;
                let (x, y) = (bytes("x")?, bytes("y")?);
                // RFC 7518 6.2.1.2: always the full size.
                (x.len() == size && y.len() == size).then_some(())?;
                Self::ec(curve, [vec![4], x, y].concat())
            }
            "RSA" => Self::rsa(&bytes("n")?, &bytes("e")?),
            _ => None,
        }
    }

    /// The members of a JWK that describe the key.
    pub(crate) fn to_jwk(&self) -> Map<String, Value> {
        let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let jwk = match self {
            Self::Ec { curve, point } => {
                let (crv, _, size) = curve.facts();
                let (x, y) = point
                    .get(1..)
                    .unwrap_or_default()
                    .split_at_checked(size)
                    .unwrap_or_default();
                json!({ "kty": "EC", "crv": crv, "x": text(x), "y": text(y) })
            }
            Self::Rsa { n, e } => json!({ "kty": "RSA", "n": text(n), "e": text(e) }),
        };
        match jwk {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }

    /// The library says whether the point is one of the curve.
    fn ec(curve: Curve, point: Vec<u8>) -> Option<Self> {
        let uncompressed = point.first() == Some(&4) && point.len() == 2 * curve.facts().2 + 1;
        let known = match curve {
            Curve::P256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point),
            Curve::P384 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &point),
            Curve::P521 => ParsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, &point),
        };
        (uncompressed && known.is_ok()).then_some(Self::Ec { curve, point })
    }

    fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let stripped = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .iter()
                .copied()
                .skip_while(|byte| *byte == 0)
                .collect()
        };
        let (n, e) = (stripped(n), stripped(e));
        let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
        // An exponent of 1 would make every signature its own message.
        let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
        let exponent = odd(&e) && e.as_slice() != [1] && e.len() <= 5;
        (RSA_BITS.contains(&bits) && odd(&n) && exponent).then_some(())?;
        rsa_spki(&n, &e)?;
        Some(Self::Rsa { n, e })
    }
}

fn rsa_spki(n: &[u8], e: &[u8]) -> Option<Vec<u8>> {
    let der = RsaPublicKeyComponents { n, e }.as_der().ok()?;
    Some(der.as_ref().to_vec())
}
