//! Kernels before 6.5 do not hand out the process of a socket, only its number: the next best way.
//!
//! A number is taken for the process that connected if a process of that number lives now, started no later than the
//! connection was accepted, has the user that the kernel noted when it connected, and the connection is still open.
//! What remains: a caller that connects, leaves the connection to a child, and ends, so that its number comes round
//! to a process of the same user, all between connecting and being accepted (or within the tick of 10 ms after it, in
//! which the kernel tells start times). It could then be taken for that other process. SO_PEERPIDFD has no such gap.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{SysconfVar, sysconf};

use super::peer::gone;

/// Does this kernel need this way?
pub(super) fn is_needed() -> bool {
    UnixStream::pair().is_ok_and(|(one, _other)| {
        getsockopt(&one, sockopt::PeerPidfd).err() == Some(Errno::ENOPROTOOPT)
    })
}

/// A descriptor of process `pid`, which connected `socket` as `uid` before `accepted` (time since boot).
pub(super) fn open(
    pid: u32,
    uid: u32,
    socket: BorrowedFd<'_>,
    accepted: Duration,
) -> io::Result<OwnedFd> {
    let number = libc::pid_t::try_from(pid).map_err(|_| gone())?;
    // SAFETY: two integers, no pointers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    let raw = i32::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let process = unsafe { OwnedFd::from_raw_fd(raw) };
    // What is read from here on is of that process, if it lives when all is read.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let lives = events(process.as_fd())?.is_empty();
    let open = !events(socket)?.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
    let earlier = started(&stat).is_some_and(|started| started <= accepted);
    if lives && open && earlier && has_user(&status, uid) {
        Ok(process)
    } else {
        Err(gone())
    }
}

/// What has happened to a descriptor.
fn events(descriptor: BorrowedFd<'_>) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [watched] = fds;
    // What is not known to us is taken for the worst.
    Ok(watched.revents().unwrap_or(PollFlags::all()))
}

/// Field 22 of `/proc/PID/stat`, as time since boot. The name in field 2 may hold anything but ends with the last `)`.
fn started(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let rate = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let thousandths = u128::from(ticks) * 1000 / u128::from(rate.max(1));
    Some(Duration::from_millis(u64::try_from(thousandths).ok()?))
}

/// Is it the real, effective, saved or file system's user of `/proc/PID/status`?
fn has_user(status: &str, uid: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.unwrap_or_default()
        .split_ascii_whitespace()
        .any(|user| user.parse() == Ok(uid))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::clock::boot;

    #[test]
    fn start_times_and_users_are_read_whatever_a_process_calls_itself() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 250 1 2 3\n";
        let rate = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
        let expected = Duration::from_millis(250_000 / u64::try_from(rate).unwrap());
        assert_eq!(started(stat), Some(expected));
        assert_eq!(started("7 (a"), None);
        let status = "Name:\tUid: 5\nUid:\t1\t2\t3\t4\nGid:\t9\t9\t9\t9\n";
        assert!((1..=4).all(|uid| has_user(status, uid)));
        assert!(!has_user(status, 5) && !has_user(status, 9) && !has_user("", 0));
    }

    #[test]
    fn the_process_that_connected_is_found_and_one_that_hung_up_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (pid, uid) = (std::process::id(), nix::unistd::geteuid().as_raw());
        assert!(open(pid, uid, ours.as_fd(), boot()).is_ok());
        assert!(
            open(pid, uid + 1, ours.as_fd(), boot()).is_err(),
            "of another user"
        );
        drop(theirs);
        assert!(open(pid, uid, ours.as_fd(), boot()).is_err());
    }

    /// Connects, leaves the connection to a child and ends; told to, gives its number to another process.
    const REUSE: &str = r#"
import ctypes, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
ours, theirs = os.pipe(), os.pipe()
caller = os.fork()
if caller == 0:
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    if os.fork() == 0:
        time.sleep(60)
    os.read(ours[0], 1)
    os._exit(0)
print("connected", caller, flush=True)
sys.stdin.readline()
os.write(ours[1], b"x")
os.waitpid(caller, 0)
time.sleep(0.05)
number = ctypes.c_int(caller)
SIGCHLD = 17
arguments = struct.pack("11Q", 0, 0, 0, 0, SIGCHLD, 0, 0, 0, ctypes.addressof(number), 1, 0)
buffer = ctypes.create_string_buffer(arguments)
other = libc.syscall(435, buffer, len(arguments))
if other == 0:
    time.sleep(60)
print("reused" if other == caller else f"not {ctypes.get_errno()}", flush=True)
sys.stdin.readline()
os.kill(other, 9)
"#;

    fn script(path: &std::path::Path) -> Child {
        let mut command = Command::new("python3");
        command.args(["-c", REUSE]).arg(path);
        // A group of its own, so that what it leaves behind can be ended with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_process_that_was_given_the_number_of_a_caller_that_left_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = script(&path);
        let (connection, _) = listener.accept().unwrap();
        let accepted = boot();
        let credentials = getsockopt(&connection, sockopt::PeerCredentials).unwrap();
        let pid = u32::try_from(credentials.pid()).unwrap();
        let find = || open(pid, credentials.uid(), connection.as_fd(), accepted);
        assert!(find().is_ok(), "while it lives");
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut say = || {
            writeln!(input).unwrap();
            output.next().unwrap().unwrap()
        };
        assert!(say().starts_with("connected"));
        // The line above has told the caller to go; the next one is of its successor.
        let reused = output.next().unwrap().unwrap();
        let taken = find();
        let lives = fs::metadata(format!("/proc/{pid}")).is_ok();
        writeln!(input).unwrap();
        child.wait().unwrap();
        nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        if reused != "reused" {
            eprintln!("SKIPPED: process numbers cannot be chosen here ({reused})");
            return;
        }
        assert!(lives, "its number is in use");
        assert!(taken.is_err(), "by somebody else");
    }
}
