//! What the registry holds and the update stream carries, as plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Serialize;
use spiffe::SpiffeId;

use crate::{Error, NodeName};

/// Labels of an identity.
pub type Labels = BTreeMap<String, String>;

/// All labels of an identity together: bytes of keys and values.
pub const MAX_LABELS_BYTES: usize = 4096;
/// Labels of an identity.
pub const MAX_LABELS: usize = 128;
/// Where sessions are reached if an underlay address says nothing else.
pub const SESSION_PORT: u16 = 7250;

/// A node of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its full SPIFFE ID.
    #[serde(serialize_with = "as_text")]
    pub spiffe_id: SpiffeId,
    /// Its name in this trust domain.
    pub name: NodeName,
    /// The addresses that its workloads may have.
    pub prefixes: Vec<IpNet>,
    /// Where its sessions are reached.
    pub underlay: Vec<SocketAddr>,
    /// False while joining: cleartext toward it is counted, not dropped.
    pub managed: bool,
    /// Higher when a prefix was given anew.
    pub assignment: u64,
    /// When it joined (unix milliseconds), if it has.
    pub joined_at_ms: Option<u64>,
    /// When its agent was last heard (unix milliseconds).
    pub seen_at_ms: Option<u64>,
    /// The update that its agent acknowledged last.
    pub acknowledged: u64,
    /// What the agent could not apply; empty if nothing.
    pub problem: String,
    /// Is it on the deny list?
    pub revoked: bool,
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

/// A registration entry: which workload gets which identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The registry's key of it.
    pub id: String,
    /// The identity.
    #[serde(serialize_with = "as_text")]
    pub spiffe_id: SpiffeId,
    /// The node it is for; none for any.
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
    /// When it was made (unix milliseconds).
    pub created_at_ms: u64,
}

/// A policy document: opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyDocument {
    /// Its name, unique in the registry.
    pub name: String,
    /// What the `policies` crate reads.
    pub text: String,
    /// One more at each change of the text.
    pub version: u64,
    /// When it was changed last (unix milliseconds).
    pub changed_at_ms: u64,
}

/// Whom the deny list cuts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "subject")]
pub enum Subject {
    /// Every certificate of an identity.
    SpiffeId(#[serde(serialize_with = "as_text")] SpiffeId),
    /// A node with all that it vouches for.
    Node(NodeName),
    /// One certificate.
    Serial(Serial),
}

impl Subject {
    /// An identity, as an operator writes it.
    pub fn spiffe_id(text: &str) -> Result<Self, Error> {
        crate::names::operator_id(text).map(Self::SpiffeId)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(id) => write!(f, "SPIFFE ID {id}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

/// A line of the deny list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Who.
    #[serde(flatten)]
    pub subject: Subject,
    /// Why, in the operator's words.
    pub reason: String,
    /// Since when (unix milliseconds).
    pub since_ms: u64,
}

/// The serial number of a certificate: its bytes without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// RFC 5280 4.1.2.2: at most 20 octets.
    const MAX: usize = 20;

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.iter().skip(zeros).copied().collect())
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = Error;

    /// Hexadecimal, upper or lower case, with or without colons.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            let shown: String = text.chars().take(64).collect();
            Error::invalid(
                format!("serial {shown:?}"),
                "write 1 to 20 bytes in hexadecimal",
            )
        };
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| {
                c.to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
                    .ok_or_else(bad)
            })
            .collect::<Result<_, _>>()?;
        let padded: Vec<u8> = if digits.len() % 2 == 1 {
            [vec![0], digits].concat()
        } else {
            digits
        };
        let bytes: Vec<u8> = padded
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | digit))
            .collect();
        let serial = Self::from_bytes(&bytes);
        if serial.0.is_empty() || serial.0.len() > Self::MAX {
            return Err(bad());
        }
        Ok(serial)
    }
}

impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Checks the labels of an identity: few, small, and of characters that every
/// policy language can name.
pub fn check_labels(labels: &Labels) -> Result<(), Error> {
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte))
    };
    for (key, value) in labels {
        let shown: String = format!("{key}={value}").chars().take(96).collect();
        if key.is_empty() || key.len() > 317 || value.len() > 253 || !plain(key) || !plain(value) {
            return Err(Error::invalid(
                format!("label {shown:?}"),
                "write KEY=VALUE with letters, digits and - _ . / : (key up to 317, value up to 253 bytes)",
            ));
        }
    }
    let bytes: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if labels.len() > MAX_LABELS || bytes > MAX_LABELS_BYTES {
        return Err(Error::invalid(
            "labels",
            format!(
                "{} labels with {bytes} bytes; at most {MAX_LABELS} labels and {MAX_LABELS_BYTES} bytes are signed",
                labels.len()
            ),
        ));
    }
    Ok(())
}

pub(crate) fn as_text<S: serde::Serializer>(
    value: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<S: serde::Serializer>(
    value: &Option<SpiffeId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_read_as_people_write_them() {
        let serial: Serial = "00:0A:ff".parse().unwrap();
        assert_eq!(serial.to_string(), "0aff");
        assert_eq!("aff".parse::<Serial>().unwrap(), serial);
        for bad in ["", "00", "xy", &"11".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_bounded() {
        let labels = |count: usize, size: usize| -> Labels {
            (0..count)
                .map(|n| (format!("k{n}"), "v".repeat(size)))
                .collect()
        };
        assert!(check_labels(&labels(20, 100)).is_ok());
        assert!(check_labels(&labels(129, 1)).is_err());
        assert!(check_labels(&labels(40, 200)).is_err());
        assert!(check_labels(&Labels::from([("a b".into(), "c".into())])).is_err());
    }

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
