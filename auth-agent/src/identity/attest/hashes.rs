//! Hashes of programs, each made once for all who ask: by what changes whenever a file's content does.
//!
//! A hash goes on being made when the caller who asked has given up, so that asking again is no way to have the same
//! bytes read again. One group of callers has one program read at a time and remembers only so many.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::OnceCell;

use crate::identity::turns::Turns;
use crate::workload_api::AttestError;

/// A larger program is not hashed, and entries that ask for its hash do not match.
const MAX_PROGRAM: u64 = 512 << 20;
/// Hashes that are remembered, in all and of what one group of callers runs.
const MAX_HASHES: usize = 1024;
const MAX_OF_GROUP: usize = 128;
/// Programs that are read at once, in all and of one group. More than there are processors: one may be on a disk that
/// does not answer.
const READS: usize = 8;
const READS_OF_GROUP: usize = 1;

/// Hashes, made or being made.
#[derive(Debug)]
pub(super) struct Hashes {
    known: Mutex<Known>,
    turns: Turns,
}

#[derive(Debug, Default)]
struct Known {
    by_version: HashMap<Version, Hash>,
    /// Grows with each use.
    uses: u64,
}

#[derive(Debug)]
struct Hash {
    /// In hexadecimal.
    text: Arc<OnceCell<Arc<str>>>,
    /// Who asked first.
    group: Arc<str>,
    used: u64,
}

/// One content of one file: inode, and the times of its last change, in whole and nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Default for Hashes {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            turns: Turns::new(READS, READS_OF_GROUP),
        }
    }
}

impl Hashes {
    /// The SHA-256 of an open program in hexadecimal, for a caller of `group`; none for what is too large, or no file.
    pub(super) async fn of(
        self: &Arc<Self>,
        program: File,
        group: &Arc<str>,
    ) -> Result<Option<Arc<str>>, AttestError> {
        let metadata = program.metadata().map_err(|error| unreadable(&error))?;
        let Some(version) = Version::of(&metadata) else {
            return Ok(None);
        };
        let cell = self.cell(&version, group);
        if let Some(known) = cell.get() {
            return Ok(Some(Arc::clone(known)));
        }
        let (hashes, group) = (Arc::clone(self), Arc::clone(group));
        let making = tokio::spawn(async move {
            let made = cell.get_or_try_init(|| hashes.read(program, version, &group));
            made.await.cloned()
        });
        let made = making
            .await
            .map_err(|error| AttestError::Failed(error.to_string()))?;
        made.map(Some)
    }

    async fn read(
        &self,
        program: File,
        version: Version,
        group: &Arc<str>,
    ) -> Result<Arc<str>, AttestError> {
        let turn = self.turns.next(group).await;
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read(program, &version)
        });
        reading
            .await
            .map_err(|error| AttestError::Failed(error.to_string()))?
    }

    /// Where the hash of a version is, or will be.
    fn cell(&self, version: &Version, group: &Arc<str>) -> Arc<OnceCell<Arc<str>>> {
        let mut known = self.lock();
        known.uses += 1;
        let used = known.uses;
        if let Some(hash) = known.by_version.get_mut(version) {
            hash.used = used;
            return Arc::clone(&hash.text);
        }
        known.make_room(group);
        let text = Arc::default();
        let hash = Hash {
            text: Arc::clone(&text),
            group: Arc::clone(group),
            used,
        };
        known.by_version.insert(version.clone(), hash);
        text
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Forgets what was not used for longest: of the same group if that has its share, of all if all is full.
    fn make_room(&mut self, group: &Arc<str>) {
        let own = self.by_version.values().filter(|hash| hash.group == *group);
        let full = own.count() >= MAX_OF_GROUP;
        if !full && self.by_version.len() < MAX_HASHES {
            return;
        }
        let oldest = self
            .by_version
            .iter()
            .filter(|(_, hash)| !full || hash.group == *group)
            .min_by_key(|(_, hash)| hash.used)
            .map(|(version, _)| version.clone());
        if let Some(oldest) = oldest {
            self.by_version.remove(&oldest);
        }
    }
}

fn read(mut program: File, version: &Version) -> Result<Arc<str>, AttestError> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 16];
    let mut left = version.size;
    while left > 0 {
        let read = program
            .read(&mut chunk)
            .map_err(|error| unreadable(&error))?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        context.update(bytes);
        left = left.saturating_sub(read as u64);
    }
    let metadata = program.metadata().map_err(|error| unreadable(&error))?;
    if Version::of(&metadata).as_ref() != Some(version) {
        return Err(AttestError::Failed(
            "its program changed while it was read".into(),
        ));
    }
    Ok(data_encoding::HEXLOWER
        .encode(context.finish().as_ref())
        .into())
}

fn unreadable(error: &io::Error) -> AttestError {
    AttestError::Failed(format!("its program: {error}"))
}

impl Version {
    /// None for what is not a program of a size that is hashed.
    fn of(metadata: &Metadata) -> Option<Self> {
        if !metadata.is_file() || metadata.len() > MAX_PROGRAM {
            return None;
        }
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    use super::*;

    fn group(name: &str) -> Arc<str> {
        name.into()
    }

    #[tokio::test]
    async fn a_program_that_is_replaced_is_hashed_anew_and_one_that_is_not_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let hashes = Arc::new(Hashes::default());
        std::fs::write(&path, b"one").unwrap();
        let one = hashes.of(File::open(&path).unwrap(), &group("a")).await;
        let again = hashes.of(File::open(&path).unwrap(), &group("b")).await;
        assert_eq!(one, again);
        assert_eq!(hashes.lock().by_version.len(), 1);
        std::fs::write(&path, b"two").unwrap();
        let two = hashes.of(File::open(&path).unwrap(), &group("a")).await;
        assert_ne!(one, two);
    }

    #[tokio::test]
    async fn what_is_no_program_or_too_large_has_no_hash_and_costs_no_reading() {
        let hashes = Arc::new(Hashes::default());
        let folder = File::open("/").unwrap();
        assert_eq!(hashes.of(folder, &group("a")).await, Ok(None));
        let large = tempfile::tempfile().unwrap();
        large.set_len(MAX_PROGRAM + 1).unwrap();
        let begun = Instant::now();
        assert_eq!(hashes.of(large, &group("a")).await, Ok(None));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    /// Each open file of this process that is read counts what was read of it.
    #[tokio::test]
    async fn many_who_ask_at_once_have_a_program_read_once_and_who_gives_up_stops_nothing() {
        let program = tempfile::NamedTempFile::new().unwrap();
        program.as_file().set_len(32 << 20).unwrap();
        let hashes = Arc::new(Hashes::default());
        let files: Vec<File> = (0..16).map(|_| program.reopen().unwrap()).collect();
        let watched: Vec<File> = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let asking = files.into_iter().enumerate().map(|(number, file)| {
            let (hashes, group) = (Arc::clone(&hashes), group(&format!("{number}")));
            tokio::spawn(async move {
                let asked = hashes.of(file, &group);
                // Everyone but the last one has no patience.
                let patience = Duration::from_millis(if number < 15 { 1 } else { 60_000 });
                tokio::time::timeout(patience, asked).await
            })
        });
        let asking: Vec<_> = asking.collect();
        let mut last = None;
        for asked in asking {
            last = Some(asked.await.unwrap());
        }
        let expected = Context::new(&SHA256);
        let mut expected = expected;
        for _ in 0..32 {
            expected.update(&vec![0; 1 << 20]);
        }
        let expected = data_encoding::HEXLOWER.encode(expected.finish().as_ref());
        assert_eq!(last.unwrap().unwrap().unwrap().unwrap().as_ref(), expected);
        let read = watched.iter().filter(|file| {
            let info = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
            let info = std::fs::read_to_string(info).unwrap();
            let line = info.lines().find_map(|line| line.strip_prefix("pos:"));
            line.unwrap().trim() != "0"
        });
        assert_eq!(read.count(), 1);
    }

    #[tokio::test]
    async fn a_group_with_many_programs_drives_out_its_own_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let program = |name: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, b"x").unwrap();
            File::open(&path).unwrap()
        };
        let hashes = Arc::new(Hashes::default());
        let modest = program("modest".into());
        let version = Version::of(&modest.metadata().unwrap()).unwrap();
        hashes.of(modest, &group("modest")).await.unwrap();
        for number in 0..MAX_OF_GROUP + 50 {
            let file = program(format!("{number}"));
            hashes.of(file, &group("greedy")).await.unwrap();
        }
        let known = hashes.lock();
        assert!(known.by_version.contains_key(&version));
        assert_eq!(known.by_version.len(), MAX_OF_GROUP + 1);
    }
}
