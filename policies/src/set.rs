//! A set of policies that was read whole, and what it answers.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use crate::entry::{Entry, Pairing, Remote, Workload};
use crate::model::{Direction, PolicyInfo, RuleInfo, RuleRef};

/// A text with the name that errors call it by: a path, or `policy/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is from.
    pub name: String,
    /// YAML or JSON; several documents are allowed.
    pub text: String,
}

/// One thing wrong with one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct ReadError {
    /// The source's name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// The field path, such as `spec.ingress[0].toPorts`; empty when the text is no YAML.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// All policies that are in force, read together.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {}

impl PolicySet {
    /// Reads all documents of all sources, or none of them.
    ///
    /// # Errors
    /// Everything that is wrong in any of them.
    pub fn read(_sources: Vec<Source>) -> Result<Self, Vec<ReadError>> {
        Ok(Self::default())
    }

    /// Whether some policy selects this workload in this direction, so that what no rule allows is denied.
    #[must_use]
    pub fn selected(&self, _local: &Workload, _direction: Direction) -> bool {
        false
    }

    /// What the gates of `local` enforce toward and from `remote`, in the directions in which `local` is selected.
    #[must_use]
    pub fn entries(&self, _local: &Workload, _remote: &Remote) -> Vec<Entry> {
        Vec::new()
    }

    /// Whether some flow between the two is allowed on both ends, so that proving them ahead pays.
    #[must_use]
    pub fn pairing(&self, _local: &Workload, _remote: &Workload) -> Pairing {
        Pairing {
            wanted: true,
            max_age: None,
        }
    }

    /// Every prefix that a rule names, exceptions included, without repeats.
    #[must_use]
    pub fn cidrs(&self) -> Vec<IpNet> {
        Vec::new()
    }

    /// Where a rule stands; `None` for a number that is not of this set.
    #[must_use]
    pub fn rule(&self, _rule: RuleRef) -> Option<&RuleInfo> {
        None
    }

    /// The documents, in the order in which they were read.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyInfo> {
        Vec::new()
    }
}
