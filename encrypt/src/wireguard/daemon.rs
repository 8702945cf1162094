//! A userspace WireGuard: found, started so that it outlives the agent, spoken to, watched and ended.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use super::control::{Change, Reading};
use super::place::{FOLDER, command};
use super::{DeviceName, uapi};
use crate::{Error, programs};

/// How long a start, an answer and a polite end may take.
const PATIENCE: Duration = Duration::from_secs(5);
const POLITE: Duration = Duration::from_secs(2);
/// An answer has about 400 bytes a peer and 50 a prefix.
const ANSWER_LIMIT: usize = 16 << 20;
/// What the daemon writes of errors is kept for a person to read, up to this.
const LOG_LIMIT: u64 = 1 << 20;

/// A running daemon, ours or an earlier agent's.
pub(super) struct Daemon {
    socket: PathBuf,
    log: PathBuf,
    process: AsyncFd<OwnedFd>,
    /// Only if this agent started it: somebody has to collect its exit.
    child: Mutex<Option<Child>>,
}

/// The program to run: `chosen`, else what the variable names, else wireguard-go.
pub(crate) fn implementation(chosen: Option<&Path>) -> Result<PathBuf, Error> {
    let named = chosen
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os("WG_USERSPACE_IMPLEMENTATION").map(PathBuf::from))
        .filter(|name| !name.as_os_str().is_empty());
    let wanted = named.unwrap_or_else(|| PathBuf::from("wireguard-go"));
    let found = programs::find(&wanted).ok_or_else(|| Error::NoWireGuard {
        wanted: wanted.display().to_string(),
        looked: if wanted.components().count() > 1 {
            "no such program".to_owned()
        } else {
            "in PATH and the usual folders".to_owned()
        },
    })?;
    // Its device panics when a peer is updated (PROTOCOL.md, Tunnel keys 5).
    let is_boringtun =
        |name: Option<&OsStr>| name.is_some_and(|name| name.as_bytes().starts_with(b"boringtun"));
    let real = found.canonicalize().unwrap_or_else(|_| found.clone());
    if is_boringtun(found.file_name()) || is_boringtun(real.file_name()) {
        return Err(Error::UnfitImplementation(found));
    }
    Ok(found)
}

/// What became of the daemon of an earlier agent.
pub(super) enum Adopted {
    Serving(Daemon),
    /// It ended, maybe a moment ago: the kernel may not have taken its device away yet.
    Ended,
    None,
}

impl Daemon {
    /// The daemon that serves this device from `run_dir`, if one answers. A socket without a daemon is removed.
    pub(super) async fn adopt(run_dir: &Path, name: &DeviceName) -> Result<Adopted, Error> {
        let socket = socket_of(run_dir, name);
        let stream = match connect(&socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Adopted::None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                remove_file(&socket)?;
                return Ok(Adopted::Ended);
            }
            Err(error) => {
                return Err(Error::io(format!("connecting to {}", socket.display()))(
                    error,
                ));
            }
        };
        let pid = stream
            .peer_cred()
            .map_err(Error::io("asking who serves the tunnel device"))?
            .pid()
            .ok_or_else(|| {
                Error::Protocol("the daemon is in another process namespace".to_owned())
            })?;
        let process = match pidfd(pid) {
            Ok(process) => process,
            // Ended between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Adopted::Ended),
            Err(error) => return Err(Error::io("watching the tunnel's daemon")(error)),
        };
        let daemon = Self::new(run_dir, name, process, None)?;
        // An answer over the connection that named the process: it lives, so the number is its own.
        match daemon.ask(stream, uapi::GET.as_bytes()).await {
            Ok(_) => Ok(Adopted::Serving(daemon)),
            Err(Error::Io { .. }) if timeout(POLITE, daemon.ended()).await.is_ok() => {
                remove_file(&daemon.socket)?;
                Ok(Adopted::Ended)
            }
            Err(error) => Err(error),
        }
    }

    /// Starts a daemon in the foreground, in a session and mount namespace of its own.
    pub(super) async fn start(
        program: &Path,
        run_dir: &Path,
        name: &DeviceName,
    ) -> Result<Self, Error> {
        let folder = prepare(run_dir)?;
        let socket = socket_of(run_dir, name);
        remove_file(&socket)?;
        let log = open_log(&log_of(run_dir, name))?;
        let mut child = command(program, name, &folder, &log)?
            .spawn()
            .map_err(Error::io(format!(
                "starting {} with its own /var/run/wireguard",
                program.display()
            )))?;
        let failed = |reason: String| Error::DaemonFailed {
            program: program.to_path_buf(),
            reason,
        };
        let process = i32::try_from(child.id())
            .map_err(io::Error::other)
            .and_then(pidfd)
            .map_err(Error::io("watching the tunnel's daemon"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if connect(&socket).await.is_ok() {
                return Self::new(run_dir, name, process, Some(child));
            }
            if let Ok(Some(status)) = child.try_wait() {
                let words = last_words(&log_of(run_dir, name));
                return Err(failed(words.unwrap_or_else(|| status.to_string())));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!(
                    "no control socket {} after {} s",
                    socket.display(),
                    PATIENCE.as_secs()
                )));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[allow(unsafe_code)]
    fn new(
        run_dir: &Path,
        name: &DeviceName,
        process: OwnedFd,
        child: Option<Child>,
    ) -> Result<Self, Error> {
        // SAFETY: the descriptor is owned by what is registered, and never exchanged for another.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
        Ok(Self {
            socket: socket_of(run_dir, name),
            log: log_of(run_dir, name),
            process: process
                .map_err(io::Error::from)
                .map_err(Error::io("watching the tunnel's daemon"))?,
            child: Mutex::new(child),
        })
    }

    pub(super) async fn read(&self) -> Result<Reading, Error> {
        uapi::reading(&self.request(uapi::GET.as_bytes()).await?)
    }

    pub(super) async fn apply(&self, change: &Change) -> Result<(), Error> {
        let request = uapi::set(change);
        let reply = self.request(request.as_bytes()).await?;
        uapi::outcome(&reply).map_err(|error| match (error, change.port) {
            (Error::Refused(error), Some(port))
                if error.raw_os_error() == Some(libc::EADDRINUSE) =>
            {
                Error::PortInUse(port)
            }
            (error, _) => error,
        })
    }

    /// Returns when the daemon has ended.
    pub(super) async fn ended(&self) {
        // A process descriptor is readable from the moment its process is gone, for ever.
        let _ = self.process.readable().await;
        self.collect();
    }

    /// Keeps the log within its bound; the daemon appends, so that cutting it is safe.
    pub(super) fn trim_log(&self) {
        let long = fs::metadata(&self.log).is_ok_and(|metadata| metadata.len() > LOG_LIMIT);
        if long && let Ok(log) = OpenOptions::new().write(true).open(&self.log) {
            let _ = log.set_len(0);
        }
    }

    /// The daemon's last words, for the report of its death.
    pub(super) fn last_words(&self) -> Option<String> {
        last_words(&self.log)
    }

    /// Ends the daemon, which takes its device away, and cleans up its files.
    pub(super) async fn stop(&self) -> Result<(), Error> {
        self.signal(libc::SIGTERM);
        if timeout(POLITE, self.ended()).await.is_err() {
            self.signal(libc::SIGKILL);
            timeout(POLITE, self.ended())
                .await
                .map_err(|_| Error::Protocol("the daemon cannot be ended".to_owned()))?;
        }
        remove_file(&self.socket)?;
        remove_file(&self.log)?;
        // Another device's files may still be there.
        if let Some(folder) = self.socket.parent() {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    fn collect(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = child.take() {
            let _ = child.wait();
        }
    }

    async fn request(&self, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let stream = connect(&self.socket).await.map_err(Error::io(format!(
            "connecting to {}",
            self.socket.display()
        )))?;
        self.ask(stream, request).await
    }

    async fn ask(
        &self,
        mut stream: UnixStream,
        request: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let talk = async {
            stream.write_all(request).await?;
            answer(&mut stream).await
        };
        timeout(PATIENCE, talk)
            .await
            .map_err(|_| Error::Protocol(format!("no answer in {} s", PATIENCE.as_secs())))?
            .map_err(Error::io("talking to the tunnel's daemon"))
    }

    #[allow(unsafe_code)]
    fn signal(&self, signal: i32) {
        let process = self.process.as_raw_fd();
        // SAFETY: the descriptor is open and a process descriptor; a null siginfo is allowed.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process,
                signal,
                std::ptr::null::<()>(),
                0,
            );
        }
    }
}

/// Reads up to the empty line. The buffer holds keys: when it grows, the old one is wiped.
async fn answer(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(64 << 10));
    while !answer.ends_with(b"\n\n") {
        if answer.len() == answer.capacity() {
            if answer.capacity() >= ANSWER_LIMIT {
                return Err(io::Error::other("the answer is too long"));
            }
            let mut wider = Zeroizing::new(Vec::with_capacity(answer.capacity() * 2));
            wider.extend_from_slice(&answer);
            answer = wider;
        }
        if stream.read_buf(&mut *answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(answer)
}

fn socket_of(run_dir: &Path, name: &DeviceName) -> PathBuf {
    run_dir.join(FOLDER).join(format!("{name}.sock"))
}

fn log_of(run_dir: &Path, name: &DeviceName) -> PathBuf {
    run_dir.join(FOLDER).join(format!("{name}.log"))
}

/// Connects by way of the socket's open folder: its path may be longer than the 107 bytes an address holds.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (Some(folder), Some(file)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(folder)?;
    let way = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    UnixStream::connect(way.join(file)).await
}

/// The folder for sockets and logs, root's alone.
fn prepare(run_dir: &Path) -> Result<PathBuf, Error> {
    let folder = run_dir.join(FOLDER);
    let doing = format!("preparing {}", folder.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(Error::io(doing.clone()))?;
    let metadata = fs::symlink_metadata(&folder).map_err(Error::io(doing.clone()))?;
    if !metadata.is_dir()
        || metadata.uid() != nix::unistd::geteuid().as_raw()
        || metadata.mode() & 0o077 != 0
    {
        let error = io::Error::new(
            io::ErrorKind::PermissionDenied,
            "must be a folder of this user that nobody else can open",
        );
        return Err(Error::io(doing)(error));
    }
    folder.canonicalize().map_err(Error::io(doing))
}

fn open_log(path: &Path) -> Result<File, Error> {
    let doing = || Error::io(format!("opening {}", path.display()));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(doing())?;
    log.set_len(0).map_err(doing())?;
    Ok(log)
}

fn last_words(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(300).collect())
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

#[allow(unsafe_code)]
fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor (close-on-exec) or an error.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(descriptor) {
        // SAFETY: just opened, and nobody else has it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_implementation_is_named_with_what_to_install() {
        let error = implementation(Some(Path::new("/no/such/wireguard")))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/no/such/wireguard") && error.contains("apt-get install wireguard-go"),
            "{error}"
        );
    }

    #[test]
    fn an_implementation_that_cannot_renew_a_session_is_refused() {
        let folder = std::env::temp_dir().join(format!("handfast-encrypt-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("boringtun-cli");
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o755)
            .open(&program)
            .unwrap();
        let outcome = implementation(Some(&program));
        fs::remove_dir_all(&folder).unwrap();
        assert!(matches!(outcome, Err(Error::UnfitImplementation(_))));
    }
}
