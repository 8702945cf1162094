//! The nine signature algorithms of JWT-SVIDs (J-2; RFC 7518 section 3).

use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::JwtError;
use crate::bundle::{Curve, PublicKey};

/// What a token may be signed with.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    Ec(Curve),
    Rsa(&'static RsaParameters),
}

impl Algorithm {
    pub(super) fn of(name: &str) -> Result<Self, JwtError> {
        Ok(match name {
            "ES256" => Self::Ec(Curve::P256),
            "ES384" => Self::Ec(Curve::P384),
            "ES512" => Self::Ec(Curve::P521),
            "RS256" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&RSA_PSS_2048_8192_SHA512),
            other => return Err(JwtError::Algorithm(other.chars().take(32).collect())),
        })
    }

    /// Has `key` made this signature? Never, if it is a key of another kind.
    pub(super) fn verifies(self, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        match (self, key) {
            (Self::Ec(wanted), PublicKey::Ec { curve, point }) => {
                wanted == *curve
                    && UnparsedPublicKey::new(curve.algorithm(), point)
                        .verify(message, signature)
                        .is_ok()
            }
            (Self::Rsa(parameters), PublicKey::Rsa { n, e }) => RsaPublicKeyComponents { n, e }
                .verify(parameters, message, signature)
                .is_ok(),
            _ => false,
        }
    }
}
