//! A set of policies that was read whole, and what it answers.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::document::{Document, Spec};
use crate::entry::{Entry, Pairing, Remote, Workload};
use crate::model::{Direction, Kind, PolicyInfo, RuleInfo, RuleRef};
use crate::{compile, pairing, read};

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
pub struct PolicySet {
    specs: Vec<Spec>,
    policies: Vec<PolicyInfo>,
    rules: Vec<RuleInfo>,
    cidrs: BTreeSet<IpNet>,
}

impl PolicySet {
    /// Reads all documents of all sources, or none of them.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, in the order of sources, lines and columns.
    pub fn read(sources: Vec<Source>) -> Result<Self, Vec<ReadError>> {
        let mut set = Self::default();
        let mut errors = Vec::new();
        let mut names = HashMap::new();
        for Source { name: file, text } in &sources {
            let mut found = Vec::new();
            match read::documents(file, text) {
                Ok(documents) => {
                    for document in documents {
                        found.extend(repeated(&mut names, file, &document));
                        set.add(file, document);
                    }
                }
                Err(errors) => found = errors,
            }
            found.sort_by_key(|error| (error.line, error.column));
            errors.append(&mut found);
        }
        if errors.is_empty() {
            Ok(set)
        } else {
            Err(errors)
        }
    }

    fn add(&mut self, file: &str, document: Document) {
        let Document {
            kind,
            namespace,
            name,
            line,
            specs,
            ..
        } = document;
        let count = |direction| {
            let rules = specs.iter().flat_map(|spec| &spec.rules);
            rules.filter(|rule| rule.direction == direction).count()
        };
        self.policies.push(PolicyInfo {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
            ingress: count(Direction::Ingress),
            egress: count(Direction::Egress),
            file: file.to_owned(),
            line,
        });
        for mut spec in specs {
            for rule in &mut spec.rules {
                self.rules.push(RuleInfo {
                    kind,
                    namespace: namespace.clone(),
                    policy: name.clone(),
                    field: rule.field.clone(),
                    file: file.to_owned(),
                    line: rule.line,
                });
                // A text of 1 MiB holds fewer rules than 2^32, and so does all memory.
                rule.number = RuleRef(u32::try_from(self.rules.len()).unwrap_or(u32::MAX));
                self.cidrs.extend(rule.peers.cidrs());
            }
            self.specs.push(spec);
        }
    }

    /// Whether some policy selects this workload in this direction, so that what no rule allows is denied.
    #[must_use]
    pub fn selected(&self, local: &Workload, direction: Direction) -> bool {
        self.specs
            .iter()
            .any(|spec| spec.governs(direction) && spec.subject.matches(local))
    }

    /// What the gates of `local` enforce toward and from `remote`, in the directions in which `local` is selected.
    ///
    /// [`lookup`](crate::lookup) says which entry decides; where none does, the flow is denied.
    #[must_use]
    pub fn entries(&self, local: &Workload, remote: &Remote) -> Vec<Entry> {
        let matching: Vec<_> = self
            .specs
            .iter()
            .filter(|spec| spec.subject.matches(local))
            .flat_map(|spec| &spec.rules)
            .filter(|rule| rule.matches(local, remote))
            .collect();
        let of = |direction| {
            let rules = matching
                .iter()
                .copied()
                .filter(move |rule| rule.direction == direction);
            compile::entries(direction, rules)
        };
        let mut entries = of(Direction::Ingress);
        entries.append(&mut of(Direction::Egress));
        entries
    }

    /// Whether some flow between the two is allowed on both ends, so that proving them ahead pays.
    #[must_use]
    pub fn pairing(&self, local: &Workload, remote: &Workload) -> Pairing {
        pairing::between(self, local, remote)
    }

    /// Every prefix that tells unmanaged addresses apart, without repeats.
    ///
    /// These are all that rules name, exceptions included: an address's longest
    /// match among them decides what its rules are. If one of IPv6 would swallow
    /// IPv4 addresses in their mapped form, `0.0.0.0/0` is among them to keep
    /// these out.
    #[must_use]
    pub fn cidrs(&self) -> Vec<IpNet> {
        let mut cidrs = self.cidrs.clone();
        let mapped = IpNet::V6(Ipv6Net::new_assert(
            Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            96,
        ));
        if cidrs.iter().any(|net| net.contains(&mapped)) {
            cidrs.insert(IpNet::V4(Ipv4Net::default()));
        }
        cidrs.into_iter().collect()
    }

    /// Where a rule stands; `None` for a number that is not of this set.
    #[must_use]
    pub fn rule(&self, rule: RuleRef) -> Option<&RuleInfo> {
        self.rules.get((rule.0 as usize).checked_sub(1)?)
    }

    /// The documents, in the order in which they were read.
    #[must_use]
    pub fn policies(&self) -> &[PolicyInfo] {
        &self.policies
    }
}

/// Where a document of some kind, namespace and name was first seen.
type Names<'a> = HashMap<(Kind, Option<String>, String), (&'a str, usize)>;

fn repeated<'a>(names: &mut Names<'a>, file: &'a str, document: &Document) -> Option<ReadError> {
    let identity = (
        document.kind,
        document.namespace.clone(),
        document.name.clone(),
    );
    match names.entry(identity) {
        Vacant(entry) => {
            entry.insert((file, document.line));
            None
        }
        Occupied(entry) => {
            let (file_before, line_before) = entry.get();
            Some(ReadError {
                file: file.to_owned(),
                line: document.line,
                column: document.column,
                field: "metadata.name".to_owned(),
                message: format!(
                    "there is a {} {} already, at {file_before}:{line_before}: rename one of them",
                    document.kind, document.name
                ),
            })
        }
    }
}
