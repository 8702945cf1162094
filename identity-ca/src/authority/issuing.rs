//! The issuing CA: a short-lived certificate under the root, with its own key.

use std::sync::Arc;

use rcgen::Issuer;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::OwnIssuer;
use crate::Error;
use crate::certificate::{PrivateKey, Signer, Signing};

pub(super) struct Issuing {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) issuer: OwnIssuer,
    /// Unix seconds.
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

impl Issuing {
    /// A certificate with its key.
    pub(super) fn new(
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
        let signer: Arc<dyn Signer> = Arc::new(key);
        let issuer = Issuer::from_ca_cert_der(&certificate, Signing(signer))?;
        Ok(Self {
            certificate,
            issuer,
            not_before,
            not_after,
        })
    }

    /// A clock that jumped would sign what nobody accepts.
    pub(super) fn check_time(&self, now: u64) -> Result<(), Error> {
        let problem = if now < self.not_before {
            "is not valid yet"
        } else if now >= self.not_after {
            "has expired"
        } else {
            return Ok(());
        };
        Err(Error::NotSigning(format!(
            "by this machine's clock ({now} s since 1970) the issuing CA {problem}; is the clock right?"
        )))
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
