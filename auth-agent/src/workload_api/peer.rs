//! Who is at the other end of a Unix socket, safe against process numbers that are used again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// The process that connected. Holds a descriptor of it (pidfd), which never means another process.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    process: OwnedFd,
}

impl Peer {
    /// The process that connected `socket`.
    ///
    /// # Errors
    /// It has exited already, or is in a process namespace that this one cannot see.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd();
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let pid = u32::try_from(credentials.pid()).map_err(|_| gone())?;
        if pid == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the caller's process is not visible from the agent's process namespace",
            ));
        }
        let process = match getsockopt(&socket, sockopt::PeerPidfd) {
            Ok(process) => process,
            // Kernels before 6.5.
            Err(Errno::ENOPROTOOPT) => open_by_number(pid, socket)?,
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        let peer = Self {
            pid,
            uid: credentials.uid(),
            gid: credentials.gid(),
            process,
        };
        if peer.is_alive() {
            Ok(peer)
        } else {
            Err(gone())
        }
    }

    /// Its number, in the agent's process namespace. Means this process only while [`Peer::is_alive`].
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its effective user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The descriptor of the process (pidfd); readable when the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Is it still there? What was read under its number before is then true of it.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }
}

/// The descriptor of process `pid`, if the process that connected `socket` still has that number: it has while its
/// end of the socket is open.
fn open_by_number(pid: u32, socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = libc::pid_t::try_from(pid).map_err(|_| gone())?;
    // SAFETY: two integers, no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    let raw = i32::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let process = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [watched] = fds;
    let closed = watched
        .revents()
        .is_none_or(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
    if closed { Err(gone()) } else { Ok(process) }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the calling process is gone")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_caller_is_known_by_number_user_and_group() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid(), nix::unistd::getegid().as_raw());
        assert!(peer.is_alive());
        drop(theirs);
    }

    #[test]
    fn the_way_of_older_kernels_finds_the_same_process_and_refuses_one_that_hung_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(open_by_number(std::process::id(), ours.as_fd()).is_ok());
        drop(theirs);
        assert!(open_by_number(std::process::id(), ours.as_fd()).is_err());
    }

    /// A process that connects and waits until it is told to go.
    #[test]
    fn a_caller_that_exits_is_seen_to_be_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.send(b'x')\nsys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut [0]).unwrap();
        let peer = Peer::of(&connection).unwrap();
        assert_eq!(peer.pid(), child.id());
        assert!(peer.is_alive());
        child.stdin.take().unwrap().flush().unwrap();
        child.wait().unwrap();
        assert!(!peer.is_alive());
        assert!(Peer::of(&connection).is_err(), "who is gone has no name");
    }
}
