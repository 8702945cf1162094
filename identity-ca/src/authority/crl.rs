//! Revocation lists (RFC 5280 section 5) for those who check SVIDs without handfast.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::issuing::Issuing;
use super::{Authority, BACKDATE, Kind, Standing, certificate_id};
use crate::model::Serial;
use crate::{Error, now_ms};

/// Seconds after which a list that was not replaced is stale: as long as an SVID may live. New ones come with every
/// change and at least every hour; this is for a CA that is away, and for an issuing CA that signs no more.
const LIFE: u64 = 24 * 3600;

/// The list of one issuing CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crl {
    /// SHA-256 of its certificate, in lower-case hexadecimal.
    pub(crate) issuer: String,
    pub(crate) number: u64,
    /// Unix milliseconds.
    pub(crate) ends_ms: u64,
    pub(crate) der: Vec<u8>,
}

impl Authority {
    /// The issuing CAs whose lists this server makes: what signs now, first, and what has been superseded and whose
    /// key is still here.
    pub(crate) fn list_signers(&self) -> Vec<String> {
        let present = self.issuing().ok();
        let present = present.map(|issuing| certificate_id(&issuing.certificate));
        let authorities = self.authorities();
        let superseded = authorities
            .of(Kind::Issuing, Standing::Superseded)
            .filter(|record| record.server == self.server && self.keys.has(&record.key))
            .map(|record| record.id.clone());
        present.into_iter().chain(superseded).collect()
    }

    /// A list of one of them: which certificates are revoked, since when (unix milliseconds). A serial number is
    /// random and everybody's own: that it stands in the list of an issuer who has not signed it says nothing.
    pub(crate) fn sign_crl(
        &self,
        signer: &str,
        number: u64,
        revoked: &[(Serial, u64)],
    ) -> Result<Crl, Error> {
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
        let present = self.issuing()?;
        let list = if certificate_id(&present.certificate) == signer {
            params.signed_by(&present.issuer)?
        } else {
            params.signed_by(&self.superseded(signer)?.issuer)?
        };
        Ok(Crl {
            issuer: signer.to_owned(),
            number,
            ends_ms: (now + LIFE) * 1000,
            der: list.der().to_vec(),
        })
    }

    /// An issuing CA that signs nothing but lists any more.
    fn superseded(&self, id: &str) -> Result<Issuing, Error> {
        let authorities = self.authorities();
        let record = authorities.find(id).ok_or_else(|| Error::Missing {
            what: "issuing CA",
            name: id.to_owned(),
        })?;
        let certificate = CertificateDer::from(record.der.clone());
        Issuing::new(certificate, self.keys.read(&record.key)?)
    }
}

fn moment(seconds: u64) -> Result<OffsetDateTime, Error> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| Error::invalid("time", "it is beyond what a certificate can say"))
}
