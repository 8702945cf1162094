//! A process's folder under `/proc`, opened once: what is read through it is of this process or fails.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};

use crate::workload_api::{AttestError, Peer};

/// Longer than any file of these that a sane process has: 65,536 groups of eleven bytes.
const MAX_FILE: u64 = 1 << 20;

/// A process that can be looked at.
#[derive(Debug)]
pub(super) struct Process {
    folder: OwnedFd,
}

impl Process {
    /// Opens the folder. The number meant `peer` all the while, since `peer` lives afterwards.
    pub(super) fn open(peer: &Peer) -> Result<Self, AttestError> {
        let path = format!("/proc/{}", peer.pid());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(path.as_str(), flags, Mode::empty())
            .map_err(|error| failed("its folder under /proc", error))?;
        if peer.is_alive() {
            Ok(Self { folder })
        } else {
            Err(AttestError::Gone)
        }
    }

    /// A file's text, bounded.
    pub(super) fn text(&self, name: &'static str) -> Result<String, AttestError> {
        let file = self.file(name).map_err(|error| failed(name, error))?;
        let mut text = String::new();
        let read = file.take(MAX_FILE).read_to_string(&mut text);
        match read {
            Ok(length) if (length as u64) < MAX_FILE => Ok(text),
            Ok(_) => Err(AttestError::Failed(format!(
                "{name} of the process is longer than {MAX_FILE} bytes"
            ))),
            Err(error) => Err(from_io(name, &error)),
        }
    }

    /// Opens a file for reading.
    pub(super) fn file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        openat(&self.folder, name, flags, Mode::empty()).map(File::from)
    }

    /// Where a link of the folder points, in words.
    pub(super) fn link(&self, name: &str) -> Result<std::ffi::OsString, Errno> {
        readlinkat(&self.folder, name)
    }

    /// What stands behind a file or link of the folder.
    pub(super) fn stat(&self, name: &str) -> Result<FileStat, Errno> {
        fstatat(&self.folder, name, AtFlags::empty())
    }
}

/// The system's refusal; of a process that is gone the caller knows better.
pub(super) fn failed(what: &str, error: Errno) -> AttestError {
    match error {
        Errno::ESRCH => AttestError::Gone,
        error => AttestError::Failed(format!("{what} cannot be read: {}", error.desc())),
    }
}

fn from_io(what: &str, error: &io::Error) -> AttestError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => failed(what, errno),
        None => AttestError::Failed(format!("{what} cannot be read: {error}")),
    }
}
