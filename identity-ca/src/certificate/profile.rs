//! What each kind of certificate says: filled in by the CA from its registry alone.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber,
};
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;

use super::{NODE_BINDING, NodeBinding, PROOF_BINDING, PROOF_USAGE, ProofBinding};
use crate::Error;
use crate::model::Serial;

/// From when until when, in unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
}

/// What a leaf certificate is for.
#[derive(Debug, Clone)]
pub(crate) enum Profile<'a> {
    /// Sessions between nodes: SPIFFE with the node's binding.
    Node(&'a NodeBinding),
    /// Proofs in sessions: nobody can take it for a TLS certificate.
    Proof(&'a ProofBinding),
    /// The Workload API's: SPIFFE and nothing else.
    Workload {
        /// DNS names beside the SPIFFE ID.
        dns_names: &'a [String],
    },
}

/// A leaf certificate, but for its key and issuer.
pub(crate) fn leaf(
    id: &SpiffeId,
    profile: &Profile<'_>,
    validity: Validity,
    serial: &Serial20,
) -> Result<CertificateParams, Error> {
    let mut params = common(validity, serial)?;
    params.subject_alt_names.push(uri(&id.to_string())?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let tls = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    match profile {
        Profile::Node(binding) => {
            params.extended_key_usages = tls;
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(
                    NODE_BINDING,
                    binding.encode(),
                ));
        }
        Profile::Proof(binding) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(PROOF_USAGE.to_vec())];
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(
                    PROOF_BINDING,
                    binding.encode(),
                ));
        }
        Profile::Workload { dns_names } => {
            params.extended_key_usages = tls;
            for name in *dns_names {
                let name = name.as_str().try_into().map_err(Error::from)?;
                params.subject_alt_names.push(SanType::DnsName(name));
            }
        }
    }
    Ok(params)
}

/// A CA certificate: root (no `path_len`, since newer roots stand below older
/// ones) or issuing (0). Its subject carries a serial number, since some
/// verifiers try every CA of an equal subject (SPIFFE.md).
pub(crate) fn authority(
    trust_domain: &TrustDomain,
    common_name: &str,
    path_len: Option<u8>,
    validity: Validity,
    serial: &Serial20,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain.as_str());
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let subject_serial = Serial::from_bytes(&serial.0).to_string();
    let subject_serial = DnValue::PrintableString(subject_serial.try_into().map_err(Error::from)?);
    params
        .distinguished_name
        .push(DnType::from_oid(SERIAL_NUMBER), subject_serial);
    params
        .subject_alt_names
        .push(uri(&trust_domain.id_string())?);
    as_authority(&mut params, path_len, validity, serial)?;
    Ok(params)
}

/// What makes a certificate a CA's, whoever it names.
pub(crate) fn as_authority(
    params: &mut CertificateParams,
    path_len: Option<u8>,
    validity: Validity,
    serial: &Serial20,
) -> Result<(), Error> {
    fill(params, validity, serial)?;
    params.is_ca = IsCa::Ca(path_len.map_or(
        BasicConstraints::Unconstrained,
        BasicConstraints::Constrained,
    ));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(())
}

/// X.520 serialNumber.
const SERIAL_NUMBER: &[u64] = &[2, 5, 4, 5];

/// A random certificate serial number: positive, 20 octets at most (RFC 5280
/// 4.1.2.2), far more than 64 bits of it random.
#[derive(Debug, Clone)]
pub(crate) struct Serial20([u8; 20]);

impl Serial20 {
    pub(crate) fn random() -> Self {
        let mut bytes: [u8; 20] = rand::random();
        // The highest bit makes a number negative; the next keeps its length fixed.
        if let Some(first) = bytes.first_mut() {
            *first = (*first & 0x7f) | 0x40;
        }
        Self(bytes)
    }

    pub(crate) fn as_serial(&self) -> Serial {
        Serial::from_bytes(&self.0)
    }
}

fn common(validity: Validity, serial: &Serial20) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    fill(&mut params, validity, serial)?;
    Ok(params)
}

fn fill(
    params: &mut CertificateParams,
    validity: Validity,
    serial: &Serial20,
) -> Result<(), Error> {
    params.not_before = moment(validity.not_before)?;
    params.not_after = moment(validity.not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    Ok(())
}

fn moment(seconds: u64) -> Result<OffsetDateTime, Error> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| Error::invalid("time", format!("{seconds} s since 1970 is out of range")))
}

fn uri(id: &str) -> Result<SanType, Error> {
    Ok(SanType::URI(id.try_into().map_err(Error::from)?))
}
