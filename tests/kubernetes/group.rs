//! Control groups as a kubelet makes them for pods.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::harness::process::Process;
use crate::harness::wait;
use crate::pod::Pod;
use crate::support::SOON;

/// The group of a pod's container. Removed when it is dropped, after what ran in it has ended or been moved out.
pub struct Group(PathBuf);

impl Group {
    /// Puts a program of a pod where the kubelet would have started it.
    pub fn of_pod(pod: &Pod, program: &Process) -> anyhow::Result<Self> {
        let path = tree()?
            .join("kubepods/burstable")
            .join(format!("pod{}", pod.uid))
            .join("main");
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let group = Self(path);
        std::fs::write(group.0.join("cgroup.procs"), program.id().to_string())
            .context("move the program into the group")?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The program may be dropped later than this: it goes home first.
        if let Ok(root) = tree() {
            let processes = std::fs::read_to_string(self.0.join("cgroup.procs"));
            for process in processes.unwrap_or_default().lines() {
                let _ = std::fs::write(root.join("cgroup.procs"), process);
            }
        }
        let gone = wait::until("the group to be empty", SOON, || {
            Ok(std::fs::remove_dir(&self.0).ok())
        });
        // Those above go with the last that is in them.
        if gone.is_ok() {
            for above in self.0.ancestors().skip(1).take(3) {
                let _ = std::fs::remove_dir(above);
            }
        }
    }
}

/// Where the tree of version 2 is mounted.
fn tree() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let found = mounts.find_map(|mut fields| {
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(at).to_owned())
    });
    found.context("no tree of control groups of version 2 is mounted")
}
