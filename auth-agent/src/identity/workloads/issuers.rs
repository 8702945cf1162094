//! Certificates of issuing CAs, once in memory for all SVIDs that they signed.
//!
//! A node's SVIDs hang on a handful of them, a new one at each rotation, and each is as large as an SVID itself. They
//! are never given back, so their number is bounded: what comes beyond is kept with each SVID.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::CertificateDer;

use crate::identity::authority_of;

/// Decades of rotations.
const MAX_ISSUERS: usize = 512;
/// Larger ones are none of ours.
const MAX_SIZE: usize = 8192;

/// Each with its name, as acknowledgements use it.
static KNOWN: Mutex<Option<HashMap<&'static [u8], Arc<str>>>> = Mutex::new(None);

/// The same chain, its issuers shared, and what it hangs on. The leaf stays its own.
pub(super) fn shared(
    chain: Vec<CertificateDer<'static>>,
) -> (Vec<CertificateDer<'static>>, Arc<str>) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let mut authority = None;
    let certificates = chain.into_iter().enumerate();
    let shared = certificates.map(|(at, certificate)| {
        if at == 0 {
            // Copied: it lies among what came with it, all of which is given back now.
            return CertificateDer::from(certificate.to_vec());
        }
        if certificate.len() > MAX_SIZE {
            return certificate;
        }
        let kept: &'static [u8] = match known.get_key_value(certificate.as_ref()) {
            Some((kept, _)) => kept,
            None if known.len() < MAX_ISSUERS => {
                let kept: &'static [u8] = Box::leak(certificate.as_ref().into());
                // Named as the second of a chain.
                let named = [CertificateDer::from(kept), CertificateDer::from(kept)];
                known.insert(kept, authority_of(&named));
                kept
            }
            None => return certificate,
        };
        if at == 1 {
            authority = known.get(kept).map(Arc::clone);
        }
        CertificateDer::from(kept)
    });
    let mut shared: Vec<_> = shared.collect();
    shared.shrink_to_fit();
    let authority = authority.unwrap_or_else(|| authority_of(&shared));
    (shared, authority)
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
        let ((one, name), (other, again)) = (shared(chain()), shared(chain()));
        assert_eq!((&one, &name), (&chain(), &authority_of(&chain())));
        assert!(Arc::ptr_eq(&name, &again));
        assert_eq!(one[1].as_ptr(), other[1].as_ptr());
        assert_ne!(one[0].as_ptr(), other[0].as_ptr());
    }
}
