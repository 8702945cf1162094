//! Who is at the other end of a Unix socket, safe against process numbers that are used again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use super::{by_number, cgroup};

/// The process that connected. Holds a descriptor of it (pidfd), which never means another process.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    process: OwnedFd,
    group: Arc<str>,
}

impl Peer {
    /// Stands between control group and user in [`Peer::group`]; no path holds it.
    pub(super) const USER: char = '\0';

    /// The process that connected `socket`, which was accepted a moment ago.
    ///
    /// # Errors
    /// It has exited already, or is in a process namespace that this one cannot see.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let accepted = crate::clock::boot();
        let socket = socket.as_fd();
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let pid = u32::try_from(credentials.pid()).map_err(|_| gone())?;
        if pid == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the caller's process is not visible from the agent's process namespace",
            ));
        }
        let process = match getsockopt(&socket, sockopt::PeerPidfd) {
            Ok(process) => process,
            Err(Errno::ENOPROTOOPT) => by_number::open(pid, uid, socket, accepted)?,
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(gone()),
            Err(error) => return Err(error.into()),
        };
        let group = format!("{}{}{uid}", cgroup::of(pid), Self::USER);
        let peer = Self {
            pid,
            uid,
            gid,
            process,
            group: group.into(),
        };
        if peer.is_alive() {
            Ok(peer)
        } else {
            Err(gone())
        }
    }

    /// Does this kernel name the process of a socket itself (Linux 6.5)? Otherwise it is found by its number, as well
    /// as can be: a number may have come round to another process.
    pub fn is_exact() -> bool {
        !by_number::is_needed()
    }

    /// With whom it shares what there is: its control group when it connected, and its user. Says nothing of who it is.
    pub(crate) fn group(&self) -> &Arc<str> {
        &self.group
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

pub(super) fn gone() -> io::Error {
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
        let user = format!("{}{}", Peer::USER, peer.uid());
        assert!(peer.group().ends_with(&user), "{:?}", peer.group());
        drop(theirs);
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
