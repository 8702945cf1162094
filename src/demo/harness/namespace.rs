//! Network namespaces: made, entered by one thread, emptied of processes, removed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::tool;

const DIRECTORY: &str = "/run/netns";

/// A named network namespace, kept open.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace, with its loopback up.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        tool("ip", &["netns", "add", name])?;
        tool("ip", &["-n", name, "link", "set", "lo", "up"])?;
        Self::open(name)
    }

    /// Opens one that exists.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let path = Path::new(DIRECTORY).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter network namespace {}", self.name))?;
                work()
            });
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a worker in {} panicked", self.name)))
        })
    }

    /// The processes inside.
    pub fn processes(&self) -> Vec<i32> {
        let inode = self.file.metadata().map(|data| data.ino());
        processes_of(&Vec::from_iter(inode), None)
    }

    /// Writes settings below `/proc/sys`, as this namespace sees them.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.inside(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                std::fs::write(&path, value)
                    .with_context(|| format!("write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Runs `ip -n NAME` with these arguments, split at blanks.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(arguments.split_whitespace());
        tool("ip", &all).map(drop)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Names of the namespaces that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Ends every process that is inside these namespaces or has `mark` in its environment, and removes the namespaces.
/// Goes as far as it can; says what is left.
pub fn remove_all(names: &[String], mark: &str) -> Vec<String> {
    let inodes: Vec<u64> = names
        .iter()
        .filter_map(|name| std::fs::metadata(Path::new(DIRECTORY).join(name)).ok())
        .map(|data| data.ino())
        .collect();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let pids = processes_of(&inodes, Some(mark.as_bytes()));
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            // Already gone is as good as ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    names
        .iter()
        .filter_map(|name| tool("ip", &["netns", "del", name]).err())
        .map(|error| format!("{error:#}"))
        .collect()
}

/// Processes in one of these network namespaces or with this variable; never this process.
fn processes_of(inodes: &[u64], mark: Option<&[u8]>) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let inside = |folder: &Path| {
        std::fs::metadata(folder.join("ns/net")).is_ok_and(|data| inodes.contains(&data.ino()))
    };
    let marked = |folder: &Path| {
        std::fs::read(folder.join("environ")).is_ok_and(|text| {
            text.split(|byte| *byte == 0)
                .any(|variable| Some(variable) == mark)
        })
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(pid, folder)| *pid != own && (inside(folder) || marked(folder)))
        .map(|(pid, _)| pid)
        .collect()
}
