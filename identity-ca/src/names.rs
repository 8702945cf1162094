//! Names that are valid by having been parsed: nodes, and what `/handfast/*` is reserved for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spiffe::{SpiffeId, TrustDomain};

use crate::Error;

/// SPIFFE IDs are not made longer than this (SPIFFE-ID 2.3).
pub(crate) const MAX_ID: usize = 2048;

const MAX_NODE_NAME: usize = 128;
const RESERVED: &str = "/handfast";

/// The name of a node: lower-case letters, digits, `-`, `_` and `.`, beginning
/// and ending with a letter or digit, at most 128 bytes. So it is always one
/// segment of a SPIFFE ID's path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let edge = |byte: Option<&u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let bytes = text.as_bytes();
        let inside = bytes.iter().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(byte)
        });
        if bytes.len() <= MAX_NODE_NAME && inside && edge(bytes.first()) && edge(bytes.last()) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(64).collect();
        Err(Error::invalid(
            format!("node name {shown:?}"),
            "use 1 to 128 lower-case letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        ))
    }
}

impl TryFrom<String> for NodeName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SPIFFE ID of a node: `spiffe://<trust domain>/handfast/node/<name>`.
pub fn node_id(trust_domain: &TrustDomain, name: &NodeName) -> Result<SpiffeId, Error> {
    reserved_id(trust_domain, &["handfast", "node", name.as_str()])
}

/// The SPIFFE ID of the CA's own server.
pub(crate) fn server_id(trust_domain: &TrustDomain) -> Result<SpiffeId, Error> {
    reserved_id(trust_domain, &["handfast", "ca"])
}

/// The SPIFFE ID of the key that signs deny lists.
pub(crate) fn deny_list_id(trust_domain: &TrustDomain) -> Result<SpiffeId, Error> {
    reserved_id(trust_domain, &["handfast", "deny-list"])
}

/// The SPIFFE ID of the key that signs the heads of audit logs.
pub(crate) fn audit_id(trust_domain: &TrustDomain) -> Result<SpiffeId, Error> {
    reserved_id(trust_domain, &["handfast", "audit"])
}

fn reserved_id(trust_domain: &TrustDomain, segments: &[&str]) -> Result<SpiffeId, Error> {
    SpiffeId::from_segments(trust_domain.clone(), segments)
        .map_err(|error| Error::invalid("SPIFFE ID", error.to_string()))
}

/// Is this an ID that only the CA itself hands out?
pub(crate) fn is_reserved(id: &SpiffeId) -> bool {
    id.path()
        .strip_prefix(RESERVED)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Reads a SPIFFE ID that an operator wrote: strict, since what is stored is
/// emitted (lower-case scheme and trust domain only; ID-2, ID-5).
pub(crate) fn operator_id(text: &str) -> Result<SpiffeId, Error> {
    let shown: String = text.chars().take(128).collect();
    let what = || format!("SPIFFE ID {shown:?}");
    if text.len() > MAX_ID {
        return Err(Error::invalid(
            what(),
            format!("longer than {MAX_ID} bytes"),
        ));
    }
    let id = SpiffeId::new(text).map_err(|error| {
        Error::invalid(
            what(),
            format!("{error} (an example: spiffe://example.org/web/frontend)"),
        )
    })?;
    if id.to_string() != text {
        return Err(Error::invalid(
            what(),
            format!("write it in lower case: {id}"),
        ));
    }
    Ok(id)
}

/// Reads the SPIFFE ID of a registration entry: in our trust domain, with a
/// path, and not reserved.
pub(crate) fn entry_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Error> {
    let id = operator_id(text)?;
    let what = format!("SPIFFE ID {text:?}");
    if !id.is_member_of(trust_domain) {
        return Err(Error::invalid(
            what,
            format!("this CA signs for spiffe://{trust_domain}/ only"),
        ));
    }
    if id.path().is_empty() {
        return Err(Error::invalid(
            what,
            "a workload's ID has a path, such as /web/frontend",
        ));
    }
    if is_reserved(&id) {
        return Err(Error::invalid(
            what,
            "paths under /handfast are reserved for handfast itself",
        ));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_one_segment_of_a_path() {
        for good in ["web1", "a", "node-1.example_x", "9"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            ".",
            "..",
            "a/b",
            "A",
            "ä",
            "a b",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn entries_take_only_ids_that_we_may_sign() {
        let domain = TrustDomain::new("example.org").unwrap();
        assert!(entry_id("spiffe://example.org/web", &domain).is_ok());
        assert!(entry_id("spiffe://example.org/handfastened", &domain).is_ok());
        for bad in [
            "",
            "web",
            "http://example.org/web",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/a//b",
            "spiffe://example.org/../b",
            "spiffe://example.org/a?b",
            "spiffe://example.org:80/a",
            "spiffe://Example.org/a",
            "SPIFFE://example.org/a",
            "spiffe://other.org/web",
            "spiffe://example.org/handfast",
            "spiffe://example.org/handfast/node/x",
        ] {
            assert!(entry_id(bad, &domain).is_err(), "{bad}");
        }
        let long = format!("spiffe://example.org/{}", "x".repeat(2048));
        assert!(entry_id(&long, &domain).is_err());
    }
}
