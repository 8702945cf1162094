//! Roots: made, taken in from outside, signed by their predecessors; and what they sign.

use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, Issuer, KeyIdMethod,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::issuing::validity;
use super::record::certificate_id;
use crate::certificate::profile::{self, Serial20, Validity};
use crate::certificate::{CsrKey, PrivateKey, Signer, Signing};
use crate::{Error, now_ms};

/// CA certificates are valid from so long before they were made (seconds): twice what clocks may differ.
const BACKDATE: u64 = 600;
const MAX_CERTIFICATE: usize = 8192;

/// A root's certificate, checked: a CA of this trust domain with a P-256 key.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    pub(crate) certificate: CertificateDer<'static>,
    /// Unix seconds.
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    /// As an uncompressed point.
    pub(crate) public_key: Vec<u8>,
}

impl Root {
    /// A new key and its self-signed certificate; `life` in seconds.
    pub(crate) fn make(trust_domain: &TrustDomain, life: u64) -> Result<(PrivateKey, Self), Error> {
        let key = PrivateKey::generate()?;
        let now = now_ms() / 1000;
        let validity = Validity {
            not_before: now.saturating_sub(BACKDATE),
            not_after: now.saturating_add(life),
        };
        let serial = Serial20::random();
        // No path length: a newer root signed by this one, and what that one signs, must fit below it.
        let params = profile::authority(trust_domain, "handfast root", None, validity, &serial)?;
        let certificate = params.self_signed(&Signing(&key))?;
        let root = Self::read(certificate.der(), trust_domain)?;
        Ok((key, root))
    }

    /// Reads a certificate that may be somebody else's work (DER).
    pub(crate) fn read(der: &[u8], trust_domain: &TrustDomain) -> Result<Self, Error> {
        let bad = |problem: String| Error::invalid("root certificate", problem);
        if der.len() > MAX_CERTIFICATE {
            return Err(bad(format!("is longer than {MAX_CERTIFICATE} bytes")));
        }
        let certificate = CertificateDer::from(der.to_vec());
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| bad(format!("is not a certificate: {error}")))?;
        if !rest.is_empty() {
            return Err(bad("has bytes after its end".to_owned()));
        }
        crate::verify::check_root(&parsed).map_err(|rejection| bad(rejection.to_string()))?;
        if let Some(other) = named(&parsed).filter(|other| other != trust_domain) {
            return Err(bad(format!("is that of the trust domain {other}")));
        }
        let constraints = parsed.basic_constraints().ok().flatten();
        if constraints.is_some_and(|found| found.value.path_len_constraint == Some(0)) {
            return Err(bad(
                "may sign leaves only (path length 0), but it has to sign issuing CAs".to_owned(),
            ));
        }
        let public_key = parsed.public_key().subject_public_key.data.to_vec();
        if public_key.len() != 65 || public_key.first() != Some(&4) {
            return Err(bad("its key is not ECDSA P-256".to_owned()));
        }
        let (not_before, not_after) = validity(&certificate)?;
        let now = now_ms() / 1000;
        if now > not_after {
            return Err(bad(format!(
                "expired {} s ago by this machine's clock",
                now - not_after
            )));
        }
        Ok(Self {
            certificate,
            not_before,
            not_after,
            public_key,
        })
    }

    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub(crate) fn id(&self) -> String {
        certificate_id(&self.certificate)
    }

    /// Is this the key of the certificate?
    pub(crate) fn check_key(&self, key: &PrivateKey) -> Result<(), Error> {
        if key.public_key() == self.public_key {
            Ok(())
        } else {
            Err(Error::invalid(
                "CA certificate",
                "the private key does not belong to it: nothing was changed",
            ))
        }
    }

    /// Signs a newer root's key, so that who knows only this one can follow.
    pub(crate) fn cross_sign(&self, key: PrivateKey, newer: &Self) -> Result<Vec<u8>, Error> {
        self.check_key(&key)?;
        let (_, theirs) = parse(&newer.certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(theirs.subject().iter_attributes())?;
        let ours = Validity {
            not_before: self.not_before.max(newer.not_before),
            not_after: self.not_after.min(newer.not_after),
        };
        profile::as_authority(&mut params, None, ours, &Serial20::random())?;
        if let Some(identifier) = key_identifier(&theirs) {
            params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
        }
        let public = SubjectPublicKeyInfo::from_der(theirs.public_key().raw)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, Signing(signer(key)))?;
        let cross = params.signed_by(&public, &issuer)?;
        let (_, made) = parse(cross.der())?;
        if made.subject().as_raw() != theirs.subject().as_raw() {
            return Err(Error::invalid(
                "root certificate",
                "its name is written in a way that no second certificate can repeat: it cannot be signed by the old root",
            ));
        }
        Ok(cross.der().to_vec())
    }

    /// Signs the key of an issuing CA; `life` in seconds, cut to this root's.
    pub(crate) fn sign_issuing(
        &self,
        key: PrivateKey,
        trust_domain: &TrustDomain,
        server: &str,
        public_key: &CsrKey,
        life: u64,
    ) -> Result<CertificateDer<'static>, Error> {
        self.check_key(&key)?;
        let now = now_ms() / 1000;
        let validity = Validity {
            // What it signs has times of its own. A clock that was ahead when
            // this was made and was set right must not make it invalid.
            not_before: self.not_before,
            not_after: now.saturating_add(life).min(self.not_after),
        };
        if now < self.not_before || now >= self.not_after {
            return Err(Error::invalid(
                "root",
                "it is not valid now by this machine's clock: is the clock right?",
            ));
        }
        let common = format!("handfast issuing {server}");
        let serial = Serial20::random();
        let params = profile::authority(trust_domain, &common, Some(0), validity, &serial)?;
        let public = SubjectPublicKeyInfo::from_der(public_key.spki())?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, Signing(signer(key)))?;
        Ok(params.signed_by(&public, &issuer)?.into())
    }

    /// Did this root sign the cross-signed certificate of that newer one?
    pub(crate) fn has_cross_signed(&self, newer: &Self, der: &[u8]) -> Result<bool, Error> {
        let (_, ours) = parse(&self.certificate)?;
        let (_, theirs) = parse(&newer.certificate)?;
        let (_, cross) = parse(der)?;
        Ok(cross.subject().as_raw() == theirs.subject().as_raw()
            && cross.public_key().raw == theirs.public_key().raw
            && cross.issuer().as_raw() == ours.subject().as_raw()
            && self.signed(der)?)
    }

    /// Is this certificate's signature by this root's key?
    pub(crate) fn signed(&self, der: &[u8]) -> Result<bool, Error> {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
        let (_, certificate) = parse(der)?;
        let signed = certificate.tbs_certificate.as_ref();
        Ok(
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key)
                .verify(signed, &certificate.signature_value.data)
                .is_ok(),
        )
    }
}

fn signer(key: PrivateKey) -> Arc<dyn Signer> {
    Arc::new(key)
}

fn parse(der: &[u8]) -> Result<(&[u8], X509Certificate<'_>), Error> {
    X509Certificate::from_der(der).map_err(|_| Error::invalid("certificate", "is not well-formed"))
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension;
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        })
}

/// The trust domain that a CA certificate names, if it names one.
pub(super) fn named(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some(SpiffeId::new(uri).ok()?.trust_domain().clone()),
            _ => None,
        })
}

/// The same name once more.
fn name<'a>(
    attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<DistinguishedName, Error> {
    use x509_parser::der_parser::asn1_rs::Tag;
    let mut name = DistinguishedName::new();
    for attribute in attributes {
        let bad = || Error::invalid("root certificate", "its name cannot be read");
        let kind: Vec<u64> = attribute.attr_type().iter().ok_or_else(bad)?.collect();
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| bad())?;
        let value = match value.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(Error::from)?),
            _ => return Err(bad()),
        };
        let kind = match kind.as_slice() {
            [2, 5, 4, 3] => DnType::CommonName,
            [2, 5, 4, 6] => DnType::CountryName,
            [2, 5, 4, 10] => DnType::OrganizationName,
            [2, 5, 4, 11] => DnType::OrganizationalUnitName,
            other => DnType::from_oid(other),
        };
        name.push(kind, value);
    }
    Ok(name)
}

/// The public key of a certificate, as a point.
pub(super) fn public_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("example.org").unwrap()
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_before_anything_is_signed() {
        let (_, root) = Root::make(&domain(), 3600).unwrap();
        let (other, newer) = Root::make(&domain(), 3600).unwrap();
        let error = root.cross_sign(other, &newer).unwrap_err().to_string();
        assert!(error.contains("does not belong"), "{error}");
    }

    #[test]
    fn a_cross_signed_root_is_the_new_one_under_the_old_one_and_no_longer_than_both() {
        let (old_key, old) = Root::make(&domain(), 1000).unwrap();
        let (_, new) = Root::make(&domain(), 9000).unwrap();
        let (_, stranger) = Root::make(&domain(), 9000).unwrap();
        let cross = old.cross_sign(old_key, &new).unwrap();
        assert!(old.has_cross_signed(&new, &cross).unwrap());
        assert!(!stranger.has_cross_signed(&new, &cross).unwrap());
        assert!(!old.has_cross_signed(&stranger, &cross).unwrap());
        let (_, until) = validity(&CertificateDer::from(cross)).unwrap();
        assert_eq!(until, old.not_after);
    }

    #[test]
    fn a_root_of_another_trust_domain_is_refused() {
        let (_, foreign) = Root::make(&TrustDomain::new("example.com").unwrap(), 3600).unwrap();
        assert!(Root::read(&foreign.certificate, &domain()).is_err());
    }
}
