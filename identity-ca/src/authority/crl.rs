//! Revocation lists (RFC 5280 section 5) for those who check SVIDs without handfast.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;

use super::{Authority, BACKDATE};
use crate::model::Serial;
use crate::{Error, now_ms};

/// Seconds after which a list that was not replaced is stale. New ones come
/// with every change and at least every hour; this is for a CA that is away.
const LIFE: u64 = 24 * 3600;

impl Authority {
    /// A list, DER, by the issuing CA that signs now: which of its
    /// certificates are revoked, since when (unix milliseconds).
    pub(crate) fn sign_crl(
        &self,
        number: u64,
        revoked: &[(Serial, u64)],
    ) -> Result<Vec<u8>, Error> {
        let now = now_ms() / 1000;
        let revoked_certs = revoked.iter().map(|(serial, since_ms)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.as_bytes()),
                revocation_time: moment(since_ms / 1000)?,
                reason_code: Some(RevocationReason::Unspecified),
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: moment(now.saturating_sub(BACKDATE))?,
            next_update: moment(now + LIFE)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, Error>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuing = self.issuing()?;
        Ok(params.signed_by(&issuing.issuer)?.der().to_vec())
    }
}

fn moment(seconds: u64) -> Result<OffsetDateTime, Error> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| Error::invalid("time", "it is beyond what a certificate can say"))
}
