//! SPIFFE's rules, which path validation alone does not check.

use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use webpki::KeyPurposeId;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::Oid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::Rejection;
use crate::certificate::{NODE_BINDING, PROOF_BINDING, PROOF_USAGE, oid_content};
use crate::model::Serial;

/// What a leaf's key is going to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// As TLS client and server.
    Tls,
    /// In proofs, and never in TLS.
    Proof,
}

impl Usage {
    /// Is this one of the usages that we need?
    pub(super) fn names(self, usage: &KeyPurposeId<'_>) -> bool {
        // id-kp-serverAuth and id-kp-clientAuth, RFC 5280 4.2.1.12.
        const SERVER: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
        const CLIENT: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
        match self {
            Self::Tls => [SERVER, CLIENT]
                .iter()
                .any(|oid| *usage == KeyPurposeId::new(oid)),
            Self::Proof => *usage == KeyPurposeId::new(&oid_content(PROOF_USAGE)),
        }
    }
}

/// A leaf certificate that keeps SPIFFE's rules. Nothing is proven by it until
/// the path is validated.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    pub(super) serial: Serial,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    pub(super) node_binding: Option<Vec<u8>>,
    pub(super) proof_binding: Option<Vec<u8>>,
}

impl Leaf {
    pub(super) fn read(
        der: &CertificateDer<'_>,
        trust_domain: &TrustDomain,
        usage: Usage,
    ) -> Result<Self, Rejection> {
        let certificate = parse(der)?;
        let id = leaf_id(&certificate)?;
        if !id.is_member_of(trust_domain) {
            return Err(Rejection::TrustDomain(id.trust_domain().to_string()));
        }
        leaf_is_no_authority(&certificate)?;
        leaf_usage(&certificate, usage)?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Ok(Self {
            id,
            serial: Serial::from_bytes(certificate.raw_serial()),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            node_binding: private(&certificate, NODE_BINDING)?,
            proof_binding: private(&certificate, PROOF_BINDING)?,
        })
    }

    pub(super) fn check_time(&self, now: UnixTime) -> Result<(), Rejection> {
        let (not_before, not_after, now) = (self.not_before, self.not_after, now.as_secs());
        if now < not_before || now > not_after {
            return Err(Rejection::Time {
                not_before,
                not_after,
                now,
            });
        }
        Ok(())
    }
}

/// Whose SVID a leaf claims to be; nothing is proven by it.
pub(super) fn trust_domain_of(der: &CertificateDer<'_>) -> Result<TrustDomain, Rejection> {
    if der.len() > super::MAX_CERTIFICATE {
        return Err(Rejection::Chain(1));
    }
    Ok(leaf_id(&parse(der)?)?.trust_domain().clone())
}

/// X-1 one URI SAN, X-2 a path, X-3 critical without a subject.
fn leaf_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Rejection> {
    let x1 = |problem| Rejection::Spiffe {
        rule: "X-1",
        problem,
    };
    let san = certificate
        .subject_alternative_name()
        .map_err(|_| x1("its subject alternative names are malformed"))?
        .ok_or(x1("it has no subject alternative name"))?;
    let mut uris = san
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let uri = match (uris.next(), uris.next()) {
        (Some(uri), None) => uri,
        (None, _) => return Err(x1("it has no URI among its names")),
        (Some(_), Some(_)) => return Err(x1("it has more than one URI among its names")),
    };
    let id = SpiffeId::new(uri).map_err(|_| x1("its URI is not a SPIFFE ID"))?;
    if id.path().is_empty() {
        return Err(Rejection::Spiffe {
            rule: "X-2",
            problem: "its SPIFFE ID has no path",
        });
    }
    if certificate.subject().iter().next().is_none() && !san.critical {
        return Err(Rejection::Spiffe {
            rule: "X-3",
            problem: "it has no subject, and its alternative names are not critical",
        });
    }
    Ok(id)
}

/// a signing certificate is never a peer.
fn leaf_is_no_authority(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| Rejection::Malformed)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(Rejection::Spiffe {
            rule: "X-4",
            problem: "it is a CA certificate",
        });
    }
    let x5 = |problem| Rejection::Spiffe {
        rule: "X-5",
        problem,
    };
    let usage = certificate
        .key_usage()
        .map_err(|_| x5("its key usage is malformed"))?
        .ok_or(x5("it has no key usage"))?;
    if !usage.critical {
        return Err(x5("its key usage is not critical"));
    }
    if !usage.value.digital_signature() {
        return Err(x5("its key may not sign"));
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(x5("its key may sign certificates"));
    }
    Ok(())
}

/// X-6 for TLS: both, if anything. For proofs: ours, and nothing else.
fn leaf_usage(certificate: &X509Certificate<'_>, usage: Usage) -> Result<(), Rejection> {
    let x6 = |problem| Rejection::Spiffe {
        rule: "X-6",
        problem,
    };
    let extended = certificate
        .extended_key_usage()
        .map_err(|_| x6("its extended key usage is malformed"))?
        .map(|extension| extension.value);
    match (usage, extended) {
        (Usage::Tls, None) => Ok(()),
        (Usage::Tls, Some(usages)) if usages.server_auth && usages.client_auth => Ok(()),
        (Usage::Tls, Some(_)) => Err(x6("its extended key usage is not both server and client")),
        (Usage::Proof, Some(usages)) => {
            let standard = usages.any
                || usages.server_auth
                || usages.client_auth
                || usages.code_signing
                || usages.email_protection
                || usages.time_stamping
                || usages.ocsp_signing;
            let expected = oid_content(PROOF_USAGE);
            let ours = matches!(usages.other.as_slice(), [only] if only.as_bytes() == expected);
            if ours && !standard {
                Ok(())
            } else {
                Err(NOT_PROOF)
            }
        }
        (Usage::Proof, None) => Err(NOT_PROOF),
    }
}

const NOT_PROOF: Rejection = Rejection::Kind {
    expected: "proof SVID",
    problem: "its extended key usage is not that of proofs alone",
};

fn private(certificate: &X509Certificate<'_>, oid: &[u64]) -> Result<Option<Vec<u8>>, Rejection> {
    let content = oid_content(oid);
    let extension = certificate
        .get_extension_unique(&Oid::new(content.into()))
        .map_err(|_| Rejection::Malformed)?;
    Ok(extension.map(|extension| extension.value.to_vec()))
}

/// A signing certificate below a root; its serial number.
pub(crate) fn check_intermediate(
    der: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<Serial, Rejection> {
    let certificate = parse(der)?;
    check_authority(&certificate, trust_domain)?;
    Ok(Serial::from_bytes(certificate.raw_serial()))
}

/// for a root of a bundle. One that is no SVID itself (it
/// names no SPIFFE ID) comes from any PKI: those often carry no key usage. What
/// a root calls itself proves nothing, so its trust domain may be another.
pub(crate) fn check_root(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    is_authority(certificate)?;
    let id = authority_id(certificate)?;
    match certificate.key_usage() {
        Ok(None) if id.is_none() => Ok(()),
        _ => may_sign_certificates(certificate),
    }
}

/// for signing certificates below the root.
fn check_authority(
    certificate: &X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), Rejection> {
    is_authority(certificate)?;
    may_sign_certificates(certificate)?;
    match authority_id(certificate)? {
        Some(other) if other != *trust_domain => Err(Rejection::TrustDomain(other.to_string())),
        _ => Ok(()),
    }
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| Rejection::Malformed)?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(Rejection::Spiffe {
            rule: "X-4",
            problem: "an issuer is not a CA",
        });
    }
    Ok(())
}

fn may_sign_certificates(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    match certificate.key_usage() {
        Ok(Some(usage)) if usage.critical && usage.value.key_cert_sign() => Ok(()),
        _ => Err(Rejection::Spiffe {
            rule: "X-5",
            problem: "an issuer's key may not sign certificates",
        }),
    }
}

/// the trust domain that an authority names, if it names one.
fn authority_id(certificate: &X509Certificate<'_>) -> Result<Option<TrustDomain>, Rejection> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Rejection::Malformed)?;
    let mut named = None;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        let GeneralName::URI(uri) = name else {
            continue;
        };
        let id = SpiffeId::new(uri).map_err(|_| Rejection::Malformed)?;
        if !id.path().is_empty() {
            return Err(Rejection::Spiffe {
                rule: "X-2",
                problem: "an issuer's ID has a path",
            });
        }
        if named.replace(id.trust_domain().clone()).is_some() {
            return Err(Rejection::Spiffe {
                rule: "X-1",
                problem: "an issuer has more than one URI among its names",
            });
        }
    }
    Ok(named)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Rejection> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Rejection::Malformed),
    }
}
