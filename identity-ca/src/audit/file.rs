//! The files of a log: appended to, never rewritten, a new one when one is long.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::line::{Hash, MAX_LINE, Record};
use crate::Error;

/// A file that is longer gets a successor.
const LONG: u64 = 64 << 20;
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

/// Where a log stands: how many lines it has, and the hash of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Lines so far, which is the number of the last.
    pub entries: u64,
    /// Of the last line; zeros for none.
    pub hash: Hash,
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    /// Up to here the file holds whole, durable lines.
    length: u64,
    pub(super) position: Position,
}

impl Log {
    /// Opens the log in `dir`, which is made if it is missing. A line that a
    /// crash has cut short was never answered for, and is taken away: how
    /// many bytes, is the second value.
    pub(super) fn open(dir: &Path) -> Result<(Self, u64), Error> {
        if !dir.exists() {
            DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .map_err(Error::io("cannot create", dir))?;
        }
        let Some(last) = files(dir)?.pop() else {
            return Ok((Self::start(dir, Position::default())?, 0));
        };
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&last)
            .map_err(Error::io("cannot open", &last))?;
        let (whole, torn, line) = tail(&mut file, &last)?;
        if torn > 0 {
            file.set_len(whole)
                .and_then(|()| file.sync_all())
                .map_err(Error::io("cannot repair", &last))?;
        }
        let position = match line {
            Some(line) => {
                let (record, hash) = Record::from_line(&line)
                    .map_err(|problem| broken(&last, &format!("its last line: {problem}")))?;
                Position {
                    entries: record.number,
                    hash,
                }
            }
            // A file without a line: its name says how far the one before it went.
            None => before(dir, &last)?,
        };
        let log = Self {
            dir: dir.to_owned(),
            path: last,
            file,
            length: whole,
            position,
        };
        Ok((log, torn))
    }

    fn start(dir: &Path, position: Position) -> Result<Self, Error> {
        let path = dir.join(format!("{PREFIX}{:020}{SUFFIX}", position.entries + 1));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("cannot create", &path))?;
        File::open(dir)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("cannot write", dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            path,
            file,
            length: 0,
            position,
        })
    }

    /// Appends whole lines and makes them durable: all of them or none.
    pub(super) fn append(&mut self, lines: &[u8], position: Position) -> Result<(), Error> {
        if self.length >= LONG {
            *self = Self::start(&self.dir, self.position)?;
        }
        // What an earlier failure left behind must not stand between lines.
        let written = self
            .file
            .set_len(self.length)
            .and_then(|()| self.file.write_all(lines))
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Best effort: the next append does it again.
            let _ = self.file.set_len(self.length);
            return Err(Error::io("cannot write the audit log", &self.path)(error));
        }
        self.length += lines.len() as u64;
        self.position = position;
        Ok(())
    }
}

/// The files of a log, oldest first.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let content = fs::read_dir(dir).map_err(Error::io("cannot read", dir))?;
    let mut files = Vec::new();
    for entry in content {
        let name = entry.map_err(Error::io("cannot read", dir))?.file_name();
        if first_number(&name.to_string_lossy()).is_some() {
            files.push(dir.join(name));
        }
    }
    // Numbers have leading zeros, so the order of names is theirs.
    files.sort();
    Ok(files)
}

/// The number of the first line of a file, by its name.
pub(super) fn first_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Where the log stood before a file that has no line yet.
fn before(dir: &Path, empty: &Path) -> Result<Position, Error> {
    let mut earlier = files(dir)?;
    earlier.retain(|path| path != empty);
    let Some(last) = earlier.pop() else {
        return Ok(Position::default());
    };
    let mut file = File::open(&last).map_err(Error::io("cannot open", &last))?;
    let (_, torn, line) = tail(&mut file, &last)?;
    let line = line
        .filter(|_| torn == 0)
        .ok_or_else(|| broken(&last, "it does not end in a whole line"))?;
    let (record, hash) = Record::from_line(&line)
        .map_err(|problem| broken(&last, &format!("its last line: {problem}")))?;
    Ok(Position {
        entries: record.number,
        hash,
    })
}

/// How many bytes are whole lines, how many come after them, and the last whole line.
fn tail(file: &mut File, path: &Path) -> Result<(u64, u64, Option<Vec<u8>>), Error> {
    let failed = |error| Error::io("cannot read", path)(error);
    let length = file.metadata().map_err(failed)?.len();
    let window = length.min(2 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(length - window))
        .map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes).map_err(failed)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
        if window < length {
            return Err(broken(path, "it ends in something that is no line"));
        }
        return Ok((0, length, None));
    };
    let torn = (bytes.len() - end - 1) as u64;
    let whole = bytes.get(..end).unwrap_or_default();
    let start = whole
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let line = whole.get(start..).unwrap_or_default().to_vec();
    Ok((length - torn, torn, Some(line)))
}

pub(super) fn broken(path: &Path, problem: &str) -> Error {
    Error::AuditBroken {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}
