//! Test cases for policies: flows, and what must become of them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::model::Authentication;
use crate::read::value;
use crate::set::{PolicySet, ReadError, Source};
use crate::tools::explain::explain;
use crate::tools::flow::{Flow, Outcome, decide};
use crate::tools::inventory::{self, Inventory};

/// A file of cases.
#[derive(Clone, Debug)]
pub struct Cases {
    /// The file's name.
    pub file: String,
    /// Paths of policies, as written: relative to the file.
    pub policies: Vec<String>,
    /// The path of the workloads, as written; `None` if they stand in the file itself.
    pub workloads: Option<String>,
    /// The workloads that stand in the file itself.
    pub inventory: Inventory,
    /// The cases.
    pub tests: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    name: String,
    line: usize,
    raw: RawCase,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: Option<String>,
    from: String,
    to: String,
    #[serde(default)]
    port: u16,
    protocol: Option<String>,
    expect: Expect,
    authentication: Option<Authentication>,
    rule: Option<String>,
}

/// What must become of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
}

/// How a case went.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// The case's name.
    pub name: String,
    /// The file's name.
    pub file: String,
    /// The case's line.
    pub line: usize,
    /// `None` if it went as it must; otherwise what is different, and why.
    pub failure: Option<String>,
}

impl Cases {
    /// Reads a file of cases.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn read(source: &Source) -> Result<Self, Vec<ReadError>> {
        let file = source.name.clone();
        let document = value::document(source).map_err(|error| vec![error])?;
        let mut cases = Self {
            file: file.clone(),
            policies: Vec::new(),
            workloads: None,
            inventory: Inventory::default(),
            tests: Vec::new(),
        };
        let known = ["policies", "workloads", "tests"];
        for (name, node) in value::fields(&file, &document, &known)? {
            let one = |error| vec![error];
            match (name, &node.value) {
                ("policies", _) => {
                    cases.policies = value::typed(&file, name, node).map_err(one)?;
                }
                ("workloads", crate::read::yaml::Value::List(_)) => {
                    cases.inventory = Inventory::read_list(&file, node)?;
                }
                ("workloads", _) => {
                    cases.workloads = Some(value::typed(&file, name, node).map_err(one)?);
                }
                _ => {
                    let raw: Vec<(usize, RawCase)> = value::typed_list(&file, name, node)?;
                    let case = |(line, raw): (usize, RawCase)| Case {
                        name: raw
                            .name
                            .clone()
                            .unwrap_or_else(|| format!("{} -> {}:{}", raw.from, raw.to, raw.port)),
                        line,
                        raw,
                    };
                    cases.tests = raw.into_iter().map(case).collect();
                }
            }
        }
        if cases.tests.is_empty() {
            return Err(vec![ReadError {
                file,
                line: document.at.line,
                column: document.at.column,
                field: "tests".to_owned(),
                message: "there is no case: list them with from, to, port and expect".to_owned(),
            }]);
        }
        Ok(cases)
    }

    /// Runs every case.
    #[must_use]
    pub fn run(&self, set: &PolicySet, inventory: &Inventory) -> Vec<Outcomes> {
        self.tests
            .iter()
            .map(|case| Outcomes {
                name: case.name.clone(),
                file: self.file.clone(),
                line: case.line,
                failure: case.run(set, inventory).err(),
            })
            .collect()
    }
}

impl Case {
    fn run(&self, set: &PolicySet, inventory: &Inventory) -> Result<(), String> {
        let raw = &self.raw;
        let protocol = inventory::protocol(raw.protocol.as_deref().unwrap_or("tcp"))?;
        let flow = Flow {
            from: inventory.end(&raw.from)?,
            to: inventory.end(&raw.to)?,
            protocol,
            port: raw.port,
        };
        let decision = decide(set, &flow);
        let passes = decision.outcome() != Outcome::Denied;
        let explanation = explain(set, &flow);
        let because = || {
            let ends = explanation.ends.iter();
            let ends: Vec<_> = ends
                .map(|end| format!("{} of {}: {}", end.direction, end.end, end.why))
                .collect();
            ends.join("; ")
        };
        if passes != (raw.expect == Expect::Allow) {
            let found = decision.outcome();
            return Err(format!("{flow} is {found}: {}", because()));
        }
        if let Some(wanted) = raw.authentication
            && decision.authentication() != Some(wanted)
        {
            let found = match decision.authentication() {
                Some(found) => format!("{found:?}").to_lowercase(),
                None => "left to the agent's default".to_owned(),
            };
            let wanted = format!("{wanted:?}").to_lowercase();
            return Err(format!(
                "authentication is {found}, not {wanted}: {}",
                because()
            ));
        }
        if let Some(wanted) = &raw.rule {
            let rules = explanation.ends.iter().filter_map(|end| end.rule.as_ref());
            let named = |rule: &crate::RuleInfo| format!("{} {}", rule.policy, rule.field);
            if !rules.clone().any(|rule| named(rule) == *wanted) {
                return Err(format!("{wanted} does not decide: {}", because()));
            }
        }
        Ok(())
    }
}

/// The outcomes as JUnit XML, one test suite a file.
#[must_use]
pub fn junit(suites: &[(String, Vec<Outcomes>)]) -> String {
    let all = || suites.iter().flat_map(|(_, outcomes)| outcomes);
    let failed = |outcomes: &[Outcomes]| outcomes.iter().filter(|o| o.failure.is_some()).count();
    let failures: usize = suites.iter().map(|(_, outcomes)| failed(outcomes)).sum();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        xml,
        "<testsuites name=\"handfast policy test\" tests=\"{}\" failures=\"{failures}\" errors=\"0\">",
        all().count()
    );
    for (file, outcomes) in suites {
        let file = escape(file);
        let _ = writeln!(
            xml,
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"0\">",
            outcomes.len(),
            failed(outcomes)
        );
        for outcome in outcomes {
            let name = escape(&outcome.name);
            let line = outcome.line;
            let _ = write!(
                xml,
                "    <testcase classname=\"{file}\" name=\"{name}\" file=\"{file}\" line=\"{line}\""
            );
            let _ = match &outcome.failure {
                None => writeln!(xml, "/>"),
                Some(failure) => writeln!(
                    xml,
                    ">\n      <failure message=\"{}\"/>\n    </testcase>",
                    escape(failure)
                ),
            };
        }
        let _ = writeln!(xml, "  </testsuite>");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// Text for XML and HTML; characters that XML 1.0 does not allow at all become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
