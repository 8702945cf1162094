//! One source of a set, read, with rules that keep their numbers from one version to the next.

use std::collections::HashMap;

use crate::document::Document;
use crate::model::{Direction, Kind, PolicyInfo, RuleInfo, RuleRef};
use crate::read;
use crate::set::{Note, ReadError, Source};

/// One source, read.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) source: Source,
    pub(crate) documents: Vec<Document>,
    pub(crate) rules: Vec<(RuleRef, RuleInfo)>,
    pub(crate) notes: Vec<Note>,
}

/// Hands out the numbers of rules.
pub(crate) struct Numbers {
    /// Those of rules that stood in sources which are read anew.
    pub(crate) free: HashMap<Place, RuleRef>,
    pub(crate) last: u32,
}

impl Numbers {
    fn of(&mut self, rule: &RuleInfo) -> RuleRef {
        self.free.remove(&rule.place()).unwrap_or_else(|| {
            // Texts of 1 MiB, one a millisecond, would take weeks to get there; then rules share the last number.
            self.last = self.last.saturating_add(1);
            RuleRef(self.last)
        })
    }
}

/// What makes a rule the same one in the next version of its document.
pub(crate) type Place = (Kind, Option<String>, String, String);

impl RuleInfo {
    pub(crate) fn place(&self) -> Place {
        let namespace = self.namespace.clone();
        (
            self.kind,
            namespace,
            self.policy.clone(),
            self.field.clone(),
        )
    }
}

impl File {
    pub(crate) fn read(source: Source, numbers: &mut Numbers) -> Result<Self, Vec<ReadError>> {
        let (mut documents, notes) = read::documents(&source.name, &source.text)?;
        let mut rules = Vec::new();
        for document in &mut documents {
            for spec in &mut document.specs {
                for rule in &mut spec.rules {
                    let info = RuleInfo {
                        kind: document.kind,
                        namespace: document.namespace.clone(),
                        policy: document.name.clone(),
                        field: rule.field.clone(),
                        file: source.name.clone(),
                        line: rule.line,
                        direction: rule.direction,
                        verdict: rule.verdict,
                        authentication: rule.auth,
                        is_implied: rule.is_implied,
                    };
                    rule.number = numbers.of(&info);
                    rules.push((rule.number, info));
                }
            }
        }
        Ok(Self {
            source,
            documents,
            rules,
            notes,
        })
    }
}

impl Document {
    pub(crate) fn info(&self, file: &str) -> PolicyInfo {
        let count = |direction| {
            let rules = self.specs.iter().flat_map(|spec| &spec.rules);
            rules
                .filter(|rule| rule.direction == direction && !rule.is_implied)
                .count()
        };
        PolicyInfo {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ingress: count(Direction::Ingress),
            egress: count(Direction::Egress),
            file: file.to_owned(),
            line: self.line,
        }
    }
}
