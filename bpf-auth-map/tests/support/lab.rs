//! Network namespaces without names: each is a thread, and goes away with it.

use std::{
    fs,
    io::{Read, Write},
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that lives in it.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    path: String,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let tid = nix::unistd::gettid();
            ready
                .send(format!("/proc/{}/task/{tid}/ns/net", std::process::id()))
                .unwrap();
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let path = is_ready.recv().unwrap();
        let namespace = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            path,
        };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Runs a closure in the namespace.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, wait) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        wait.recv().expect("the job panicked: see above")
    }

    /// Runs shell lines in the namespace; each must succeed.
    pub fn sh(&self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let line = line.to_owned();
            self.run(move || {
                let output = Command::new("sh").args(["-c", &line]).output().unwrap();
                assert!(
                    output.status.success(),
                    "{line}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            });
        }
    }

    /// Where other tools find it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A sysctl under net/.
    pub fn sysctl(&self, name: &str, value: &str) {
        let (name, value) = (format!("/proc/sys/net/{name}"), value.to_owned());
        self.run(move || fs::write(&name, value).unwrap_or_else(|error| panic!("{name}: {error}")));
    }

    /// A counter of /proc/net/netstat, by its name.
    pub fn netstat(&self, name: &'static str) -> u64 {
        self.run(move || {
            let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
            let mut lines = text.lines();
            while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
                let at = names.split(' ').position(|n| n == name);
                if let Some(at) = at {
                    return values.split(' ').nth(at).unwrap().parse().unwrap();
                }
            }
            panic!("no counter {name}")
        })
    }

    pub fn ifindex(&self, name: &'static str) -> u32 {
        self.run(move || nix::net::if_::if_nametoindex(name).unwrap())
    }

    /// A TUN device of this namespace.
    pub fn tun(&self, name: &'static str) -> fs::File {
        self.run(move || {
            nix::ioctl_write_ptr_bad!(set_iff, nix::request_code_write!(b'T', 202, 4), libc::ifreq);
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap();
            // SAFETY: all zeros is an empty request.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
            // SAFETY: the descriptor is open, and the request is whole.
            unsafe { set_iff(file.as_raw_fd(), &request) }.unwrap();
            file
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries packets between two TUN devices, as a tunnel would. Ends when the devices go.
pub fn carry(mut from: fs::File, mut to: fs::File) {
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(length) = from.read(&mut buffer) {
            if to.write(&buffer[..length]).is_err() {
                break;
            }
        }
    });
}
