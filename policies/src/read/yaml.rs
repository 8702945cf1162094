//! YAML as a tree that knows where everything stands.
//!
//! Written for files that may be hostile: the size and the depth are bounded,
//! an alias is an error (so a small file cannot become a large tree), and so are
//! duplicate keys, which other readers settle in silence, each its own way.

use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// The largest text that is read: 1 MiB, more than Kubernetes stores in one object.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// The deepest nesting that is read; policies need about ten.
pub(crate) const MAX_DEPTH: usize = 32;

/// A place in a text, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and the place where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar {
        text: String,
        /// Without quotes, so that `80`, `true` and `null` are no strings.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) text: String,
}

/// Why a text is no YAML that we read.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub(crate) at: Position,
    pub(crate) message: String,
}

impl Node {
    /// Whether it is written as nothing: empty, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, for errors.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { text, plain: true } if is_bool(text) => "a boolean",
            Value::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => "a number",
            Value::Scalar { .. } => "a string",
        }
    }
}

fn is_bool(text: &str) -> bool {
    matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
}

/// All documents of a text; empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, Malformed> {
    parse_within(text, MAX_BYTES)
}

/// The same of a text of at most so many bytes.
pub(crate) fn parse_within(text: &str, most: usize) -> Result<Vec<Node>, Malformed> {
    let start = Position { line: 1, column: 1 };
    if text.len() > most {
        let message = format!(
            "the text has {} bytes, and {most} is the most that is read: split it into several files",
            text.len()
        );
        return Err(Malformed { at: start, message });
    }
    let mut parser = Parser::new_from_str(text);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Malformed {
            at: position(error.marker()),
            message: format!("this is not YAML: {}", error.info()),
        })?;
        if let Event::DocumentEnd = event {
            documents.extend(builder.finish().filter(|node| !node.is_null()));
        } else {
            builder.event(event, span)?;
        }
    }
    Ok(documents)
}

/// The text of each document by itself, comments included; a text that is no YAML stays whole.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let mut starts = Vec::new();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((Event::DocumentStart(_), span)) => starts.push(span.start.index()),
            Ok(_) => {}
            Err(_) => return vec![text],
        }
    }
    let mut pieces = Vec::with_capacity(starts.len());
    let (mut rest, mut at) = (text, 0);
    // What stands before the first document belongs to it.
    for start in starts.into_iter().skip(1) {
        let (piece, remaining) = split_at_char(rest, start.saturating_sub(at));
        pieces.push(piece);
        (rest, at) = (remaining, start);
    }
    pieces.push(rest);
    pieces
}

fn split_at_char(text: &str, chars: usize) -> (&str, &str) {
    let at = text
        .char_indices()
        .nth(chars)
        .map_or(text.len(), |(at, _)| at);
    text.split_at_checked(at).unwrap_or((text, ""))
}

fn position(marker: &saphyr_parser::Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// Puts one document together from events, without recursion.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    done: Option<Node>,
}

/// A list or mapping that has not ended.
struct Open {
    at: Position,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        entries: Vec<(Key, Node)>,
        seen: HashSet<String>,
        key: Option<Key>,
    },
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Malformed> {
        let at = position(&span.start);
        let refuse = |message: &str| {
            Err(Malformed {
                at,
                message: message.to_owned(),
            })
        };
        match event {
            Event::Alias(_) => refuse("aliases (*name) are not read: write the value out"),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                refuse("tags (!name) are not read: write the value without one")
            }
            Event::Scalar(text, style, _, None) => {
                let plain = style == ScalarStyle::Plain;
                self.add(Node {
                    at,
                    value: Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                })
            }
            Event::SequenceStart(_, None) => self.open(at, OpenKind::List(Vec::new())),
            Event::MappingStart(_, None) => self.open(
                at,
                OpenKind::Map {
                    entries: Vec::new(),
                    seen: HashSet::new(),
                    key: None,
                },
            ),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, at: Position, kind: OpenKind) -> Result<(), Malformed> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(Malformed { at, message });
        }
        self.open.push(Open { at, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Malformed> {
        let Some(Open { at, kind }) = self.open.pop() else {
            return Ok(());
        };
        let value = match kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { entries, .. } => Value::Map(entries),
        };
        self.add(Node { at, value })
    }

    /// A finished value: an item, a key, a key's value, or the document itself.
    fn add(&mut self, node: Node) -> Result<(), Malformed> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.done = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, seen, key }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(new_key(node, seen)?),
            },
        }
        Ok(())
    }

    fn finish(&mut self) -> Option<Node> {
        self.open.clear();
        self.done.take()
    }
}

fn new_key(node: Node, seen: &mut HashSet<String>) -> Result<Key, Malformed> {
    let at = node.at;
    let Value::Scalar { text, .. } = node.value else {
        return Err(Malformed {
            at,
            message: format!("a key is a string, not {}", node.describe()),
        });
    };
    if !seen.insert(text.clone()) {
        let message = format!("the key {text:?} stands here twice: remove one");
        return Err(Malformed { at, message });
    }
    Ok(Key { at, text })
}
