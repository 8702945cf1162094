//! One thing that was done or refused.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longer texts are cut: what is foreign must not blow up the log.
const MAX_TEXT: usize = 1024;
/// Values beside the fixed ones.
const MAX_DETAILS: usize = 32;

/// Every act that is written down: a noun and a verb.
pub const ACTS: &[&str] = &[
    "audit.repair",
    "audit.resume",
    "backup.finish-recovery",
    "backup.write",
    "bundle.set",
    "entry.create",
    "entry.delete",
    "entry.expire",
    "entry.import",
    "entry.reconcile",
    "entry.update",
    "federation.create",
    "federation.delete",
    "federation.fetch",
    "federation.refresh",
    "issuing.install",
    "issuing.request",
    "issuing.sign",
    "jwt.issue",
    "node.attest",
    "node.ban",
    "node.delete",
    "node.enforce",
    "node.evict",
    "node.join",
    "node.relax",
    "node.unban",
    "operator.add",
    "operator.call",
    "operator.remove",
    "policy.confirm",
    "policy.delete",
    "policy.put",
    "policy.reconcile",
    "policy.revert",
    "recovery.hear",
    "revocation.add",
    "revocation.lift",
    "rotation.abort",
    "rotation.activate",
    "rotation.force",
    "rotation.overtake",
    "rotation.prepare",
    "rotation.resume",
    "rotation.revive",
    "rotation.revoke",
    "rotation.start",
    "rotation.taint",
    "server.remove",
    "svid.issue",
    "token.create",
    "token.delete",
];

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused; the reason stands in the details.
    Refused,
}

/// What is written down.
#[derive(Debug, Clone)]
pub struct Act {
    pub(super) act: &'static str,
    pub(super) by: String,
    pub(super) subject: String,
    pub(super) outcome: Outcome,
    pub(super) detail: Map<String, Value>,
}

impl Act {
    /// Something that was done: `act` is a noun and a verb (`entry.create`),
    /// `by` an operator, a node or `ca`, `subject` whom or what it concerns.
    pub fn done(act: &'static str, by: impl Display, subject: impl Display) -> Self {
        Self {
            act,
            by: cut(&by.to_string()),
            subject: cut(&subject.to_string()),
            outcome: Outcome::Done,
            detail: Map::new(),
        }
    }

    /// Something that was asked for and refused.
    pub fn refused(
        act: &'static str,
        by: impl Display,
        subject: impl Display,
        why: impl Display,
    ) -> Self {
        let mut refused = Self::done(act, by, subject).with("refusal", why.to_string());
        refused.outcome = Outcome::Refused;
        refused
    }

    /// With one more value.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        if self.detail.len() < MAX_DETAILS {
            let value = match value.into() {
                Value::String(text) => Value::String(cut(&text)),
                other => other,
            };
            self.detail.insert(key.to_owned(), value);
        }
        self
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Texts of the form `noun.verb` in the sources below a folder.
    fn literals(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                literals(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.extend(text.split('"').map(ToOwned::to_owned));
            }
        }
    }

    #[test]
    fn every_act_of_the_source_can_be_asked_for() {
        let nouns: Vec<&str> = ACTS
            .iter()
            .filter_map(|act| act.split('.').next())
            .collect();
        let mut found = Vec::new();
        literals(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );
        let mut seen = 0;
        for text in &found {
            let Some((noun, verb)) = text.split_once('.') else {
                continue;
            };
            let plain = verb
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            if nouns.contains(&noun) && plain && verb != "json" && !verb.is_empty() {
                assert!(ACTS.contains(&text.as_str()), "{text}");
                seen += 1;
            }
        }
        assert!(seen > ACTS.len(), "{seen}");
    }
}
