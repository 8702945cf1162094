//! What helps to understand a failure, gathered before everything is taken away.

use std::path::Path;

use super::mesh::{Node, tail};

/// What is asked of each node's agent.
const QUESTIONS: &[&[&str]] = &[
    &["status"],
    &["endpoint", "list"],
    &["tunnel", "status"],
    &["pair", "list"],
    &["observe", "--verdict", "dropped"],
];

/// The state of these nodes and the ends of all logs.
pub fn gather(nodes: &[&Node], logs: &Path) -> String {
    let mut text = String::new();
    let mut add = |title: &str, body: &str| {
        text.push_str(&format!("--- {title}\n{}\n", body.trim_end()));
    };
    for node in nodes {
        for words in QUESTIONS {
            let title = format!("{}: handfast {}", node.name(), words.join(" "));
            match node.cli(words) {
                Ok(said) => add(
                    &title,
                    &tail(&format!("{}{}", said.stderr, said.stdout), 45),
                ),
                Err(error) => add(&title, &format!("{error:#}")),
            }
        }
    }
    if let Ok(entries) = std::fs::read_dir(logs) {
        for path in entries.flatten().map(|entry| entry.path()) {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            add(&path.display().to_string(), &tail(&log, 30));
        }
    }
    text
}
