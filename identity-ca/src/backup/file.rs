//! The file: written beside its place and renamed there, read as a whole before anything is done with it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Header;
use super::rows::Row;
use crate::Error;
use crate::audit::Hash;
use crate::authority::SealedKey;

/// A line is a row: a policy document is the longest (see the registry).
const MAX_LINE: u64 = 8 << 20;
/// 100,000 entries have 50 MB.
const MAX_FILE: u64 = 4 << 30;

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: u64,
    sha256: Hash,
}

/// A private key under the backup's passphrase.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyLine {
    key: String,
    pem: String,
}

/// Writes a backup; without [`Writer::finish`] nothing appears at its place.
pub struct Writer {
    place: PathBuf,
    draft: PathBuf,
    file: BufWriter<File>,
    digest: Context,
    lines: u64,
    finished: bool,
}

impl Writer {
    /// Begins a file that must not be there yet.
    pub fn create(place: &Path) -> Result<Self, Error> {
        if place.exists() {
            return Err(problem(
                place,
                "is there already and was left as it is; give another name",
            ));
        }
        let mut draft = place.as_os_str().to_owned();
        draft.push(format!(".draft-{:016x}", rand::random::<u64>()));
        let draft = PathBuf::from(draft);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(Error::io("cannot create", &draft))?;
        Ok(Self {
            place: place.to_owned(),
            draft,
            file: BufWriter::new(file),
            digest: Context::new(&SHA256),
            lines: 0,
            finished: false,
        })
    }

    /// Takes whole lines, as the CA sends them.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), Error> {
        self.digest.update(lines);
        self.lines += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.file
            .write_all(lines)
            .map_err(Error::io("cannot write", &self.draft))
    }

    /// Ends the file and puts it into its place. Gives its size in bytes.
    pub fn finish(mut self) -> Result<u64, Error> {
        let digest = self.digest.clone().finish();
        let hash = <[u8; 32]>::try_from(digest.as_ref())
            .map_err(|_| Error::Crypto("SHA-256 has 32 bytes".to_owned()))?;
        let end = End {
            end: self.lines,
            sha256: Hash(hash),
        };
        let line = to_line(&end)?;
        let failed = |error| Error::io("cannot write", &self.draft)(error);
        self.file.write_all(line.as_bytes()).map_err(failed)?;
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        fs::rename(&self.draft, &self.place).map_err(Error::io("cannot create", &self.place))?;
        self.finished = true;
        let folder = match self.place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("cannot write", folder))?;
        let size = fs::metadata(&self.place).map_err(Error::io("cannot read", &self.place))?;
        Ok(size.len())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // What was not finished is of no use to anybody.
            let _ = fs::remove_file(&self.draft);
        }
    }
}

/// Adds the keys in a CA's folder, each sealed by the passphrase in a file
/// (which opens those that are sealed already). Gives how many there are.
pub fn write_keys(to: &mut Writer, dir: &Path, passphrase_file: &Path) -> Result<usize, Error> {
    let keys = SealedKey::all(dir, passphrase_file)?;
    for key in &keys {
        let line = KeyLine {
            key: key.name.clone(),
            pem: key.pem.clone(),
        };
        to.write(to_line(&line)?.as_bytes())?;
    }
    Ok(keys.len())
}

/// What a whole backup holds, but its rows.
pub(super) struct Content {
    pub(super) header: Header,
    pub(super) keys: Vec<SealedKey>,
}

/// Reads a backup from its first to its last byte, and hands out its rows. The caller must do nothing that lasts
/// before this has returned: only the end says that the file is whole.
pub(super) async fn read<F>(path: &Path, mut row: impl FnMut(Row) -> F) -> Result<Content, Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut lines = open(path)?;
    while let Some(next) = lines.row()? {
        row(next).await?;
    }
    Ok(lines.content)
}

/// Opens a backup and reads what it is of.
pub(super) fn open(path: &Path) -> Result<Lines<BufReader<File>>, Error> {
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    let length = file
        .metadata()
        .map_err(Error::io("cannot read", path))?
        .len();
    if length > MAX_FILE {
        return Err(problem(path, "is too long for a backup"));
    }
    Lines::begin(path, BufReader::new(file))
}

/// The lines of a backup, read one by one.
pub(super) struct Lines<R> {
    path: PathBuf,
    reader: R,
    digest: Context,
    /// How many were read.
    number: u64,
    /// What the lines before were, rows left out.
    pub(super) content: Content,
}

impl<R: BufRead> Lines<R> {
    /// Reads the first line; `path` is where errors say that it comes from.
    pub(super) fn begin(path: &Path, mut reader: R) -> Result<Self, Error> {
        let line = line(path, &mut reader)?;
        let header: Header = serde_json::from_slice(whole(path, &line)?).map_err(|_| {
            problem(
                path,
                "is not a backup of a handfast CA. Nothing was restored",
            )
        })?;
        if header.handfast_backup != super::VERSION {
            let said = format!(
                "is of version {}, this program reads {}. Nothing was restored",
                header.handfast_backup,
                super::VERSION
            );
            return Err(problem(path, &said));
        }
        let mut digest = Context::new(&SHA256);
        digest.update(&line);
        Ok(Self {
            path: path.to_owned(),
            reader,
            digest,
            number: 1,
            content: Content {
                header,
                keys: Vec::new(),
            },
        })
    }

    /// The next row; none when the end has come and says that all before it is as it was written.
    pub(super) fn row(&mut self) -> Result<Option<Row>, Error> {
        loop {
            let line = line(&self.path, &mut self.reader)?;
            let text = whole(&self.path, &line)?;
            let number = self.number;
            self.number += 1;
            let wrong = |error: serde_json::Error| {
                problem(&self.path, &format!("line {}: {error}", number + 1))
            };
            if text.starts_with(b"{\"end\"") {
                let end: End = serde_json::from_slice(text).map_err(wrong)?;
                let digest = self.digest.clone().finish();
                if digest.as_ref() != end.sha256.0 || end.end != number {
                    return Err(problem(
                        &self.path,
                        "was changed after it was written: its hash does not fit. Nothing was restored",
                    ));
                }
                let rest = self.reader.fill_buf();
                return match rest.map_err(Error::io("cannot read", &self.path))? {
                    [] => Ok(None),
                    _ => Err(problem(
                        &self.path,
                        "goes on behind its end. Nothing was restored",
                    )),
                };
            }
            self.digest.update(&line);
            if !text.starts_with(b"{\"key\"") {
                return Ok(Some(serde_json::from_slice(text).map_err(wrong)?));
            }
            let key: KeyLine = serde_json::from_slice(text).map_err(wrong)?;
            self.content.keys.push(SealedKey {
                name: key.key,
                pem: key.pem,
            });
        }
    }
}

/// A line with its end, if that came. Keys are among the lines.
fn line(path: &Path, reader: &mut impl BufRead) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut line = Zeroizing::new(Vec::new());
    reader
        .take(MAX_LINE)
        .read_until(b'\n', &mut line)
        .map_err(Error::io("cannot read", path))?;
    Ok(line)
}

fn whole<'a>(path: &Path, line: &'a [u8]) -> Result<&'a [u8], Error> {
    line.strip_suffix(b"\n").ok_or_else(|| {
        problem(
            path,
            "is cut off: its last line is missing; take another backup. Nothing was restored",
        )
    })
}

/// One JSON object and its end.
pub(super) fn to_line(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map(|line| line + "\n")
        .map_err(|error| Error::Protocol(format!("backup: {error}")))
}

pub(super) fn problem(path: &Path, problem: &str) -> Error {
    Error::Backup {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}
