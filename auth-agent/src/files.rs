//! Files that are never half written: a temporary file in the same folder, synced, then renamed.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

/// The largest state file that is read back; ours are far smaller.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Begins the extension of what is being written; the writer's process number follows.
const TEMPORARY: &str = "new-";

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The content is not what this version writes.
    #[error(
        "{path} is damaged or from another version ({message}); move it away to start without it"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
}

/// Makes a folder that only its owner can enter; one that is there is kept.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("make the folder", path))
}

/// Makes a folder private that others can enter, if there is nothing in it. Closed first and looked into then, so that
/// nobody puts anything there in between; one that has something is left as it was.
pub fn make_private_if_empty(path: &Path) -> Result<(), FileError> {
    let found = fs::metadata(path).map_err(io("look at", path))?;
    let before = found.permissions();
    if before.mode() & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io("close", path))?;
    let mut inside = fs::read_dir(path).map_err(io("list", path))?;
    if inside.next().is_some() {
        fs::set_permissions(path, before).map_err(io("open", path))?;
    }
    Ok(())
}

/// Reads a JSON file; `None` where there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| FileError::Content {
            path: path.to_owned(),
            message: error.to_string(),
        })
}

/// Reads a file whole, up to a bound; `None` where there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io("open", path)(source)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(io("read", path))?;
    Ok(Some(bytes))
}

/// Writes a JSON file in one step, readable by its owner only.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| FileError::Content {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    write(path, &bytes)
}

/// The same for what need not outlive a boot: not waiting for the disk.
pub fn write_volatile_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec(value).map_err(|error| FileError::Content {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    write_volatile(path, &bytes)
}

/// Writes a file that need not outlive a boot in one step, readable by its owner only.
pub fn write_volatile(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, bytes, Sync::No)
}

/// Writes a file in one step, readable by its owner only.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, bytes, Sync::Yes)
}

/// Whether the content must be on the disk before the old one is replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    Yes,
    No,
}

fn replace(path: &Path, bytes: &[u8], sync: Sync) -> Result<(), FileError> {
    let temporary = path.with_extension(format!("{TEMPORARY}{}", std::process::id()));
    let result = write_then_rename(&temporary, path, bytes, sync);
    if result.is_err() {
        // Best effort: the error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_then_rename(
    temporary: &Path,
    path: &Path,
    bytes: &[u8],
    sync: Sync,
) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temporary)
        .map_err(io("make", temporary))?;
    file.write_all(bytes).map_err(io("write", temporary))?;
    if sync == Sync::Yes {
        file.sync_all().map_err(io("write", temporary))?;
    }
    fs::rename(temporary, path).map_err(io("replace", path))?;
    if sync == Sync::Yes
        && let Some(folder) = path.parent()
    {
        // The new name, too: a machine that loses power must not come back with the old content.
        let folder_file = fs::File::open(folder).map_err(io("open", folder))?;
        folder_file.sync_all().map_err(io("write", folder))?;
    }
    Ok(())
}

/// Removes what writers that were killed have left half written in a folder, keys among it. What a living process
/// writes stays.
pub fn clear_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let writer = path
            .extension()
            .and_then(|extension| extension.to_str())
            .and_then(|extension| extension.strip_prefix(TEMPORARY))
            .and_then(|number| number.parse::<u32>().ok());
        let gone = |number: u32| !Path::new("/proc").join(number.to_string()).exists();
        if writer.is_some_and(gone)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "a file that was left half written is not removed");
        }
    }
}

/// What failed, on which file.
pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let living = format!("node.new-{}", std::process::id());
        for name in ["node.new-4194305", &living, "node.pem", "node.new-x"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        clear_leftovers(folder.path());
        let left = |name: &str| folder.path().join(name).exists();
        assert!(!left("node.new-4194305"));
        assert!(left(&living) && left("node.pem") && left("node.new-x"));
    }
}
