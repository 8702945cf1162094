//! A JWS in compact form (RFC 7515 section 7.1): read, but believed only when verified.

use data_encoding::BASE64URL_NOPAD;
use rustls_pki_types::UnixTime;
use serde::Deserialize;
use serde_json::{Map, Value};
use spiffe::SpiffeId;

use super::JwtError;
use super::algorithm::Algorithm;
use crate::bundle::{JwtKey, TrustBundle};
use crate::names::MAX_ID;

/// Longer tokens are not read.
pub const MAX_TOKEN: usize = 16 << 10;

/// A token that has the right form, nothing more.
pub(super) struct Compact<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// What is signed.
    message: &'a [u8],
    signature: Vec<u8>,
    claims: Map<String, Value>,
}

/// What we look at; other members are skipped. One of these twice is an error.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

impl<'a> Compact<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed("it is too long"));
        }
        let form = JwtError::Malformed("it is not three parts with dots between them");
        let (message, signature) = token.rsplit_once('.').ok_or(form.clone())?;
        let (header, claims) = message.split_once('.').ok_or(form.clone())?;
        if claims.contains('.') {
            return Err(form);
        }
        let header: Header = serde_json::from_slice(&decoded(header)?)
            .map_err(|_| JwtError::Malformed("its header is not one"))?;
        let algorithm = Algorithm::of(&header.alg)?;
        if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
            return Err(JwtError::Spiffe {
                rule: "J-1",
                problem: "its type is neither JWT nor JOSE",
            });
        }
        // RFC 7515 4.1.11: who does not know what is critical must refuse.
        if header.crit.is_some() {
            return Err(JwtError::Spiffe {
                rule: "J-1",
                problem: "its header has critical extensions",
            });
        }
        Ok(Self {
            algorithm,
            key_id: header.kid,
            message: message.as_bytes(),
            signature: decoded(signature)?,
            claims: serde_json::from_slice(&decoded(claims)?)
                .map_err(|_| JwtError::Malformed("its claims are not an object"))?,
        })
    }

    /// Whose token it claims to be: only for choosing the keys.
    pub(super) fn subject(&self) -> Result<SpiffeId, JwtError> {
        let subject = self.claims.get("sub").and_then(Value::as_str);
        subject
            .filter(|subject| subject.len() <= MAX_ID)
            .and_then(|subject| SpiffeId::new(subject).ok())
            .ok_or(JwtError::Spiffe {
                rule: "J-3",
                problem: "its subject is not a SPIFFE ID",
            })
    }

    /// The claims, if a key of the bundle has signed them.
    pub(super) fn verified(
        self,
        bundle: &TrustBundle,
        now: UnixTime,
    ) -> Result<Map<String, Value>, JwtError> {
        let refuse = |problem| JwtError::Signature {
            trust_domain: bundle.trust_domain().to_string(),
            problem,
        };
        let now_ms = now.as_secs().saturating_mul(1000);
        let alive = |key: &&JwtKey| key.not_after_ms() == 0 || now_ms <= key.not_after_ms();
        let signed = |key: &JwtKey| {
            self.algorithm
                .verifies(key.key(), self.message, &self.signature)
        };
        let genuine = match &self.key_id {
            Some(id) => {
                let key = bundle.jwt_key(id).filter(alive);
                signed(key.ok_or(refuse("its key is not, or no longer, in the bundle"))?)
            }
            // Allowed (J-1), though rare: any of the domain's keys may be meant.
            None => bundle.jwt_keys().iter().filter(alive).any(signed),
        };
        if !genuine {
            return Err(refuse("its signature is wrong"));
        }
        Ok(self.claims)
    }
}

fn decoded(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64URL_NOPAD
        .decode(part.as_bytes())
        .map_err(|_| JwtError::Malformed("a part of it is not base64url"))
}
