//! Trust bundles: what a trust domain's certificates and tokens are verified with.
//!
//! A bundle is valid by having been made: every root is a CA certificate that
//! can be verified with, every JWT key a public key with a name. SPIFFE's JSON
//! form is read and written in [`spiffe`](self::spiffe_json), several bundles
//! at once in [`BundleMap`].

mod fingerprint;
mod jwt_key;
mod map;
mod public_key;
mod root;
mod spiffe_json;
#[cfg(test)]
mod tests;

use std::fmt;

use prost::Message;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spiffe::TrustDomain;

use crate::{Error, proto};

pub use self::fingerprint::{Fingerprint, pem, sha256};
pub use self::jwt_key::JwtKey;
pub use self::map::BundleMap;
pub use self::spiffe_json::{MAX_JSON, Read};

pub(crate) use self::public_key::{Curve, PublicKey};
use self::root::Root;

/// Roots of one bundle, and cross-signed certificates.
const MAX_ROOTS: usize = 64;
const MAX_JWT_KEYS: usize = 64;

/// How often a bundle is fetched that says nothing about it (SPIFFE B-3).
pub const DEFAULT_REFRESH_HINT: u64 = 300;

/// The roots and JWT keys of one trust domain. One without any root trusts
/// nobody: everything of that domain is revoked (SPIFFE B-1).
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Option<u64>,
    roots: Vec<Root>,
    cross_signed: Vec<CertificateDer<'static>>,
    jwt_keys: Vec<JwtKey>,
}

impl TrustBundle {
    /// A bundle of DER-encoded CA certificates.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Self, Error> {
        let read = roots.into_iter().take(MAX_ROOTS + 1).map(Root::read);
        let mut roots: Vec<Root> = Vec::new();
        for root in read {
            let root = root.map_err(|problem| invalid(format!("a root {problem}")))?;
            // The same one twice is one.
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        bounded("roots", roots.len(), MAX_ROOTS)?;
        Ok(Self {
            trust_domain,
            sequence,
            refresh_hint: None,
            roots,
            cross_signed: Vec::new(),
            jwt_keys: Vec::new(),
        })
    }

    /// The same with these JWT keys.
    pub fn with_jwt_keys(mut self, keys: Vec<JwtKey>) -> Result<Self, Error> {
        bounded("JWT keys", keys.len(), MAX_JWT_KEYS)?;
        for (at, key) in keys.iter().enumerate() {
            // Which of the two is meant would depend on who reads it.
            if keys
                .iter()
                .skip(at + 1)
                .any(|other| other.key_id() == key.key_id())
            {
                return Err(invalid(format!(
                    "two JWT keys are called {:?}",
                    key.key_id()
                )));
            }
        }
        self.jwt_keys = keys;
        Ok(self)
    }

    /// The same with these certificates of newer roots' keys that older roots
    /// have signed, so that who knows only the older ones can follow.
    pub fn with_cross_signed(mut self, certificates: Vec<Vec<u8>>) -> Result<Self, Error> {
        bounded("cross-signed certificates", certificates.len(), MAX_ROOTS)?;
        let read = certificates.into_iter().map(|der| {
            let der = CertificateDer::from(der);
            crate::verify::check_intermediate(&der, &self.trust_domain)
                .map_err(|rejection| invalid(format!("a cross-signed certificate: {rejection}")))?;
            Ok(der)
        });
        self.cross_signed = read.collect::<Result<_, Error>>()?;
        Ok(self)
    }

    /// The same with another number: the bundle has changed.
    pub fn with_sequence(mut self, sequence: u64) -> Self {
        self.sequence = sequence;
        self
    }

    /// The same with a wish how often it is fetched (seconds); zero is none.
    pub fn with_refresh_hint(mut self, seconds: u64) -> Self {
        self.refresh_hint = Some(seconds).filter(|seconds| *seconds > 0);
        self
    }

    /// Whose bundle this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Rises with every change (SPIFFE B-2); zero if the bundle did not say.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often it should be fetched, in seconds (SPIFFE B-3), if it says so.
    pub fn refresh_hint(&self) -> Option<u64> {
        self.refresh_hint
    }

    /// The CA certificates, DER.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().map(|root| &root.der)
    }

    /// Certificates of newer roots' keys, signed by older roots, DER.
    pub fn cross_signed(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.cross_signed.iter()
    }

    /// What JWT-SVIDs are verified with.
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The JWT key of that name.
    pub fn jwt_key(&self, key_id: &str) -> Option<&JwtKey> {
        self.jwt_keys.iter().find(|key| key.key_id() == key_id)
    }

    /// Does it hold nothing, so that nobody of the domain is trusted (B-1)?
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.jwt_keys.is_empty()
    }

    /// Do both hold the same keys, whatever their numbers?
    pub fn same_content(&self, other: &Self) -> bool {
        self.clone().with_sequence(0) == other.clone().with_sequence(0)
    }

    /// SHA-256 of each root, as join tokens name them.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.roots.iter().map(|root| Fingerprint::of(&root.der))
    }

    /// The roots that are valid at `now`: libraries accept expired anchors
    /// (SPIFFE.md), so they are left out here.
    pub(crate) fn anchors(&self, now: UnixTime) -> Vec<TrustAnchor<'_>> {
        let valid = self
            .roots
            .iter()
            .filter(|root| root.is_valid(now.as_secs()));
        valid.map(|root| root.anchor.clone()).collect()
    }

    /// For storing on disk; [`TrustBundle::from_bytes`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        proto::Bundle::from(self).encode_to_vec()
    }

    /// Reads what [`TrustBundle::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        proto::Bundle::decode(bytes)
            .map_err(|error| invalid(error.to_string()))?
            .try_into()
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        self.roots().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// Reads roots from PEM; what is not a certificate is skipped.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, Error> {
        if text.len() > MAX_JSON {
            return Err(invalid(format!("longer than {MAX_JSON} bytes")));
        }
        let certificates: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(text.as_bytes())
            .take(MAX_ROOTS + 1)
            .map(|der| der.map(|der| der.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(format!("not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(invalid("no certificate in PEM is in it"));
        }
        Self::new(trust_domain, 0, certificates)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots: Vec<String> = self.fingerprints().map(|print| print.to_string()).collect();
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("sequence", &self.sequence)
            .field("roots", &roots)
            .field("jwt_keys", &self.jwt_keys)
            .finish_non_exhaustive()
    }
}

impl From<&TrustBundle> for proto::Bundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().as_str().to_owned(),
            sequence: bundle.sequence(),
            roots: bundle.roots().map(|root| root.to_vec()).collect(),
            jwt_keys: bundle.jwt_keys().iter().map(proto::JwtKey::from).collect(),
            cross_signed: bundle.cross_signed().map(|der| der.to_vec()).collect(),
            refresh_hint_seconds: bundle.refresh_hint().unwrap_or(0),
        }
    }
}

impl TryFrom<proto::Bundle> for TrustBundle {
    type Error = Error;

    fn try_from(bundle: proto::Bundle) -> Result<Self, Error> {
        let trust_domain = crate::authority::trust_domain(&bundle.trust_domain)?;
        let keys = bundle.jwt_keys.into_iter().take(MAX_JWT_KEYS + 1);
        let keys = keys.map(JwtKey::try_from).collect::<Result<_, _>>()?;
        Ok(Self::new(trust_domain, bundle.sequence, bundle.roots)?
            .with_jwt_keys(keys)?
            .with_cross_signed(bundle.cross_signed)?
            .with_refresh_hint(bundle.refresh_hint_seconds))
    }
}

fn bounded(what: &str, count: usize, most: usize) -> Result<(), Error> {
    if count > most {
        return Err(invalid(format!("more than {most} {what}")));
    }
    Ok(())
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::invalid("trust bundle", problem)
}
