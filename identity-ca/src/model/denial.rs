//! The deny list's lines, and whom they name.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use spiffe::SpiffeId;

use super::as_text;
use crate::{Error, NodeName};

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

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
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
}
