//! A line of the log: a JSON object whose last member is the hash of all that stands before it.
//!
//! The hash is over the bytes as they are written, so nobody has to agree on
//! how JSON is written canonically.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::act::{Act, Outcome};
use crate::Error;
use crate::bundle::sha256;

/// A longer line is not ours.
pub(super) const MAX_LINE: usize = 128 << 10;
const SEAL: &str = ",\"hash\":\"";

/// SHA-256 over a line, which holds the hash of the line before it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash(pub(crate) [u8; 32]);

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// 1 for the first of a log, one more for each.
    pub number: u64,
    /// Unix milliseconds by the server's clock.
    pub at_ms: u64,
    /// The server that keeps this log.
    pub server: String,
    /// A noun and a verb: `entry.create`.
    pub act: String,
    /// Who: an operator, a node, or `ca`.
    pub by: String,
    /// Whom or what it concerns.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What else is to be known, by the kind of act.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub detail: Map<String, Value>,
    /// The hash of the line before; zeros for the first.
    pub previous: Hash,
}

impl Record {
    /// The record of an act, as the line after one whose hash is `previous`.
    pub fn new(act: Act, number: u64, at_ms: u64, server: &str, previous: Hash) -> Self {
        Self {
            number,
            at_ms,
            server: server.to_owned(),
            act: act.act.to_owned(),
            by: act.by,
            subject: act.subject,
            outcome: act.outcome,
            detail: act.detail,
            previous,
        }
    }

    /// The line with its end, and its hash.
    pub fn to_line(&self) -> Result<(String, Hash), Error> {
        let mut line = serde_json::to_string(self)
            .map_err(|error| Error::Protocol(format!("audit record: {error}")))?;
        // The brace that closes the object comes after the hash.
        line.pop();
        let hash = Hash(sha256(line.as_bytes()));
        line.push_str(SEAL);
        line.push_str(&hash.to_string());
        line.push_str("\"}\n");
        Ok((line, hash))
    }

    /// Reads a line without its end, and its hash, which fits it; says what is wrong with it.
    pub fn from_line(line: &[u8]) -> Result<(Self, Hash), String> {
        let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
        let (body, rest) = text.rsplit_once(SEAL).ok_or("it does not end in a hash")?;
        let written: Hash = rest
            .strip_suffix("\"}")
            .ok_or("it does not end in a hash")?
            .parse()
            .map_err(|_| "its hash is malformed".to_owned())?;
        let hash = Hash(sha256(body.as_bytes()));
        if hash != written {
            return Err("its hash does not fit its content: it was changed".to_owned());
        }
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Ok((record, hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| Error::invalid("hash", "write 64 lower-case hexadecimal digits"))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let act = Act::done("entry.create", "uid:0", "spiffe://example.org/web")
            .with("note", ",\"hash\":\"aa\"}\n");
        Record::new(act, 3, 5, "ca", Hash([7; 32]))
    }

    #[test]
    fn a_line_reads_back_and_no_byte_of_it_can_change() {
        let (line, hash) = record().to_line().unwrap();
        assert_eq!(line.matches('\n').count(), 1, "one line, whatever it says");
        let bytes = line.trim_end().as_bytes();
        let (read, again) = Record::from_line(bytes).unwrap();
        assert_eq!((read.number, again), (3, hash));
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(Record::from_line(&changed).is_err(), "byte {at}");
        }
    }
}
