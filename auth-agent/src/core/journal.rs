//! The snapshot as a file has it: whole in the first line, and what has changed since in those that follow.
//!
//! A line counts when it ends: an agent that dies while it writes one has not yet done what the line is about. The first
//! line comes with the file, in one step, and needs no end: so wrote agents that knew no others.

use super::delta::Delta;
use super::snapshot::Snapshot;

/// What a file held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// After all that counts.
    pub snapshot: Snapshot,
    /// Whether a last line was not written to its end.
    pub torn: bool,
}

/// A file that no agent has written so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct JournalError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl Journal {
    /// Reads a file's content.
    ///
    /// # Errors
    /// [`JournalError`] if a line is not what stands there, or does not go with the lines before.
    pub fn read(text: &[u8]) -> Result<Self, JournalError> {
        let mut lines = text.split(|byte| *byte == b'\n');
        // What follows the last end of a line: nothing, if nothing is torn.
        let torn = lines.next_back().unwrap_or_default();
        let Some(first) = lines.next() else {
            let snapshot = serde_json::from_slice(torn).map_err(at(1))?;
            let torn = false;
            return Ok(Self { snapshot, torn });
        };
        let mut snapshot: Snapshot = serde_json::from_slice(first).map_err(at(1))?;
        for (line, text) in (2..).zip(lines) {
            let delta: Delta = serde_json::from_slice(text).map_err(at(line))?;
            snapshot.apply(delta).map_err(at(line))?;
        }
        Ok(Self {
            snapshot,
            torn: !torn.is_empty(),
        })
    }

    /// The first line of a new file.
    ///
    /// # Errors
    /// As `serde_json` has them.
    pub fn whole(snapshot: &Snapshot) -> Result<Vec<u8>, serde_json::Error> {
        line(snapshot)
    }

    /// The next line of a file whose last one made it `before`; `None` if only a new file can say what is now.
    ///
    /// # Errors
    /// As `serde_json` has them.
    pub fn next(before: &Snapshot, now: &Snapshot) -> Result<Option<Vec<u8>>, serde_json::Error> {
        now.since(before).as_ref().map(line).transpose()
    }
}

fn line(of: &impl serde::Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(of)?;
    line.push(b'\n');
    Ok(line)
}

fn at<E: std::fmt::Display>(line: usize) -> impl Fn(E) -> JournalError {
    move |error| JournalError {
        line,
        message: error.to_string(),
    }
}
