//! The program that a process runs: `unix:path:/usr/bin/web`, `unix:sha256:…`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use handfast_ca::model::Selector;
use nix::errno::Errno;

use super::process::{Process, failed};
use super::selector;
use crate::identity::selectors::Demands;
use crate::workload_api::AttestError;

/// A larger program is not hashed, and entries that ask for its hash do not match.
const MAX_PROGRAM: u64 = 1 << 30;
/// Hashes that are remembered.
const MAX_HASHES: usize = 1024;

/// Hashes of programs by what changes whenever a file's content does.
#[derive(Debug, Default)]
pub(super) struct Hashes(Mutex<HashMap<Version, String>>);

/// One content of one file: inode, and the times of its last change, in whole and nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

pub(super) fn look(
    process: &Process,
    hashes: &Hashes,
    demands: Demands,
    found: &mut Vec<Selector>,
) -> Result<(), AttestError> {
    match path(process) {
        Ok(Some(path)) => found.push(selector("unix", format!("path:{path}"))),
        Ok(None) => {}
        // No right to see the program, or none there: it is known by the rest.
        Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {}
        Err(error) => return Err(failed("its program", error)),
    }
    if demands.sha256 {
        match process.file("exe") {
            Ok(program) => {
                if let Some(hash) = hashes.of(program)? {
                    found.push(selector("unix", format!("sha256:{hash}")));
                }
            }
            Err(Errno::EACCES | Errno::EPERM | Errno::ENOENT) => {}
            Err(error) => return Err(failed("its program", error)),
        }
    }
    Ok(())
}

/// The program's path, if it leads to the program here: a process with a root of its own could put any file at a
/// path that means something on the node.
fn path(process: &Process) -> Result<Option<String>, Errno> {
    let link = process.link("exe")?;
    let runs = process.stat("exe")?;
    let here = std::fs::metadata(Path::new(&link));
    let same = here.is_ok_and(|here| (here.dev(), here.ino()) == (runs.st_dev, runs.st_ino));
    Ok(link
        .into_string()
        .ok()
        .filter(|path| same && path.starts_with('/')))
}

impl Hashes {
    fn of(&self, mut program: File) -> Result<Option<String>, AttestError> {
        let unreadable =
            |error: std::io::Error| AttestError::Failed(format!("its program: {error}"));
        let Some(version) = Version::of(&program).map_err(unreadable)? else {
            return Ok(None);
        };
        if let Some(known) = self.lock().get(&version) {
            return Ok(Some(known.clone()));
        }
        let mut context = Context::new(&SHA256);
        let mut chunk = vec![0; 1 << 16];
        let mut left = version.size;
        while left > 0 {
            let read = program.read(&mut chunk).map_err(unreadable)?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            context.update(bytes);
            left = left.saturating_sub(read as u64);
        }
        if Version::of(&program).map_err(unreadable)?.as_ref() != Some(&version) {
            return Err(AttestError::Failed(
                "its program changed while it was read".into(),
            ));
        }
        let hash = data_encoding::HEXLOWER.encode(context.finish().as_ref());
        let mut known = self.lock();
        if known.len() >= MAX_HASHES {
            known.clear();
        }
        known.insert(version, hash.clone());
        Ok(Some(hash))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Version, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Version {
    /// None for what is not a program of a size that is hashed.
    fn of(file: &File) -> std::io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_PROGRAM {
            return Ok(None);
        }
        Ok(Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_replaced_is_hashed_anew_and_one_that_is_not_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let hashes = Hashes::default();
        let hash = |hashes: &Hashes| hashes.of(File::open(&path).unwrap()).unwrap().unwrap();
        std::fs::write(&path, b"one").unwrap();
        let one = hash(&hashes);
        assert_eq!(one, hash(&hashes));
        assert_eq!(hashes.lock().len(), 1);
        std::fs::write(&path, b"two").unwrap();
        assert_ne!(one, hash(&hashes));
    }

    #[test]
    fn what_is_no_program_has_no_hash() {
        let folder = File::open("/").unwrap();
        assert_eq!(Hashes::default().of(folder).unwrap(), None);
    }
}
