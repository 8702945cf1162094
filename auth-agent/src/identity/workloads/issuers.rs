//! Certificates of issuing CAs, once in memory for all SVIDs that they signed.
//!
//! A node's SVIDs hang on a handful of them, a new one at each rotation, and each is as large as an SVID itself. They
//! are never given back, so their number is bounded: what comes beyond is kept with each SVID.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rustls_pki_types::CertificateDer;

/// Decades of rotations.
const MAX_ISSUERS: usize = 512;
/// Larger ones are none of ours.
const MAX_SIZE: usize = 8192;

static KNOWN: Mutex<Option<HashSet<&'static [u8]>>> = Mutex::new(None);

/// The same chain, its issuers shared. The leaf stays its own.
pub(super) fn shared(chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let certificates = chain.into_iter().enumerate();
    let shared = certificates.map(|(at, certificate)| {
        if at == 0 || certificate.len() > MAX_SIZE {
            return certificate;
        }
        match known.get(certificate.as_ref()) {
            Some(known) => CertificateDer::from(*known),
            None if known.len() < MAX_ISSUERS => {
                let kept: &'static [u8] = Box::leak(certificate.as_ref().into());
                known.insert(kept);
                CertificateDer::from(kept)
            }
            None => certificate,
        }
    });
    let mut shared: Vec<_> = shared.collect();
    shared.shrink_to_fit();
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuers_are_kept_once_and_leaves_by_themselves() {
        let chain = || {
            vec![
                CertificateDer::from(vec![7; 40]),
                CertificateDer::from(vec![8; 50]),
            ]
        };
        let (one, other) = (shared(chain()), shared(chain()));
        assert_eq!(one, chain());
        assert_eq!(one[1].as_ptr(), other[1].as_ptr());
        assert_ne!(one[0].as_ptr(), other[0].as_ptr());
    }
}
