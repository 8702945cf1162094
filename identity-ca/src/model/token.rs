//! Join tokens, as operators see them: never their secrets.

use serde::Serialize;

use crate::NodeName;

/// A join token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenRecord {
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
