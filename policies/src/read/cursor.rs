//! Walking a document field by field, keeping the path and gathering every error.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::read::shape::Schema;
use crate::read::typo;
use crate::read::yaml::{Key, Node, Position, Value};
use crate::set::{Note, ReadError};

/// More errors than this in one text are not listed.
const MAX_ERRORS: usize = 100;

/// More notes than this on one text are not listed.
const MAX_NOTES: usize = 1000;

/// The errors of one text so far, and what is no error but worth a word.
pub(crate) struct Report<'a> {
    file: &'a str,
    errors: RefCell<Vec<ReadError>>,
    notes: RefCell<Vec<Note>>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(file: &'a str) -> Self {
        Self {
            file,
            errors: RefCell::default(),
            notes: RefCell::default(),
        }
    }

    pub(crate) fn note(&self, at: Position, field: &str, message: impl Into<String>) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < MAX_NOTES {
            notes.push(Note {
                file: self.file.to_owned(),
                line: at.line,
                column: at.column,
                field: field.to_owned(),
                message: message.into(),
            });
        }
    }

    pub(crate) fn add(&self, at: Position, field: &str, message: impl Into<String>) {
        let mut errors = self.errors.borrow_mut();
        let message = match errors.len() {
            0..MAX_ERRORS => message.into(),
            MAX_ERRORS => "there are more errors, which are not listed".to_owned(),
            _ => return,
        };
        errors.push(ReadError {
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            field: field.to_owned(),
            message,
        });
    }

    pub(crate) fn into_parts(self) -> (Vec<ReadError>, Vec<Note>) {
        (self.errors.into_inner(), self.notes.into_inner())
    }
}

/// One node with the path that leads to it.
///
/// Every method that returns an `Option` has reported why when it returns `None`.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    pub(crate) report: &'a Report<'a>,
    pub(crate) node: &'a Node,
    pub(crate) path: String,
}

impl<'a> Cursor<'a> {
    pub(crate) fn document(report: &'a Report<'a>, node: &'a Node) -> Self {
        Self {
            report,
            node,
            path: String::new(),
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>) {
        self.report.add(self.node.at, &self.path, message);
    }

    /// Says something that is no error.
    pub(crate) fn note(&self, message: impl Into<String>) {
        self.report.note(self.node.at, &self.path, message);
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.error(format!("expected {what}, found {}", self.node.describe()));
        None
    }

    /// The fields of a mapping; those that the schema does not know are reported and left out.
    pub(crate) fn fields(&self, schema: &'static Schema) -> Option<Fields<'a>> {
        let mut fields = self.any_fields()?;
        fields.entries.retain(|name, (key, _)| {
            let known = schema.knows(name);
            if !known {
                self.report
                    .add(key.at, &child(&self.path, name), unknown(name, schema));
                fields.complete = false;
            }
            known
        });
        Some(fields)
    }

    /// The fields of a mapping whose keys are free.
    pub(crate) fn any_fields(&self) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return self.expected("a mapping");
        };
        let entries = entries
            .iter()
            .map(|(key, node)| (key.text.as_str(), (key, node)))
            .collect();
        Some(Fields {
            cursor: self.clone(),
            entries,
            complete: true,
        })
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> Option<Vec<Cursor<'a>>> {
        let Value::List(items) = &self.node.value else {
            return self.expected("a list");
        };
        let cursor = |(index, node)| Cursor {
            report: self.report,
            node,
            path: format!("{}[{index}]", self.path),
        };
        Some(items.iter().enumerate().map(cursor).collect())
    }

    /// A string: quoted, or plain and nothing else.
    pub(crate) fn string(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } if self.node.describe() == "a string" => Some(text),
            Value::Scalar { text, .. } if !text.is_empty() => {
                self.error(format!(
                    "expected a string, found {}: write \"{text}\" in quotes",
                    self.node.describe()
                ));
                None
            }
            Value::Scalar { .. } => {
                self.error("expected a string, found nothing: write \"\" for an empty one");
                None
            }
            _ => self.expected("a string"),
        }
    }

    /// Whether it is written without quotes.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.node.value, Value::Scalar { plain: true, .. })
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if self.node.describe() == "a boolean" => {
                Some(text.eq_ignore_ascii_case("true"))
            }
            _ => self.expected("true or false"),
        }
    }

    /// Reads every item of a list, so that each error is found, and has all or none.
    pub(crate) fn each<T>(&self, read: impl Fn(&Cursor<'a>) -> Option<T>) -> Option<Vec<T>> {
        let read: Vec<_> = self.items()?.iter().map(read).collect();
        read.into_iter().collect()
    }

    /// A string or a number, as it is written.
    pub(crate) fn word(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Some(text),
            _ => self.expected("a string or a number"),
        }
    }

    /// One of the words listed.
    pub(crate) fn choice<T: Copy>(&self, what: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let written = self.string()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == written) {
            return Some(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let meant = typo::closest(written, words.iter().copied())
            .map(|word| format!("; did you mean {word}?"))
            .unwrap_or_default();
        self.error(format!(
            "unknown {what} {written:?}: use {}{meant}",
            list(&words)
        ));
        None
    }
}

/// The fields of one mapping. A field that is written as nothing counts as absent.
pub(crate) struct Fields<'a> {
    pub(crate) cursor: Cursor<'a>,
    entries: BTreeMap<&'a str, (&'a Key, &'a Node)>,
    /// Whether every field was known. If not, one that seems to be missing may be there under another name.
    complete: bool,
}

impl<'a> Fields<'a> {
    /// A field that may be absent.
    pub(crate) fn get(&self, name: &str) -> Option<Cursor<'a>> {
        self.entries
            .get(name)
            .filter(|(_, node)| !node.is_null())
            .map(|(_, node)| Cursor {
                report: self.cursor.report,
                node,
                path: child(&self.cursor.path, name),
            })
    }

    /// A field that must be there.
    pub(crate) fn need(&self, name: &str, hint: &str) -> Option<Cursor<'a>> {
        let found = self.get(name);
        if found.is_none() {
            self.lacking(format!("{name} is missing: {hint}"));
        }
        found
    }

    /// Reports that something is not there, unless a field with a wrong name may have been meant for it.
    pub(crate) fn lacking(&self, message: impl Into<String>) {
        if self.complete {
            self.cursor.error(message);
        }
    }

    /// All fields with their keys, nothing counted as absent, in the order of their names.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'a Key, Cursor<'a>)> {
        self.entries.values().map(|(key, node)| {
            let path = child(&self.cursor.path, &key.text);
            (
                *key,
                Cursor {
                    report: self.cursor.report,
                    node,
                    path,
                },
            )
        })
    }

    /// Those of `names` that are there.
    pub(crate) fn present(&self, names: &[&'static str]) -> Vec<&'static str> {
        names
            .iter()
            .copied()
            .filter(|name| self.get(name).is_some())
            .collect()
    }
}

fn unknown(name: &str, schema: &Schema) -> String {
    if let Some((_, instead)) = schema.refused.iter().find(|(refused, _)| *refused == name) {
        return format!("handfast does not enforce {name}: {instead}");
    }
    let refused = schema.refused.iter().map(|(name, _)| *name);
    let known = schema.names();
    match typo::closest(name, known.iter().copied().chain(refused)) {
        Some(meant) => format!("unknown field; did you mean {meant}?"),
        None => format!("unknown field: use {}", list(&known)),
    }
}

fn child(path: &str, name: &str) -> String {
    let name = if name.chars().count() > 64 {
        name.chars().take(64).chain(std::iter::once('…')).collect()
    } else {
        name.to_owned()
    };
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}

/// `a, b or c`.
pub(crate) fn list(words: &[&str]) -> String {
    match words {
        [] => "none".to_owned(),
        [only] => (*only).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}
