//! Programs that run inside a place of the lab, with their output kept.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{Lab, MARK};
use super::namespace::Namespace;
use super::wait;

/// Runs a tool of the system to its end in the namespaces of this process; its complaint becomes the error.
pub fn tool(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a program runs: a network namespace and, for machines that must not share paths, a mount namespace.
#[derive(Debug)]
pub struct Place {
    net: OwnedFd,
    mnt: Option<OwnedFd>,
    lab: String,
    logs: PathBuf,
}

impl Place {
    /// A place of a lab.
    pub fn new(lab: &Lab, ns: &Namespace, mnt: Option<OwnedFd>) -> anyhow::Result<Self> {
        Ok(Self {
            net: ns.as_fd().try_clone_to_owned()?,
            mnt,
            lab: lab.name().to_owned(),
            logs: lab.logs(),
        })
    }

    /// Starts a program that goes on; its output goes to `NAME.log`, after what is there.
    pub fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let log = self.logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        self.start(name, command, log)
    }

    /// Runs a program to its end.
    pub fn run(&self, command: &mut Command, limit: Duration) -> anyhow::Result<Finished> {
        let out = tempfile_in(&self.logs, "out")?;
        let err = tempfile_in(&self.logs, "err")?;
        command
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        let name = command.get_program().to_string_lossy().into_owned();
        let start = Instant::now();
        let mut process = self.start(&name, command, err.clone())?;
        let status = process.wait(limit);
        let took = start.elapsed();
        let stdout = read_and_remove(&out);
        let stderr = read_and_remove(&err);
        Ok(Finished {
            status: status.with_context(|| format!("{command:?}: {stderr}"))?,
            stdout,
            stderr,
            took,
        })
    }

    fn start(&self, name: &str, command: &mut Command, log: PathBuf) -> anyhow::Result<Process> {
        wait::check_interrupt()?;
        let net = self.net.as_raw_fd();
        let mnt = self.mnt.as_ref().map(AsRawFd::as_raw_fd);
        command
            .env(MARK, &self.lab)
            .stdin(Stdio::null())
            .process_group(0);
        // SAFETY: between fork and exec the closure makes only the system call setns on descriptors that `self`
        // keeps open until spawn has returned; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || enter(net, mnt)) };
        let child = command
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
            detached: false,
        })
    }
}

fn enter(net: RawFd, mnt: Option<RawFd>) -> std::io::Result<()> {
    // SAFETY: both descriptors are open; see the caller.
    let net = unsafe { BorrowedFd::borrow_raw(net) };
    setns(net, CloneFlags::CLONE_NEWNET)?;
    if let Some(mnt) = mnt {
        // SAFETY: as above.
        let mnt = unsafe { BorrowedFd::borrow_raw(mnt) };
        setns(mnt, CloneFlags::CLONE_NEWNS)?;
    }
    Ok(())
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Its end.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// Itself if it succeeded; its complaint otherwise.
    pub fn success(self, what: &str) -> anyhow::Result<Self> {
        if !self.status.success() {
            bail!(
                "{what}: {}: {} {}",
                self.status,
                self.stderr.trim(),
                self.stdout.trim()
            );
        }
        Ok(self)
    }

    /// Its exit code; -1 where a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

/// A program that runs. Dropping it kills it, unless it was detached.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    detached: bool,
}

impl Process {
    /// Watches over a child that was started elsewhere and prints nothing.
    pub fn adopt(name: &str, child: Child) -> Self {
        Self {
            name: name.to_owned(),
            child,
            log: PathBuf::from("/dev/null"),
            detached: false,
        }
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while it runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; kills it and fails after `limit`.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let limit = super::wait::patience(limit);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                self.kill();
                bail!("{} did not end within {limit:?}", self.name);
            }
            if let Err(interrupted) = wait::check_interrupt() {
                self.kill();
                return Err(interrupted);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Interrupts it, as Ctrl-C does (SIGINT), and waits.
    pub fn interrupt(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        // Already gone: wait() tells how.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT);
        self.wait(limit)
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it outlive this process.
    pub fn detach(&mut self) {
        self.detached = true;
    }

    /// All that it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.kill();
        }
    }
}

/// A command of these words.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A path for the kernel.
pub fn c_path(path: &Path) -> anyhow::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("path {}", path.display()))
}

fn tempfile_in(directory: &Path, kind: &str) -> anyhow::Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(directory.join(format!(".{}-{number}.{kind}", std::process::id())))
}

fn read_and_remove(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    String::from_utf8_lossy(&bytes).into_owned()
}
