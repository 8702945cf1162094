//! Join tokens, as operators see them: never their secrets.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::{Error, NodeName};

/// What a token is called by: the beginning of its secret's hash. Nobody joins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId([u8; Self::LENGTH]);

impl TokenId {
    const LENGTH: usize = 8;
    /// Of the hash that it is the beginning of.
    const HASH: usize = 32;

    pub(crate) fn of(hash: &[u8; Self::HASH]) -> Self {
        let mut id = [0; Self::LENGTH];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
        Self(id)
    }

    /// The least and the greatest hash that begin so.
    pub(crate) fn hashes(&self) -> [[u8; Self::HASH]; 2] {
        [0, u8::MAX].map(|rest| {
            let mut hash = [rest; Self::HASH];
            hash.iter_mut()
                .zip(self.0)
                .for_each(|(to, from)| *to = from);
            hash
        })
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let id = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        id.ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Error::invalid(
                format!("token {shown:?}"),
                "16 hexadecimal digits, as `handfast token list` shows them; nothing was changed",
            )
        })
    }
}

impl Serialize for TokenId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A join token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenRecord {
    /// What it is called by.
    pub id: TokenId,
    /// The node that may use it.
    pub node: NodeName,
    /// When it was made (unix milliseconds).
    pub created_at_ms: u64,
    /// Until when it may be used (unix milliseconds).
    pub expires_at_ms: u64,
    /// When it was used (unix milliseconds), if it was.
    pub used_at_ms: Option<u64>,
    /// Why it buys nothing though nobody has used it; empty if it does.
    pub void: String,
}

impl TokenRecord {
    /// In one word: `used`, `void`, `expired` or `open`.
    pub fn state(&self, now_ms: u64) -> &'static str {
        match self {
            Self {
                used_at_ms: Some(_),
                ..
            } => "used",
            token if !token.void.is_empty() => "void",
            token if token.expires_at_ms <= now_ms => "expired",
            _ => "open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stands_for_the_hashes_that_begin_with_it() {
        let mut hash = [7; 32];
        let id = TokenId::of(&hash);
        assert_eq!(id.to_string(), "0707070707070707");
        assert_eq!(id.to_string().parse::<TokenId>().unwrap(), id);
        let [least, greatest] = id.hashes();
        assert!((least..=greatest).contains(&hash));
        hash[7] = 8;
        assert!(!(least..=greatest).contains(&hash));
        for bad in ["", "07", "070707070707070g", "07070707070707077", "é"] {
            let error = bad.parse::<TokenId>().unwrap_err().to_string();
            assert!(error.contains("token list"), "{error}");
        }
    }
}
