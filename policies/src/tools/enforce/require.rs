//! The text of a policy with its audited rules required.

use crate::model::Authentication;
use crate::read::yaml::{self, Node, Position, Value};
use crate::set::{PolicySet, ReadError, Source};

/// The same text with every audited rule required, and nothing else changed, comments and layout included.
///
/// # Errors
/// The text is not read, or what comes out does not say exactly that.
pub fn require(source: &Source) -> Result<String, Vec<ReadError>> {
    let before = PolicySet::read(vec![source.clone()])?;
    let documents = yaml::parse(&source.text).map_err(|error| {
        vec![ReadError {
            file: source.name.clone(),
            line: error.at.line,
            column: error.at.column,
            field: String::new(),
            message: error.message,
        }]
    })?;
    let mut places = Vec::new();
    for document in &documents {
        audited(document, &mut places);
    }
    let text = replaced(&source.text, &places);
    let after = PolicySet::read(vec![Source {
        name: source.name.clone(),
        text: text.clone(),
    }])?;
    let wanted = before.rules().map(|(_, rule)| {
        let mut rule = rule.clone();
        if rule.authentication == Some(Authentication::Audit) {
            rule.authentication = Some(Authentication::Required);
        }
        rule
    });
    if wanted.eq(after.rules().map(|(_, rule)| rule.clone())) {
        Ok(text)
    } else {
        Err(vec![ReadError {
            file: source.name.clone(),
            line: 1,
            column: 1,
            field: String::new(),
            message: "this text cannot be changed safely: write `mode: required` by hand"
                .to_owned(),
        }])
    }
}

/// Where `authentication.mode` says audit.
fn audited(node: &Node, places: &mut Vec<Position>) {
    match &node.value {
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| audited(item, places)),
        Value::Map(fields) => {
            for (key, value) in fields {
                match &value.value {
                    Value::Map(inner) if key.text == "authentication" => {
                        places.extend(inner.iter().filter_map(|(key, value)| {
                            let says_audit = matches!(&value.value, Value::Scalar { text, .. } if text == "audit");
                            (key.text == "mode" && says_audit).then_some(value.at)
                        }));
                    }
                    _ => audited(value, places),
                }
            }
        }
    }
}

/// The first `audit` at or after each place becomes `required`.
fn replaced(text: &str, places: &[Position]) -> String {
    const WORD: &str = "audit";
    let mut out = String::with_capacity(text.len() + places.len() * 3);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let mut columns: Vec<usize> = places
            .iter()
            .filter(|place| place.line == number + 1)
            .map(|place| place.column - 1)
            .collect();
        columns.sort_unstable();
        let mut rest = line;
        let mut passed = 0;
        for column in columns {
            let at = rest
                .char_indices()
                .nth(column.saturating_sub(passed))
                .map_or(rest.len(), |(at, _)| at);
            let (head, tail) = rest.split_at(at);
            out.push_str(head);
            passed += head.chars().count();
            // A quote may stand before the word.
            match tail.find(WORD) {
                Some(found) if found <= 1 => {
                    let (quote, word) = tail.split_at(found);
                    out.push_str(quote);
                    out.push_str("required");
                    rest = word.get(WORD.len()..).unwrap_or_default();
                    passed += found + WORD.len();
                }
                _ => rest = tail,
            }
        }
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{POLICY, source};
    use super::*;

    #[test]
    fn only_the_modes_of_audited_rules_change() {
        let text = require(&source(&POLICY.replace('é', "e"))).unwrap();
        assert_eq!(
            text,
            POLICY
                .replace('é', "e")
                .replace("mode: audit   #", "mode: required   #")
                .replace("mode: \"audit\"", "mode: \"required\"")
        );
        assert_eq!(require(&source(&text)).unwrap(), text);
    }

    #[test]
    fn columns_are_characters_not_bytes() {
        let text = replaced("é: audit\n", &[Position { line: 1, column: 4 }]);
        assert_eq!(text, "é: required\n");
    }
}
