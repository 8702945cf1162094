//! Trust bundles: the roots that a trust domain's certificates end in.

use std::fmt;

use prost::Message;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde_json::{Value, json};
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::{Error, proto};

const MAX_ROOTS: usize = 16;
const MAX_ROOT: usize = 8192;

/// The roots of one trust domain. Valid by having been made.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    roots: Vec<Root>,
}

#[derive(Clone, PartialEq, Eq)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: u64,
    not_after: u64,
}

impl TrustBundle {
    /// A bundle of DER-encoded CA certificates.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Self, Error> {
        let roots = roots
            .into_iter()
            .take(MAX_ROOTS + 1)
            .map(|der| Root::read(der, &trust_domain));
        let roots: Vec<Root> = roots.collect::<Result<_, _>>()?;
        if roots.len() > MAX_ROOTS {
            return Err(Error::invalid(
                "trust bundle",
                format!("more than {MAX_ROOTS} roots"),
            ));
        }
        Ok(Self {
            trust_domain,
            sequence,
            roots,
        })
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Rises with every change (SPIFFE B-2).
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The CA certificates, DER.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// SHA-256 of each root, as join tokens name them.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.roots.iter().map(|root| Fingerprint::of(&root.der))
    }

    /// The roots that are valid at `now`: libraries accept expired anchors
    /// (SPIFFE.md), so they are left out here.
    pub(crate) fn anchors(&self, now: UnixTime) -> Vec<TrustAnchor<'_>> {
        let now = now.as_secs();
        self.roots
            .iter()
            .filter(|root| root.not_before <= now && now <= root.not_after)
            .map(|root| root.anchor.clone())
            .collect()
    }

    /// For storing on disk; [`TrustBundle::from_bytes`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        proto::Bundle::from(self).encode_to_vec()
    }

    /// Reads what [`TrustBundle::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        proto::Bundle::decode(bytes)
            .map_err(|error| Error::invalid("trust bundle", error.to_string()))?
            .try_into()
    }

    /// The bundle in SPIFFE's JSON form (a JWK Set; X-10, B-1 to B-3).
    pub fn to_spiffe_json(&self) -> Value {
        let keys: Vec<Value> = self.roots.iter().filter_map(Root::to_jwk).collect();
        json!({ "keys": keys, "spiffe_sequence": self.sequence, "spiffe_refresh_hint": 300 })
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        self.roots
            .iter()
            .map(|root| pem("CERTIFICATE", &root.der))
            .collect()
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("sequence", &self.sequence)
            .field(
                "roots",
                &self
                    .fingerprints()
                    .map(|print| print.to_string())
                    .collect::<Vec<_>>(),
            )
            .finish()
    }
}

impl Root {
    fn read(der: Vec<u8>, trust_domain: &TrustDomain) -> Result<Self, Error> {
        let bad = |problem: &str| Error::invalid("trust bundle", format!("a root {problem}"));
        if der.len() > MAX_ROOT {
            return Err(bad("is too long"));
        }
        let der = CertificateDer::from(der);
        let (not_before, not_after) = {
            let (rest, certificate) =
                X509Certificate::from_der(&der).map_err(|_| bad("is not a certificate"))?;
            if !rest.is_empty() {
                return Err(bad("has bytes after its end"));
            }
            crate::verify::check_authority(&certificate, trust_domain)
                .map_err(|rejection| bad(&format!("is no CA certificate: {rejection}")))?;
            let validity = certificate.validity();
            let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
            (
                seconds(validity.not_before.timestamp()),
                seconds(validity.not_after.timestamp()),
            )
        };
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| bad(&error.to_string()))?
            .to_owned();
        Ok(Self {
            der,
            anchor,
            not_before,
            not_after,
        })
    }

    fn to_jwk(&self) -> Option<Value> {
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        let point = certificate.public_key().subject_public_key.data.as_ref();
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
        use data_encoding::{BASE64, BASE64URL_NOPAD};
        Some(json!({
            "use": "x509-svid", "kty": "EC", "crv": "P-256",
            "x": BASE64URL_NOPAD.encode(x), "y": BASE64URL_NOPAD.encode(y),
            "x5c": [BASE64.encode(&self.der)],
        }))
    }
}

/// SHA-256 of a certificate's DER; written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of `der`.
    pub fn of(der: &[u8]) -> Self {
        Self(sha256(der))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text
            .strip_prefix("sha256:")
            .and_then(|digits| {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(digits.as_bytes())
                    .ok()
            })
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::invalid("fingerprint", "write sha256: and 64 hexadecimal digits"))
    }
}

/// SHA-256 of a certificate's DER, as proofs and announcements name it.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hash = [0; 32];
    hash.iter_mut()
        .zip(digest.as_ref())
        .for_each(|(to, from)| *to = *from);
    hash
}

/// PEM (RFC 7468). Of a private key nothing is left behind but the text, which the caller wipes.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(data_encoding::BASE64.encode(der));
    // Room for all of it at once: a text that grows leaves copies.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while let Some((line, more)) = rest.split_at_checked(64) {
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
