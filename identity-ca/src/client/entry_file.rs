//! Entries in files: YAML or JSON, the same form out and in.

use std::fmt;
use std::time::Duration;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::admin::NewEntry;
use crate::Error;
use crate::model::{Entry, Labels};

/// The form of a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryForm {
    /// A YAML list.
    Yaml,
    /// A JSON list.
    Json,
}

/// Reads the text of a file. The error names the place and what is wrong there.
pub fn read_entries(text: &str) -> Result<Vec<NewEntry>, Error> {
    let lines = parse(text).map_err(|problem| Error::invalid("entries", problem))?;
    Ok(lines.into_iter().map(NewEntry::from).collect())
}

/// The text that reads back as these entries.
pub fn write_entries(entries: &[Entry], form: EntryForm) -> Result<String, Error> {
    let lines: Vec<Line> = entries.iter().map(Line::from).collect();
    let failed = |error: &dyn fmt::Display| Error::Protocol(format!("entries: {error}"));
    match form {
        EntryForm::Yaml => serde_norway::to_string(&lines).map_err(|error| failed(&error)),
        EntryForm::Json => serde_json::to_string_pretty(&lines)
            .map(|text| text + "\n")
            .map_err(|error| failed(&error)),
    }
}

/// An entry as it stands in a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
struct Line {
    spiffe_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    selectors: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Labels::is_empty",
        deserialize_with = "each_once"
    )]
    labels: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jwt_ttl_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hint: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    federates_with: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

/// Labels of which each has one value: of two it would be chance which is signed.
fn each_once<'de, D: Deserializer<'de>>(from: D) -> Result<Labels, D::Error> {
    struct EachOnce;

    impl<'de> Visitor<'de> for EachOnce {
        type Value = Labels;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("labels with their values")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
            let mut labels = Labels::new();
            while let Some((label, value)) = map.next_entry::<String, String>()? {
                if labels.contains_key(&label) {
                    let problem = format!("label {label} is there twice");
                    return Err(serde::de::Error::custom(problem));
                }
                labels.insert(label, value);
            }
            Ok(labels)
        }
    }

    from.deserialize_map(EachOnce)
}

/// JSON is read by its own reader: it is faster, and many exports are large.
fn parse(text: &str) -> Result<Vec<Line>, String> {
    if text.trim_start().starts_with('[') {
        match serde_json::from_str(text) {
            Ok(lines) => return Ok(lines),
            // It is JSON: what is wrong is said in its words.
            Err(error) if error.is_data() => return Err(error.to_string()),
            // YAML begins so too.
            Err(_) => {}
        }
    }
    serde_norway::from_str(text).map_err(|error| error.to_string())
}

impl From<Line> for NewEntry {
    fn from(line: Line) -> Self {
        let seconds = |ttl: Option<u32>| ttl.map(|ttl| Duration::from_secs(ttl.into()));
        Self {
            spiffe_id: line.spiffe_id,
            parent: line.parent_id,
            selectors: line.selectors,
            labels: line.labels,
            ttl: seconds(line.ttl_seconds),
            jwt_ttl: seconds(line.jwt_ttl_seconds),
            dns_names: line.dns_names,
            hint: line.hint,
            federates_with: line.federates_with,
            expires_at_ms: line.expires_at_ms,
        }
    }
}

impl From<&Entry> for Line {
    fn from(entry: &Entry) -> Self {
        Self {
            spiffe_id: entry.spiffe_id.to_string(),
            parent_id: entry.parent_id.as_ref().map(ToString::to_string),
            selectors: entry.selectors.iter().map(ToString::to_string).collect(),
            labels: entry.labels.clone(),
            ttl_seconds: entry.workload_ttl_seconds,
            jwt_ttl_seconds: entry.jwt_ttl_seconds,
            dns_names: entry.dns_names.clone(),
            hint: entry.hint.clone(),
            federates_with: entry
                .federates_with
                .iter()
                .map(ToString::to_string)
                .collect(),
            expires_at_ms: entry.expires_at_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_in_both_forms() {
        let line = Line {
            spiffe_id: "spiffe://example.org/web".to_owned(),
            parent_id: Some("spiffe://example.org/handfast/node/web1".to_owned()),
            selectors: vec!["unix:uid:1000".to_owned()],
            labels: Labels::from([("app".to_owned(), "yes".to_owned())]),
            ttl_seconds: Some(900),
            jwt_ttl_seconds: None,
            dns_names: vec!["web.example.org".to_owned()],
            hint: "internal".to_owned(),
            federates_with: vec!["partner.example".to_owned()],
            expires_at_ms: Some(4_000_000_000_000),
        };
        let lines = vec![line];
        let json = serde_json::to_string(&lines).unwrap();
        assert_eq!(parse(&json).unwrap(), lines);
        let yaml = serde_norway::to_string(&lines).unwrap();
        assert_eq!(parse(&yaml).unwrap(), lines);
    }

    #[test]
    fn a_label_that_is_there_twice_is_an_error_in_both_forms() {
        let yaml = "- spiffe_id: spiffe://example.org/web\n  selectors: [netns:web]\n  labels: {a: b, a: c}\n";
        let json = r#"[{"spiffe_id": "spiffe://example.org/web", "selectors": ["netns:web"],
            "labels": {"a": "b", "a": "c"}}]"#;
        for text in [yaml, json] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains("label a is there twice") || error.contains("duplicate"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_an_error() {
        let yaml = "- spiffe_id: spiffe://example.org/web\n  selectors: [netns:web]\n  ttl: 5\n";
        let json =
            r#"[{"spiffe_id": "spiffe://example.org/web", "selectors": ["netns:web"], "ttl": 5}]"#;
        for text in [yaml, json] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("unknown field `ttl`"), "{error}");
        }
        let flow = "[{spiffe_id: spiffe://example.org/web, selectors: [netns:web]}]";
        assert_eq!(
            parse(flow).unwrap().len(),
            1,
            "YAML begins with a bracket too"
        );
    }
}
