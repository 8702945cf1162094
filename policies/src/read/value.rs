//! Files of the tools (workloads, test cases): the same careful YAML, then plain types.

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value as Json};

use crate::read::cursor::Report;
use crate::read::yaml::{self, Node, Value};
use crate::set::{ReadError, Source};

/// The largest file of the tools: who runs them wrote it, and all that a large registry prints must fit.
const MAX_BYTES: usize = 64 << 20;

/// Reads the one document of a text.
pub(crate) fn document(source: &Source) -> Result<Node, ReadError> {
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let error = |line, column, message: String| ReadError {
        file: source.name.clone(),
        line,
        column,
        field: String::new(),
        message,
    };
    let mut documents = yaml::parse_within(text, MAX_BYTES)
        .map_err(|malformed| error(malformed.at.line, malformed.at.column, malformed.message))?
        .into_iter();
    match (documents.next(), documents.next()) {
        (Some(document), None) => Ok(document),
        (None, _) => Err(error(1, 1, "there is nothing in it".to_owned())),
        (Some(_), Some(second)) => {
            let message = "there is a second document: write one file for each".to_owned();
            Err(error(second.at.line, second.at.column, message))
        }
    }
}

/// A node as a plain type; an error names the node's place.
pub(crate) fn typed<T: DeserializeOwned>(
    file: &str,
    field: &str,
    node: &Node,
) -> Result<T, ReadError> {
    serde_json::from_value(json(node)).map_err(|error| {
        let report = Report::new(file);
        report.add(node.at, field, error.to_string());
        let (errors, _) = report.into_parts();
        errors.into_iter().next().unwrap_or_else(|| ReadError {
            file: file.to_owned(),
            line: node.at.line,
            column: node.at.column,
            field: field.to_owned(),
            message: error.to_string(),
        })
    })
}

/// Every item of a list as a plain type, each with its line.
pub(crate) fn typed_list<T: DeserializeOwned>(
    file: &str,
    field: &str,
    node: &Node,
) -> Result<Vec<(usize, T)>, Vec<ReadError>> {
    let Value::List(items) = &node.value else {
        return typed::<Vec<T>>(file, field, node)
            .map(|items| items.into_iter().map(|item| (node.at.line, item)).collect())
            .map_err(|error| vec![error]);
    };
    let mut read = Vec::new();
    let mut errors = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match typed(file, &format!("{field}[{index}]"), item) {
            Ok(value) => read.push((item.at.line, value)),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Ok(read)
    } else {
        Err(errors)
    }
}

/// The fields of a mapping, or an error that names what may be there.
pub(crate) fn fields<'a>(
    file: &str,
    node: &'a Node,
    known: &[&str],
) -> Result<Vec<(&'a str, &'a Node)>, Vec<ReadError>> {
    let error = |at: yaml::Position, field: &str, message: String| ReadError {
        file: file.to_owned(),
        line: at.line,
        column: at.column,
        field: field.to_owned(),
        message,
    };
    let Value::Map(entries) = &node.value else {
        let message = format!("expected a mapping, found {}", node.describe());
        return Err(vec![error(node.at, "", message)]);
    };
    let unknown: Vec<_> = entries
        .iter()
        .filter(|(key, _)| !known.contains(&key.text.as_str()))
        .map(|(key, _)| {
            let message = format!("unknown field: use {}", crate::read::cursor::list(known));
            error(key.at, &key.text, message)
        })
        .collect();
    if !unknown.is_empty() {
        return Err(unknown);
    }
    Ok(entries
        .iter()
        .map(|(key, node)| (key.text.as_str(), node))
        .collect())
}

/// A node as JSON; plain scalars are what YAML's core schema takes them for.
pub(crate) fn json(node: &Node) -> Json {
    match &node.value {
        Value::List(items) => Json::Array(items.iter().map(json).collect()),
        Value::Map(entries) => {
            let fields = entries
                .iter()
                .map(|(key, node)| (key.text.clone(), json(node)));
            Json::Object(fields.collect::<Map<_, _>>())
        }
        Value::Scalar { text, .. } => match node.describe() {
            "nothing" => Json::Null,
            "a boolean" => Json::Bool(text.eq_ignore_ascii_case("true")),
            "a number" => number(text).map_or_else(|| Json::String(text.clone()), Json::Number),
            _ => Json::String(text.clone()),
        },
    }
}

fn number(text: &str) -> Option<Number> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    text.parse().ok().and_then(Number::from_f64)
}
