//! How long what is signed lives: settings of each server, what they are usually, and what makes sense.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Lifetimes of what is signed, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lifetimes {
    /// Node SVIDs.
    pub node: u64,
    /// Proof SVIDs.
    pub proof: u64,
    /// Workload SVIDs, unless their entry says otherwise.
    pub workload: u64,
    /// Roots; rotated when a quarter of it is left.
    pub root: u64,
    /// Issuing CAs; rotated when half of it is over.
    pub issuing: u64,
    /// JWT-SVIDs, unless their entry says otherwise.
    pub jwt: u64,
    /// Keys that sign JWT-SVIDs; rotated when half of it is over.
    pub jwt_key: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            node: DAY,
            proof: DAY,
            workload: HOUR,
            root: 3650 * DAY,
            issuing: 90 * DAY,
            jwt: 5 * MINUTE,
            jwt_key: 30 * DAY,
        }
    }
}

impl Lifetimes {
    /// Sets one, in seconds.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if nobody can live with it: what ends before it can be replaced, or lives so long that an end
    /// says nothing.
    pub fn set(&mut self, what: Lifetime, seconds: u64) -> Result<(), Error> {
        let allowed = what.allowed();
        if !allowed.contains(&seconds) {
            return Err(Error::invalid(
                format!("lifetime of {}", what.title()),
                format!(
                    "from {} to {}; nothing was changed",
                    words(*allowed.start()),
                    words(*allowed.end())
                ),
            ));
        }
        let place = match what {
            Lifetime::Root => &mut self.root,
            Lifetime::Issuing => &mut self.issuing,
            Lifetime::JwtKey => &mut self.jwt_key,
            Lifetime::Node => &mut self.node,
            Lifetime::Proof => &mut self.proof,
            Lifetime::Workload => &mut self.workload,
            Lifetime::Jwt => &mut self.jwt,
        };
        *place = seconds;
        Ok(())
    }
}

/// One of the [`Lifetimes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Of roots.
    Root,
    /// Of issuing CAs.
    Issuing,
    /// Of keys that sign JWT-SVIDs.
    JwtKey,
    /// Of node SVIDs.
    Node,
    /// Of proof SVIDs.
    Proof,
    /// Of workload SVIDs.
    Workload,
    /// Of JWT-SVIDs.
    Jwt,
}

impl Lifetime {
    /// All of them, those that sign first.
    pub const ALL: [Self; 7] = [
        Self::Root,
        Self::Issuing,
        Self::JwtKey,
        Self::Node,
        Self::Proof,
        Self::Workload,
        Self::Jwt,
    ];

    fn allowed(self) -> RangeInclusive<u64> {
        match self {
            Self::Root => HOUR..=36_500 * DAY,
            Self::Issuing | Self::JwtKey => 10 * MINUTE..=3650 * DAY,
            Self::Node | Self::Proof => 10 * MINUTE..=30 * DAY,
            // As entries may say it themselves.
            Self::Workload | Self::Jwt => MINUTE..=DAY,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Root => "roots",
            Self::Issuing => "issuing CAs",
            Self::JwtKey => "JWT keys",
            Self::Node => "node SVIDs",
            Self::Proof => "proof SVIDs",
            Self::Workload => "workload SVIDs",
            Self::Jwt => "JWT-SVIDs",
        }
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::JwtKey => "jwt-key",
            Self::Node => "node",
            Self::Proof => "proof",
            Self::Workload => "workload",
            Self::Jwt => "jwt",
        })
    }
}

impl FromStr for Lifetime {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|what| what.to_string() == text);
        found.ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
            let shown: String = text.chars().take(64).collect();
            Error::invalid(
                format!("lifetime of {shown:?}"),
                format!("there are {}; nothing was changed", names.join(", ")),
            )
        })
    }
}

fn words(seconds: u64) -> String {
    match seconds {
        seconds if seconds % DAY == 0 => format!("{}d", seconds / DAY),
        seconds if seconds % HOUR == 0 => format!("{}h", seconds / HOUR),
        seconds => format!("{}m", seconds / MINUTE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_set_by_its_name_and_within_what_makes_sense() {
        let usual = Lifetimes::default();
        for what in Lifetime::ALL {
            assert_eq!(what.to_string().parse::<Lifetime>().unwrap(), what);
            let mut changed = usual;
            let least = *what.allowed().start();
            changed.set(what, least).unwrap();
            assert_ne!(changed, usual, "{what}");
            for bad in [0, least - 1, what.allowed().end() + 1] {
                let error = changed.set(what, bad).unwrap_err().to_string();
                assert!(error.contains(what.title()), "{error}");
                assert!(error.contains(" to "), "{error}");
            }
            let usual = serde_json::to_value(usual).unwrap();
            let name = what.to_string().replace('-', "_");
            assert!(what.allowed().contains(&usual[&name].as_u64().unwrap()));
        }
        let error = "svid".parse::<Lifetime>().unwrap_err().to_string();
        assert!(error.contains("jwt-key"), "{error}");
    }
}
