//! Backups of a CA: whole and as it was written, or refused.

use std::path::Path;

use handfast_ca::backup::{Examined, examine_from};
use handfast_ca::bundle::sha256;

pub fn run(data: &[u8]) {
    whole(data);
    // Most changes break the hash at the end: with one that fits, the lines themselves are read.
    let lines = match data.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => &data[..=last],
        None => return,
    };
    let without_end = match lines[..lines.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
    {
        Some(before) => &lines[..=before],
        None => return,
    };
    if let Some(read) = whole(&sealed(without_end)) {
        let rows: u64 = read.rows.values().sum();
        let lines = without_end.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert!(
            rows + (read.keys.len() as u64) < lines,
            "more than there are lines"
        );
    }
}

/// What is read is read to its last byte: without it nothing is.
fn whole(data: &[u8]) -> Option<Examined> {
    let place = Path::new("fuzz");
    let read = examine_from(place, data).ok()?;
    let end = data.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let mut line = data[..end].iter();
    let begin = line.rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if data[begin..].starts_with(b"{\"end\"") && end + 1 == data.len() {
        assert!(
            examine_from(place, &data[..end]).is_err(),
            "its end is not needed"
        );
    }
    Some(read)
}

fn sealed(lines: &[u8]) -> Vec<u8> {
    let count = lines.iter().filter(|byte| **byte == b'\n').count();
    let hash: String = sha256(lines)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let end = format!("{{\"end\":{count},\"sha256\":\"{hash}\"}}\n");
    [lines, end.as_bytes()].concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seeds: Vec<Vec<u8>> = [&[HEADER][..], &[HEADER, NODE, TOKEN, KEY]]
        .iter()
        .map(|lines| sealed((lines.join("\n") + "\n").as_bytes()))
        .collect();
    for seed in &seeds {
        assert!(whole(seed).is_some(), "an example that is refused");
    }
    seeds
}

const HEADER: &str = r#"{"handfast_backup":1,"trust_domain":"example.org","server":"ca","prefix_ranges":["10.0.0.0/8","fd00::/16"],"lifetimes_seconds":{"node":86400},"at_ms":1700000000000,"sequence":1700000000001,"schema":10}"#;
const NODE: &str =
    r#"{"table":"nodes","row":{"name":"web1","prefixes":"[\"10.1.0.0/24\"]","managed":1}}"#;
const TOKEN: &str =
    r#"{"table":"tokens","row":{"hash":{"base64":"AAECAw=="},"used_ms":1700000000000}}"#;
const KEY: &str = r#"{"key":"root-00.pem","pem":"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"}"#;
