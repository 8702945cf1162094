//! JWT-SVIDs: a workload's identity as a bearer token (SPIFFE JWT-SVID, RFC 7519).
//!
//! A token is read in three steps that cannot be mixed up: its form, the
//! signature, and only then what it claims. The algorithm is one of SPIFFE's
//! nine before anything else is looked at.

mod algorithm;
mod compact;
mod issue;
#[cfg(test)]
mod tests;

use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};
use spiffe::{SpiffeId, TrustDomain};

use self::compact::Compact;
use crate::bundle::TrustBundle;

pub use self::compact::MAX_TOKEN;
pub(crate) use self::issue::{Issued, issue};

/// How far clocks may be apart (seconds).
const LEEWAY: u64 = 10;
/// Audiences of one token that are looked at.
const MAX_AUDIENCES: usize = 256;

/// A token whose signature and claims are right.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    /// Whose it is (`sub`).
    pub spiffe_id: SpiffeId,
    /// Whom it is meant for (`aud`).
    pub audiences: Vec<String>,
    /// Unix seconds (`exp`).
    pub expires_at: u64,
    /// Everything that it claims, those above too.
    pub claims: Map<String, Value>,
}

/// Why a token was not accepted, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// Not a JWS in compact form with claims, or too long.
    #[error("not a JWT: {0}")]
    Malformed(&'static str),
    /// `none`, an HMAC, or another algorithm that JWT-SVIDs do not have (J-2).
    #[error("algorithm {0:?} is not one of JWT-SVIDs: RS, ES or PS with 256, 384 or 512")]
    Algorithm(String),
    /// One of SPIFFE's rules, by its number in SPIFFE.md.
    #[error("not a JWT-SVID ({rule}): {problem}")]
    Spiffe {
        /// The rule's number.
        rule: &'static str,
        /// How it is broken.
        problem: &'static str,
    },
    /// No bundle of the subject's trust domain is known here.
    #[error("trust domain {0:?} is not known here")]
    TrustDomain(String),
    /// The bundle has no key that made this signature.
    #[error("no key of trust domain {trust_domain:?} has signed it: {problem}")]
    Signature {
        /// Whose keys were tried.
        trust_domain: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Not yet, or no longer, valid.
    #[error("{claim} is {at}, but it is {now} (unix seconds)")]
    Time {
        /// `exp`, `nbf` or `iat`.
        claim: &'static str,
        /// What it says.
        at: u64,
        /// The verifier's clock.
        now: u64,
    },
    /// Meant for somebody else.
    #[error("it is meant for {audiences:?}, not for {expected:?}")]
    Audience {
        /// Whom it names.
        audiences: Vec<String>,
        /// Whom it should have named.
        expected: String,
    },
}

/// Verifies a token for the verifier that calls itself `audience`.
///
/// `bundle` gives the bundle of a trust domain, if it is trusted: the token is
/// checked against that of its subject's domain and no other (W-13).
pub fn verify<'a>(
    token: &str,
    audience: &str,
    bundle: impl FnOnce(&TrustDomain) -> Option<&'a TrustBundle>,
    now: UnixTime,
) -> Result<JwtSvid, JwtError> {
    let compact = Compact::parse(token)?;
    let subject = compact.subject()?;
    let bundle = bundle(subject.trust_domain())
        .filter(|bundle| bundle.trust_domain() == subject.trust_domain())
        .ok_or_else(|| JwtError::TrustDomain(subject.trust_domain().to_string()))?;
    let claims = compact.verified(bundle, now)?;
    let (audiences, expires_at) = (audiences(&claims)?, expiry(&claims, now.as_secs())?);
    if !audiences.iter().any(|named| named == audience) {
        return Err(JwtError::Audience {
            audiences,
            expected: audience.to_owned(),
        });
    }
    Ok(JwtSvid {
        spiffe_id: subject,
        audiences,
        expires_at,
        claims,
    })
}

/// J-3: at least one, and all of them names.
fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    let bad = |problem| JwtError::Spiffe {
        rule: "J-3",
        problem,
    };
    let named = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) if several.len() <= MAX_AUDIENCES => several
            .iter()
            .map(|name| name.as_str().map(ToOwned::to_owned))
            .collect::<Option<_>>()
            .ok_or(bad("an audience is not a text"))?,
        Some(_) => return Err(bad("its audience is neither a text nor a list of a few")),
        None => return Err(bad("it has no audience")),
    };
    if named.is_empty() {
        return Err(bad("its audience is empty"));
    }
    Ok(named)
}

/// J-3: there, and in the future; `nbf` and `iat`, if there, in the past.
fn expiry(claims: &Map<String, Value>, now: u64) -> Result<u64, JwtError> {
    let moment = |claim| claims.get(claim).map(numeric_date).transpose();
    let expires_at = moment("exp")?.ok_or(JwtError::Spiffe {
        rule: "J-3",
        problem: "it has no expiry",
    })?;
    if now >= expires_at.saturating_add(LEEWAY) {
        let (claim, at) = ("exp", expires_at);
        return Err(JwtError::Time { claim, at, now });
    }
    for claim in ["nbf", "iat"] {
        match moment(claim)? {
            Some(at) if at > now.saturating_add(LEEWAY) => {
                return Err(JwtError::Time { claim, at, now });
            }
            _ => {}
        }
    }
    Ok(expires_at)
}

/// RFC 7519 section 2: seconds since 1970, perhaps with a fraction.
fn numeric_date(value: &Value) -> Result<u64, JwtError> {
    let whole = || {
        let seconds = value.as_f64()?;
        (0.0..1e15).contains(&seconds).then_some(seconds as u64)
    };
    value
        .as_u64()
        .or_else(whole)
        .ok_or(JwtError::Malformed("a time is not a number of seconds"))
}
