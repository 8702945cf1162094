//! The issuing CA: a short-lived certificate under the root, with its own key.

use std::sync::Arc;

use rcgen::Issuer;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{BACKDATE, OwnIssuer};
use crate::certificate::profile::{self, Serial20, Validity};
use crate::certificate::{PrivateKey, Signer, Signing};
use crate::{Error, now_ms};

pub(super) struct Issuing {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) issuer: OwnIssuer,
    /// Unix seconds.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl Issuing {
    /// A new one under the root.
    pub(super) fn make(
        trust_domain: &TrustDomain,
        root: &CertificateDer<'static>,
        root_key: &Arc<dyn Signer>,
        life: u64,
    ) -> Result<Self, Error> {
        let key = PrivateKey::generate()?;
        let now = now_ms() / 1000;
        let (root_from, root_until) = validity(root)?;
        let validity = Validity {
            not_before: now.saturating_sub(BACKDATE).max(root_from),
            not_after: (now + life).min(root_until),
        };
        let serial = Serial20::random();
        let params = profile::authority(trust_domain, "handfast issuing", 0, validity, &serial)?;
        let issuer = Issuer::from_ca_cert_der(root, Signing(Arc::clone(root_key)))?;
        let certificate = params.signed_by(&Signing(&key), &issuer)?.into();
        Self::from_parts(certificate, key)
    }

    pub(super) fn from_parts(
        certificate: CertificateDer<'static>,
        key: PrivateKey,
    ) -> Result<Self, Error> {
        let (not_before, not_after) = validity(&certificate)?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| Error::Crypto("the issuing CA's certificate is malformed".to_owned()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key() {
            return Err(Error::Crypto(
                "the issuing CA's key and certificate do not match".to_owned(),
            ));
        }
        let pkcs8 = key.to_pkcs8();
        let signer: Arc<dyn Signer> = Arc::new(key);
        let issuer = Issuer::from_ca_cert_der(&certificate, Signing(signer))?;
        Ok(Self {
            certificate,
            issuer,
            not_before,
            not_after,
            pkcs8,
        })
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// From when until when, in unix seconds.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<(u64, u64), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::Crypto("a CA certificate is malformed".to_owned()))?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = parsed.validity();
    Ok((
        seconds(validity.not_before.timestamp()),
        seconds(validity.not_after.timestamp()),
    ))
}
