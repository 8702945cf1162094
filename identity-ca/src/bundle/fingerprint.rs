//! How certificates are named (their SHA-256) and written down (PEM).

use std::fmt;

use zeroize::Zeroizing;

use crate::Error;

/// SHA-256 of a certificate's DER; written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of `der`.
    pub fn of(der: &[u8]) -> Self {
        Self(sha256(der))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text
            .strip_prefix("sha256:")
            .and_then(|digits| {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(digits.as_bytes())
                    .ok()
            })
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::invalid("fingerprint", "write sha256: and 64 hexadecimal digits"))
    }
}

/// SHA-256 of a certificate's DER, as proofs and announcements name it.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hash = [0; 32];
    hash.iter_mut()
        .zip(digest.as_ref())
        .for_each(|(to, from)| *to = *from);
    hash
}

/// PEM (RFC 7468). Of a private key nothing is left behind but the text, which the caller wipes.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(data_encoding::BASE64.encode(der));
    // Room for all of it at once: a text that grows leaves copies.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 64);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while let Some((line, more)) = rest.split_at_checked(64) {
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
