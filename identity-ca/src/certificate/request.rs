//! Reading certificate signing requests: a request contributes a key and nothing else.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

const MAX_CSR: usize = 8192;

/// Why no key was taken from a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Longer than any honest request.
    #[error("it has {0} bytes, at most {MAX_CSR} are read")]
    TooLong(usize),
    /// Not PKCS#10 in DER.
    #[error("it is not a PKCS#10 request in DER")]
    Malformed,
    /// An RSA key.
    #[error("its key is RSA; make an EC key on P-256 or P-384")]
    Rsa,
    /// A key of another kind, or on another curve.
    #[error("its key is weak or of an unsupported kind; make an EC key on P-256 or P-384")]
    Key,
    /// A point that is not of the curve, or compressed.
    #[error("its public key is not an uncompressed point of the curve")]
    Point,
    /// A signature algorithm other than ECDSA with SHA-256 or SHA-384.
    #[error("it is signed with an unsupported algorithm; use ECDSA with SHA-256 or SHA-384")]
    Algorithm,
    /// The signature is wrong: whoever sent it does not hold the key.
    #[error("its signature does not match its key: the sender does not hold the private key")]
    Signature,
}

/// The public key of a request whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsrKey {
    spki: Vec<u8>,
    point: Vec<u8>,
}

impl CsrKey {
    /// Reads and verifies a PKCS#10 request. Subject, extensions and
    /// attributes are ignored, whatever they say.
    pub fn read(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &csr.certification_request_info;
        let curve = Curve::of(&info.subject_pki)?;
        let point = info.subject_pki.subject_public_key.data.as_ref();
        if point.len() != curve.point_len() || point.first() != Some(&4) {
            return Err(CsrError::Point);
        }
        let algorithm = curve.verification(&csr.signature_algorithm.algorithm)?;
        UnparsedPublicKey::new(algorithm, point)
            .verify(info.raw, csr.signature_value.data.as_ref())
            .map_err(|_| CsrError::Signature)?;
        if !written_as_der(der, info.raw, csr.signature_value.data.as_ref()) {
            return Err(CsrError::Malformed);
        }
        Ok(Self {
            spki: info.subject_pki.raw.to_vec(),
            point: point.to_vec(),
        })
    }

    /// The SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The public key as an uncompressed point.
    pub fn point(&self) -> &[u8] {
        &self.point
    }
}

/// The signature covers the inner part alone. What stands around it is taken
/// only as DER writes it: the parser lets other tags pass.
fn written_as_der(der: &[u8], info: &[u8], signature: &[u8]) -> bool {
    let around = || {
        let head = der.strip_suffix(signature)?.split_last_chunk::<3>()?;
        let (rest, [bits, length, unused]) = head;
        let whole = usize::from(*length) == signature.len() + 1;
        let (rest, algorithm) = rest.split_last_chunk::<12>()?;
        let outer = rest.strip_suffix(info)?;
        let body = der.len() - outer.len();
        let [high, low] = u16::try_from(body).ok()?.to_be_bytes();
        let header = match body {
            0..0x80 => outer == [0x30, low],
            0x80..0x100 => outer == [0x30, 0x81, low],
            _ => outer == [0x30, 0x82, high, low],
        };
        let known = ECDSA_WITH.iter().any(|one| one == algorithm);
        Some(header && known && whole && (*bits, *unused) == (0x03, 0))
    };
    around().unwrap_or(false)
}

/// AlgorithmIdentifiers of ECDSA with SHA-256 and with SHA-384 (RFC 5758 3.2).
const ECDSA_WITH: [[u8; 12]; 2] = [
    [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
    [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3],
];

#[derive(Clone, Copy)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    fn of(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, CsrError> {
        if spki.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            return Err(CsrError::Rsa);
        }
        if spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return Err(CsrError::Key);
        }
        let curve = spki
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok())
            .ok_or(CsrError::Key)?;
        if curve == OID_EC_P256 {
            Ok(Self::P256)
        } else if curve == OID_NIST_EC_P384 {
            Ok(Self::P384)
        } else {
            Err(CsrError::Key)
        }
    }

    fn point_len(self) -> usize {
        match self {
            Self::P256 => 65,
            Self::P384 => 97,
        }
    }

    fn verification(
        self,
        signature: &x509_parser::der_parser::Oid<'_>,
    ) -> Result<&'static dyn VerificationAlgorithm, CsrError> {
        let sha256 = *signature == OID_SIG_ECDSA_WITH_SHA256;
        let sha384 = *signature == OID_SIG_ECDSA_WITH_SHA384;
        match self {
            Self::P256 if sha256 => Ok(&ECDSA_P256_SHA256_ASN1),
            Self::P256 if sha384 => Ok(&ECDSA_P256_SHA384_ASN1),
            Self::P384 if sha256 => Ok(&ECDSA_P384_SHA256_ASN1),
            Self::P384 if sha384 => Ok(&ECDSA_P384_SHA384_ASN1),
            _ => Err(CsrError::Algorithm),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::certificate::PrivateKey;

    fn csr_with(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn p256_and_p384_are_accepted() {
        assert!(CsrKey::read(&csr_with(&rcgen::PKCS_ECDSA_P256_SHA256)).is_ok());
        assert!(CsrKey::read(&csr_with(&rcgen::PKCS_ECDSA_P384_SHA384)).is_ok());
    }

    #[test]
    fn rsa_and_other_keys_are_refused() {
        assert_eq!(
            CsrKey::read(&csr_with(&rcgen::PKCS_RSA_SHA256)),
            Err(CsrError::Rsa)
        );
        assert_eq!(
            CsrKey::read(&csr_with(&rcgen::PKCS_ED25519)),
            Err(CsrError::Key)
        );
    }

    #[test]
    fn a_wrong_signature_is_refused() {
        let mut der = PrivateKey::generate().unwrap().csr().unwrap();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert_eq!(CsrKey::read(&der), Err(CsrError::Signature));
    }

    #[test]
    fn a_key_swapped_in_from_elsewhere_is_refused() {
        let mut der = PrivateKey::generate().unwrap().csr().unwrap();
        let other = PrivateKey::generate().unwrap().csr().unwrap();
        let (ours, theirs) = (CsrKey::read(&der).unwrap(), CsrKey::read(&other).unwrap());
        let at = der
            .windows(65)
            .position(|window| window == ours.point())
            .unwrap();
        der[at..at + 65].copy_from_slice(theirs.point());
        assert_eq!(CsrKey::read(&der), Err(CsrError::Signature));
    }

    #[test]
    fn trailing_and_endless_bytes_are_refused() {
        let mut der = PrivateKey::generate().unwrap().csr().unwrap();
        der.push(0);
        assert_eq!(CsrKey::read(&der), Err(CsrError::Malformed));
        assert_eq!(
            CsrKey::read(&[0x30; 10_000]),
            Err(CsrError::TooLong(10_000))
        );
    }

    proptest! {
        #[test]
        fn hostile_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = CsrKey::read(&bytes);
        }
    }

    #[test]
    fn a_request_with_any_bit_changed_is_refused() {
        let der = PrivateKey::generate().unwrap().csr().unwrap();
        for at in 0..der.len() {
            for bit in 0..8 {
                let mut damaged = der.clone();
                damaged[at] ^= 1 << bit;
                assert!(CsrKey::read(&damaged).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
}
