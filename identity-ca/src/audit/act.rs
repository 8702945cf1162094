//! One thing that was done or refused.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longer texts are cut: what is foreign must not blow up the log.
const MAX_TEXT: usize = 1024;
/// Values beside the fixed ones.
const MAX_DETAILS: usize = 32;

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
