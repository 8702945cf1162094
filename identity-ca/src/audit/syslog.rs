//! The same lines to the system's log (RFC 5424), for whoever collects it.
//!
//! A copy, not the log: a collector that is slow or away is not waited for.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::Error;

/// Facility 13 (log audit), severity 5 (notice).
const PRIORITY: u8 = 13 * 8 + 5;

/// A connection to the local collector, made when there is something to say.
#[derive(Debug)]
pub(crate) struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    pub(super) lost: u64,
}

impl Syslog {
    /// Could a collector listen there? One that is away for a moment could; one whose path is misspelt could not.
    pub(crate) fn check(path: &Path) -> Result<(), Error> {
        let found = std::fs::metadata(path).map_err(Error::io(
            "the audit log cannot go to the syslog collector at",
            path,
        ))?;
        if found.file_type().is_socket() {
            return Ok(());
        }
        Err(Error::invalid(
            format!("--syslog {}", path.display()),
            "is no socket; a collector listens at one (usually /dev/log)",
        ))
    }

    /// Sends to the collector that listens at `path` (usually /dev/log).
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            socket: None,
            lost: 0,
        }
    }

    /// Sends a line; what cannot be sent is counted.
    pub(super) fn send(&mut self, at: &str, line: &str) {
        let line = line.trim_end();
        let pid = std::process::id();
        let message = format!("<{PRIORITY}>1 {at} - handfast-ca {pid} audit - {line}");
        // Once again on a new connection: a collector that was restarted is another socket.
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = self.connect();
            }
            let Some(socket) = &self.socket else { break };
            match socket.send(message.as_bytes()) {
                Ok(_) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => self.socket = None,
            }
        }
        self.lost += 1;
    }

    fn connect(&self) -> Option<UnixDatagram> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(&self.path).ok()?;
        Some(socket)
    }
}
