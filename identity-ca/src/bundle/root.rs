//! One root of a bundle: a CA certificate that paths may end in.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::spiffe_json::root_key;

/// Bytes of one certificate: room for a root of RSA with 8192 bits.
const MAX_ROOT: usize = 16 << 10;

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    pub(super) anchor: TrustAnchor<'static>,
    /// Unix seconds.
    not_before: u64,
    not_after: u64,
}

impl Root {
    /// Reads a CA certificate; the error ends a sentence.
    pub(super) fn read(der: Vec<u8>) -> Result<Self, String> {
        if der.len() > MAX_ROOT {
            return Err("is too long".to_owned());
        }
        let der = CertificateDer::from(der);
        let (not_before, not_after) = {
            let (rest, certificate) =
                X509Certificate::from_der(&der).map_err(|_| "is not a certificate")?;
            if !rest.is_empty() {
                return Err("has bytes after its end".to_owned());
            }
            crate::verify::check_root(&certificate)
                .map_err(|rejection| format!("is no CA certificate: {rejection}"))?;
            if root_key(certificate.public_key()).is_none() {
                return Err("has a key of no kind that is verified here".to_owned());
            }
            let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
            let validity = certificate.validity();
            (
                seconds(validity.not_before.timestamp()),
                seconds(validity.not_after.timestamp()),
            )
        };
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| format!("cannot be verified with: {error}"))?
            .to_owned();
        Ok(Self {
            der,
            anchor,
            not_before,
            not_after,
        })
    }

    /// Is `now` (unix seconds) within its validity?
    pub(super) fn is_valid(&self, now: u64) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}
