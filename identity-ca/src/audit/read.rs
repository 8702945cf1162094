//! Reading a log: filtered for people, and checked link by link.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::file::{Position, broken, files, first_number};
use super::line::{MAX_LINE, Record};
use crate::Error;

/// A file that ends earlier than what is asked for is not read: by so much, since clocks are set back too.
const JUMP_MS: u64 = 3_600_000;

/// What is asked for; all of it must fit, none asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Not before (unix milliseconds).
    pub since_ms: Option<u64>,
    /// Not after (unix milliseconds).
    pub until_ms: Option<u64>,
    /// The act, or its noun: `entry` fits `entry.create`.
    pub act: Option<String>,
    /// Part of who did it.
    pub by: Option<String>,
    /// Part of whom it concerns.
    pub subject: Option<String>,
    /// Refusals alone.
    pub refused: bool,
}

impl Filter {
    /// Does a record fit?
    pub fn fits(&self, record: &Record) -> bool {
        let has = |wanted: &Option<String>, text: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| text.contains(wanted.as_str()))
        };
        let act = self.act.as_ref().is_none_or(|act| {
            record
                .act
                .strip_prefix(act.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        act && self.since_ms.is_none_or(|since| record.at_ms >= since)
            && self.until_ms.is_none_or(|until| record.at_ms <= until)
            && has(&self.by, &record.by)
            && has(&self.subject, &record.subject)
            && (!self.refused || record.outcome == super::Outcome::Refused)
    }
}

/// A log whose every link holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Lines.
    pub entries: u64,
    /// Of the last line.
    pub head: super::Hash,
    /// Bytes after the last whole line: a line that a crash cut short.
    pub torn_bytes: u64,
}

/// Checks a whole log; the error names the file and the line where the chain
/// breaks. With `heads` (the number of a line, and its hash) a log that was
/// cut off or written anew behind one of them shows too.
pub fn verify(dir: &Path, heads: &[Position]) -> Result<Verified, Error> {
    let mut at = Position::default();
    let mut left: Vec<Position> = heads
        .iter()
        .copied()
        .filter(|head| head.entries > 0)
        .collect();
    left.sort_by_key(|head| head.entries);
    let mut left = left.into_iter().peekable();
    let mut torn = 0;
    for path in files(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if torn > 0 || first_number(&name) != Some(at.entries + 1) {
            return Err(broken(
                &path,
                &format!(
                    "line {} should come first: what stood before it is missing",
                    at.entries + 1
                ),
            ));
        }
        torn = each_line(&path, |number, line| {
            let here = |problem: &str| broken(&path, &format!("line {number}: {problem}"));
            let (record, hash) = Record::from_line(line).map_err(|problem| here(&problem))?;
            if record.number != at.entries + 1 {
                return Err(here(&format!(
                    "it is number {} where {} should be: lines were removed or put in",
                    record.number,
                    at.entries + 1
                )));
            }
            if record.previous != at.hash {
                return Err(here(
                    "it does not continue the line before it: one of them was changed",
                ));
            }
            at = Position {
                entries: record.number,
                hash,
            };
            while let Some(head) = left.next_if(|head| head.entries <= at.entries) {
                if head.entries == at.entries && head.hash != at.hash {
                    return Err(here(
                        "a signed head says otherwise: the log was written anew",
                    ));
                }
            }
            Ok(())
        })?;
    }
    if let Some(head) = left.next() {
        return Err(broken(
            dir,
            &format!(
                "it ends at line {}, but a signed head knows line {}: its end was cut off",
                at.entries, head.entries
            ),
        ));
    }
    Ok(Verified {
        entries: at.entries,
        head: at.hash,
        torn_bytes: torn,
    })
}

/// Hands out every record that fits, oldest first, until `take` says no.
pub fn read(
    dir: &Path,
    filter: &Filter,
    mut take: impl FnMut(Record) -> bool,
) -> Result<(), Error> {
    let mut going = true;
    let mut paths = files(dir)?.into_iter().peekable();
    while let Some(path) = paths.next() {
        if !going {
            break;
        }
        let over = |next| Some(begins(next)?.saturating_add(JUMP_MS) < filter.since_ms?);
        if paths.peek().and_then(|next| over(next)).unwrap_or(false) {
            continue;
        }
        each_line(&path, |number, line| {
            if going {
                let (record, _) = Record::from_line(line)
                    .map_err(|problem| broken(&path, &format!("line {number}: {problem}")))?;
                if filter.fits(&record) {
                    going = take(record);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// When the first line of a file was written; none if it has no whole one.
fn begins(path: &Path) -> Option<u64> {
    let file = File::open(path).ok()?;
    let mut line = Vec::new();
    let mut start = BufReader::new(file).take(MAX_LINE as u64);
    start.read_until(b'\n', &mut line).ok()?;
    let (record, _) = Record::from_line(line.strip_suffix(b"\n")?).ok()?;
    Some(record.at_ms)
}

/// Goes through the whole lines of a file, numbered from 1; returns how many bytes follow the last.
fn each_line(
    path: &Path,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Error>,
) -> Result<u64, Error> {
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = (&mut reader)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(Error::io("cannot read", path))?;
        match line.split_last() {
            None => return Ok(0),
            Some((b'\n', whole)) => each(number, whole)?,
            Some(_) if length > MAX_LINE => {
                return Err(broken(path, &format!("line {number}: it is too long")));
            }
            Some(_) => return Ok(length as u64),
        }
    }
    Ok(0)
}
