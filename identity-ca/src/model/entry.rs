//! Registration entries: which workload gets which identity.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use spiffe::{SpiffeId, TrustDomain};

use super::{Labels, as_optional_text, as_text, as_texts};
use crate::Error;

/// A registration entry: which workload gets which identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The registry's key of it.
    pub id: String,
    /// The identity.
    #[serde(serialize_with = "as_text")]
    pub spiffe_id: SpiffeId,
    /// Where it applies: on a node, or wherever the entries of another SPIFFE
    /// ID apply; none for every node.
    #[serde(serialize_with = "as_optional_text")]
    pub parent_id: Option<SpiffeId>,
    /// All of them must match.
    pub selectors: Vec<Selector>,
    /// What the CA signs into the proof SVID.
    pub labels: Labels,
    /// Life of workload SVIDs in seconds; none for the CA's default.
    pub workload_ttl_seconds: Option<u32>,
    /// DNS names of workload SVIDs.
    pub dns_names: Vec<String>,
    /// Tells several identities of one workload apart; may be empty.
    pub hint: String,
    /// Trust domains whose bundles the workload gets.
    #[serde(serialize_with = "as_texts")]
    pub federates_with: Vec<TrustDomain>,
    /// Life of JWT-SVIDs in seconds; none for the CA's default.
    pub jwt_ttl_seconds: Option<u32>,
    /// When it ends (unix milliseconds); none for never.
    pub expires_at_ms: Option<u64>,
    /// When it was made (unix milliseconds).
    pub created_at_ms: u64,
    /// 1 at first, one more at each update.
    pub revision: u64,
}

impl Entry {
    /// Is its time over at `now_ms`?
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|end| end <= now_ms)
    }
}

/// One property of a workload, such as `netns:web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Which attestor looks at it: `netns`, `unix`, `k8s`, …
    pub kind: String,
    /// What it must find.
    pub value: String,
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            let shown: String = text.chars().take(64).collect();
            Error::invalid(
                format!("selector {shown:?}"),
                "write KIND:VALUE, such as netns:web; at most 512 printable characters",
            )
        };
        let (kind, value) = text.split_once(':').ok_or_else(bad)?;
        let kind_ok = !kind.is_empty()
            && kind
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        let value_ok = !value.is_empty() && !value.chars().any(char::is_control);
        if !(kind_ok && value_ok && text.len() <= 512) {
            return Err(bad());
        }
        Ok(Self {
            kind: kind.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_have_a_kind_and_a_value() {
        let selector: Selector = "unix:path:/bin/x".parse().unwrap();
        assert_eq!(
            (selector.kind.as_str(), selector.value.as_str()),
            ("unix", "path:/bin/x")
        );
        for bad in ["", "netns", "netns:", ":web", "Net:web", "netns:a\nb"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }
}
