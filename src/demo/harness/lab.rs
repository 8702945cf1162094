//! Machines made of network namespaces: hosts on one underlay, and workloads that a host will attach.
//!
//! ```text
//!   NAME-ca   NAME-n1   NAME-n2        hosts: eth0 172.31.250.K/24, fd31:250::K/64
//!      └─────────┼─────────┘
//!            NAME-net                  a bridge; the capture stands here, outside of every host
//! ```
//! A lab leaves nothing behind: dropping it ends every process in its namespaces and removes those, its folders
//! and its pins. Labs of processes that died without doing so are swept when the next one is made.

use std::ffi::CString;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::namespace::{self, Namespace};
use super::process::{Place, Process, c_path};

/// Labs' folders; below `/run` because sockets need short paths.
const ROOT: &str = "/run/handfast-demo";
/// The file in a lab's folder that lists the mount points made for it.
const MOUNT_POINTS: &str = "mount-points";
/// Labs' pins.
const BPF_ROOT: &str = "/sys/fs/bpf";

/// The variable that every process of a lab inherits, so that none is overlooked when the lab is removed.
pub const MARK: &str = "HANDFAST_LAB";

/// The machines of one demonstration or test.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    bpf: PathBuf,
    switch: Namespace,
    keep: bool,
}

/// Who made a lab, so that another process can tell whether it is still needed.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    started: String,
    kept: bool,
}

impl Lab {
    /// Makes the underlay of a new lab; `prefix` begins its name (at most 4 characters).
    pub fn create(prefix: &str) -> anyhow::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}{:x}{number:x}", std::process::id());
        let dir = Path::new(ROOT).join(&name);
        let bpf = bpf_dir(&name);
        std::fs::create_dir_all(dir.join("logs"))
            .with_context(|| format!("create {}", dir.display()))?;
        write_owner(&dir, false)?;
        // From here on the folder names the owner, so that even an error below is swept.
        let made = (|| {
            std::fs::create_dir(&bpf).with_context(|| format!("create {}", bpf.display()))?;
            let switch = Namespace::create(&format!("{name}-net"))?;
            switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0")?;
            switch.ip("link set br0 up")?;
            Ok(switch)
        })();
        match made {
            Ok(switch) => Ok(Self {
                name,
                dir,
                bpf,
                switch,
                keep: false,
            }),
            Err(error) => {
                remove(&name);
                Err(error)
            }
        }
    }

    /// The name that everything of this lab begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its folder on the bpffs.
    pub fn bpf(&self) -> &Path {
        &self.bpf
    }

    /// Where the programs' output goes.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The bridge between the hosts: every packet of the underlay passes here.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Makes a host with addresses .`number` and ::`number` on the underlay, which shares this machine's files.
    pub fn host(&self, short: &str, number: u8) -> anyhow::Result<Host> {
        self.host_with(short, &underlay(number), &[])
    }

    /// Makes a host with these addresses on the underlay.
    ///
    /// `own` are absolute paths that must not be shared with other hosts; each becomes a folder of this host.
    pub fn host_with(
        &self,
        short: &str,
        addresses: &[IpAddr],
        own: &[&str],
    ) -> anyhow::Result<Host> {
        let ns = Namespace::create(&format!("{}-{short}", self.name))?;
        self.switch.ip(&format!(
            "link add {short} type veth peer name eth0 netns {}",
            ns.name()
        ))?;
        self.switch.ip(&format!("link set {short} master br0 up"))?;
        for address in addresses {
            let bits = if address.is_ipv4() { 24 } else { 64 };
            let nodad = if address.is_ipv4() { "" } else { "nodad" };
            ns.ip(&format!("addr add {address}/{bits} dev eth0 {nodad}"))?;
        }
        ns.ip("link set eth0 up")?;
        // What a careful administrator's machine has: routing, and replies only by the way they came.
        ns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "1"),
        ])?;
        let dir = self.dir.join(short);
        std::fs::create_dir_all(&dir)?;
        let (holder, mnt) = match own {
            [] => (None, None),
            own => self
                .private_mounts(short, &ns, own)
                .map(|(h, m)| (Some(h), Some(m)))?,
        };
        let place = Place::new(self, &ns, mnt)?;
        Ok(Host {
            short: short.to_owned(),
            ns,
            place,
            holder,
            dir,
            addresses: addresses.to_vec(),
        })
    }

    /// A mount namespace in which each path of `own` is a folder of this host.
    fn private_mounts(
        &self,
        short: &str,
        ns: &Namespace,
        own: &[&str],
    ) -> anyhow::Result<(Process, OwnedFd)> {
        let mut binds = Vec::new();
        for path in own.iter().map(Path::new) {
            let mine = if path.starts_with(BPF_ROOT) {
                self.bpf.join(short)
            } else {
                let below = path.strip_prefix("/").unwrap_or(path);
                self.dir.join(short).join("root").join(below)
            };
            self.mount_point(path)?;
            std::fs::create_dir_all(&mine).with_context(|| format!("create {}", mine.display()))?;
            binds.push((c_path(&mine)?, c_path(path)?));
        }
        let holder = hold_mounts(self, ns, binds)?;
        let mnt = std::fs::File::open(format!("/proc/{}/ns/mnt", holder.id()))
            .context("open the host's mount namespace")?;
        Ok((holder, mnt.into()))
    }

    /// Makes the folder that will be mounted on, where this machine has none, and notes that it is ours to remove.
    fn mount_point(&self, path: &Path) -> anyhow::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        let mut list = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(MOUNT_POINTS))?;
        Ok(writeln!(list, "{}", path.display())?)
    }

    /// Makes a namespace for a workload, with no link yet.
    pub fn workload(&self, short: &str) -> anyhow::Result<Workload> {
        let ns = Namespace::create(&format!("{}-{short}", self.name))?;
        let place = Place::new(self, &ns, None)?;
        Ok(Workload {
            short: short.to_owned(),
            ns,
            place,
        })
    }

    /// Leaves everything running when this value is dropped.
    pub fn keep(&mut self) -> anyhow::Result<()> {
        write_owner(&self.dir, true)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            for problem in remove(&self.name) {
                eprintln!("left behind: {problem}");
            }
        }
    }
}

/// A machine.
#[derive(Debug)]
pub struct Host {
    /// Its name in the lab.
    pub short: String,
    /// Its network.
    pub ns: Namespace,
    /// Where its programs run.
    pub place: Place,
    /// The process that keeps its mounts, where it has its own.
    pub holder: Option<Process>,
    /// Its folder in the lab.
    pub dir: PathBuf,
    /// Its underlay addresses.
    pub addresses: Vec<IpAddr>,
}

/// A workload, attached or not.
#[derive(Debug)]
pub struct Workload {
    /// Its name in the lab.
    pub short: String,
    /// Its network.
    pub ns: Namespace,
    /// Where its programs run.
    pub place: Place,
}

impl Workload {
    /// The names of its interfaces.
    pub fn links(&self) -> Vec<String> {
        let links = self.ns.inside(|| {
            let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
            Ok(table
                .lines()
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
                .collect())
        });
        links.unwrap_or_default()
    }
}

/// The underlay addresses of a host.
pub fn underlay(number: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([172, 31, 250, number]),
        IpAddr::from([0xfd31, 0x250, 0, 0, 0, 0, 0, u16::from(number)]),
    ]
}

/// Removes the labs whose process is gone, kept ones excepted.
pub fn sweep() {
    for (name, owner) in labs() {
        let orphan = owner.is_none_or(|owner| {
            !owner.kept && started(owner.pid).is_none_or(|started| started != owner.started)
        });
        if orphan {
            remove(&name);
        }
    }
}

/// Removes the labs of this process: the last resort of a panic.
pub fn remove_own() {
    for (name, owner) in labs() {
        if owner.is_some_and(|owner| owner.pid == std::process::id()) {
            remove(&name);
        }
    }
}

/// Removes the labs that were kept. Returns their names.
pub fn remove_kept() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for (name, owner) in labs() {
        if owner.is_some_and(|owner| owner.kept) {
            let problems = remove(&name);
            if !problems.is_empty() {
                bail!("{name}: {}", problems.join("; "));
            }
            removed.push(name);
        }
    }
    Ok(removed)
}

fn labs() -> Vec<(String, Option<Owner>)> {
    let Ok(entries) = std::fs::read_dir(ROOT) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let owner = std::fs::read(entry.path().join("owner"))
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            Some((entry.file_name().into_string().ok()?, owner))
        })
        .collect()
}

fn write_owner(dir: &Path, kept: bool) -> anyhow::Result<()> {
    let pid = std::process::id();
    let owner = Owner {
        pid,
        started: started(pid).context("read /proc/self/stat")?,
        kept,
    };
    // Renamed into place: a sweep by another process never sees half of it.
    let path = dir.join("owner");
    let fresh = dir.join("owner.new");
    std::fs::write(&fresh, serde_json::to_vec(&owner)?)?;
    std::fs::rename(&fresh, &path).with_context(|| format!("write {}", path.display()))
}

/// When a process started, in the kernel's clock ticks: with its number, its identity.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; the start is the 22nd field, the 20th after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

fn bpf_dir(name: &str) -> PathBuf {
    Path::new(BPF_ROOT).join(format!("handfast-demo-{name}"))
}

/// Takes everything of a lab away, as far as possible; says what could not be.
fn remove(name: &str) -> Vec<String> {
    let mark = format!("{MARK}={name}");
    let mut problems = namespace::remove_all(&namespace::with_prefix(&format!("{name}-")), &mark);
    let dirs = [bpf_dir(name), Path::new(ROOT).join(name)];
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if dirs.iter().any(|dir| Path::new(at).starts_with(dir)) {
            // If this fails, so does the removal below, and says why.
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
    let [_, dir] = &dirs;
    for path in std::fs::read_to_string(dir.join(MOUNT_POINTS))
        .unwrap_or_default()
        .lines()
    {
        // Fails, as it should, where somebody else has put something there meanwhile.
        let _ = std::fs::remove_dir(path);
    }
    for dir in dirs {
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            problems.push(format!("{}: {error}", dir.display()));
        }
    }
    // The last one out; fails while other labs are there.
    let _ = std::fs::remove_dir(ROOT);
    problems
}

/// A process in the host's network, with mounts of its own that later programs of the host join.
fn hold_mounts(
    lab: &Lab,
    ns: &Namespace,
    binds: Vec<(CString, CString)>,
) -> anyhow::Result<Process> {
    let mut command = Command::new("sleep");
    command
        .arg("infinity")
        .env(MARK, &lab.name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let net = ns.as_fd().try_clone_to_owned()?;
    let isolate = move || {
        setns(&net, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Namespaces made later must appear here too, and nothing mounted here outside.
        let none: Option<&str> = None;
        mount(none, c"/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
        for (source, target) in &binds {
            mount(
                Some(source.as_c_str()),
                target.as_c_str(),
                none,
                MsFlags::MS_BIND,
                none,
            )?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls on values prepared before; paths are C strings
    // already, so nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(isolate) };
    let child = command.spawn().context("start a host's first process")?;
    Ok(Process::adopt("holder", child))
}
