//! Who may administer the CA, and how far.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::Error;

/// What an operator may do; each may also do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks at everything, changes nothing.
    Auditor,
    /// Makes tokens, entries and policies.
    Registrar,
    /// Everything: keys, rotation, revocation, operators, backups.
    Admin,
}

impl Role {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auditor => "auditor",
            Self::Registrar => "registrar",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Auditor, Self::Registrar, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| {
                let shown: String = text.chars().take(32).collect();
                Error::invalid(
                    format!("role {shown:?}"),
                    "choose auditor, registrar or admin",
                )
            })
    }
}

/// A role that was given to somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperatorGrant {
    /// `uid:NUMBER` or a SPIFFE ID.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Since when (unix milliseconds).
    pub created_at_ms: u64,
    /// Who gave it.
    pub created_by: String,
}
