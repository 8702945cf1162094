//! Making JWT-SVIDs: ES256, with a header of `alg`, `kid` and `typ` and nothing else (J-1).

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use spiffe::SpiffeId;

use crate::Error;
use crate::authority::JwtKey;

/// Audiences of one token: one is usual, more are for migrations (J-5).
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 512;

/// A token that was made.
pub(crate) struct Issued {
    pub(crate) token: String,
    /// Its `jti`, by which the audit log knows it.
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) issued_at: u64,
    pub(crate) not_after: u64,
}

/// Signs a token for `life` seconds, or for as long as its key lives.
pub(crate) fn issue(
    key: &JwtKey,
    subject: &SpiffeId,
    audiences: &[String],
    life: u64,
    now: u64,
) -> Result<Issued, Error> {
    check(audiences)?;
    let not_after = now.saturating_add(life).min(key.not_after());
    if not_after <= now {
        return Err(Error::Crypto(
            "the key for JWT-SVIDs has expired; it is replaced within a minute".to_owned(),
        ));
    }
    let id = HEXLOWER.encode(&rand::random::<[u8; 16]>());
    let header = json!({ "alg": "ES256", "kid": key.key_id(), "typ": "JWT" });
    let claims = json!({
        "sub": subject.to_string(), "aud": audiences,
        "exp": not_after, "iat": now, "jti": id,
    });
    let message = format!("{}.{}", encoded(&header), encoded(&claims));
    let signature = BASE64URL_NOPAD.encode(&key.sign(message.as_bytes())?);
    Ok(Issued {
        token: format!("{message}.{signature}"),
        id,
        issued_at: now,
        not_after,
    })
}

fn check(audiences: &[String]) -> Result<(), Error> {
    let bad = |problem: &str| Err(Error::invalid("audience", problem));
    if audiences.is_empty() {
        return bad("a JWT-SVID is for somebody: name at least one");
    }
    if audiences.len() > MAX_AUDIENCES {
        return bad("at most 16 in one token");
    }
    let good = |name: &String| {
        !name.is_empty() && name.len() <= MAX_AUDIENCE && !name.chars().any(char::is_control)
    };
    if !audiences.iter().all(good) {
        return bad("1 to 512 bytes that can be printed");
    }
    Ok(())
}

fn encoded(part: &Value) -> String {
    BASE64URL_NOPAD.encode(part.to_string().as_bytes())
}
