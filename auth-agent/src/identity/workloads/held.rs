//! One workload's SVID as the agent holds it: about 1.5 kB, most of it the certificates.

use std::sync::Arc;

use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::Svid;
use handfast_ca::model::Serial;
use handfast_ca::verify::Verifier;
use rustls_pki_types::UnixTime;

use super::issuers;
use crate::identity::{KnownEntry, renew_at};
use crate::workload_api::X509Svid;

/// An SVID with its key, and what it hangs on.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// As the workload gets it.
    pub(super) svid: Arc<X509Svid>,
    /// The entry that it was signed for.
    pub(super) entry: Arc<KnownEntry>,
    /// The issuing CA, as acknowledgements name it.
    pub(super) authority: Arc<str>,
    /// Its serial number.
    pub(super) serial: Serial,
    /// Unix seconds.
    pub(super) renew_at: u64,
    /// When the entry began to ask for another one (unix seconds).
    pub(super) changing_since: Option<u64>,
    /// Since when nobody needs it (unix seconds); without meaning while somebody does.
    pub(super) idle_since: u64,
}

/// Why an SVID is not taken from the CA.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// Peers would refuse it.
    #[error("our own verifier refuses it: {0}")]
    Rejected(#[from] handfast_ca::verify::Rejection),
    /// It is somebody else's.
    #[error("it is for {0}, which the entry does not name")]
    Another(String),
}

impl Held {
    /// Takes what the CA signed, if our own verifier accepts it: what peers would refuse is never handed out.
    pub(super) fn verify(
        entry: Arc<KnownEntry>,
        key: &PrivateKey,
        svid: Svid,
        verifier: &Verifier,
        now: u64,
    ) -> Result<Self, NotTaken> {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let verified = verifier.workload(&svid.chain, time)?;
        if verified.spiffe_id.to_string() != entry.spiffe_id {
            return Err(NotTaken::Another(verified.spiffe_id.to_string()));
        }
        let (chain, authority) = issuers::shared(svid.chain);
        Ok(Self {
            authority,
            serial: verified.serial,
            renew_at: renew_at(now, svid.not_after),
            changing_since: None,
            idle_since: now,
            svid: Arc::new(X509Svid {
                spiffe_id: verified.spiffe_id,
                chain,
                key: key.to_pkcs8(),
                hint: entry.hint.clone(),
                not_after: svid.not_after,
            }),
            entry,
        })
    }
}
