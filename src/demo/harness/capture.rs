//! A capture by an AF_PACKET socket of ours: every frame that enters the interfaces of a namespace.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;

use super::namespace::Namespace;
use super::scan::{self, Clear, Wrapping};

/// The socket's buffer: what arrives while the reader does not run.
const BUFFER: libc::c_int = 64 << 20;
/// The longest frame: an offloaded one has up to 64 KiB of payload.
const LONGEST: usize = 72 << 10;
/// Findings whose details are kept.
const KEPT: usize = 16;

/// A running capture; frames go to a handler on the capture's own thread.
#[derive(Debug)]
pub struct Capture<H> {
    shared: Arc<Shared<H>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<H> {
    socket: OwnedFd,
    handler: Mutex<H>,
    stop: AtomicBool,
    lost: Mutex<u64>,
}

/// Takes frames, once each, as they come in.
pub trait Handler: Send + 'static {
    /// One frame.
    fn frame(&mut self, now: Instant, frame: &[u8]);
}

impl<H: Handler> Capture<H> {
    /// Starts a capture on all interfaces of a namespace, those included that appear later.
    pub fn start(ns: &Namespace, handler: H) -> anyhow::Result<Self> {
        let socket = ns.inside(open_socket)?;
        let shared = Arc::new(Shared {
            socket,
            handler: Mutex::new(handler),
            stop: AtomicBool::new(false),
            lost: Mutex::new(0),
        });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || read(&reading))?;
        Ok(Self {
            shared,
            reader: Some(reader),
        })
    }

    /// Looks at what the handler has gathered.
    pub fn with<T>(&self, look: impl FnOnce(&mut H) -> T) -> T {
        look(
            &mut self
                .shared
                .handler
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Frames that the kernel had no room for, so that nobody has seen them.
    pub fn lost(&self) -> anyhow::Result<u64> {
        let mut lost = self
            .shared
            .lost
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *lost += drops(&self.shared.socket)?;
        Ok(*lost)
    }
}

impl<H> Drop for Capture<H> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // A panic of the reader has been printed; there is nothing to add.
            let _ = reader.join();
        }
    }
}

fn read<H: Handler>(shared: &Shared<H>) {
    let mut buffer = vec![0; LONGEST];
    while !shared.stop.load(Ordering::Relaxed) {
        // SAFETY: the descriptor is open as long as `shared`, and the buffer is writable for its whole length.
        let length = unsafe {
            libc::recv(
                shared.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        // A timeout, an interface that went down: look whether to stop, and go on.
        let Ok(length) = usize::try_from(length) else {
            continue;
        };
        if let Some(frame) = buffer.get(..length) {
            shared
                .handler
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .frame(Instant::now(), frame);
        }
    }
}

fn open_socket() -> anyhow::Result<OwnedFd> {
    let every = libc::c_int::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
    // SAFETY: a system call without pointers; the result is checked before it becomes an owner.
    let descriptor =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error()).context("open a packet socket");
    }
    // SAFETY: `descriptor` was just opened and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let timeout = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    // Each frame once: as it comes in, not again as it leaves by another port.
    option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)?;
    Ok(socket)
}

/// From linux/if_packet.h (Linux 4.20).
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

fn option<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> anyhow::Result<()> {
    // SAFETY: `value` is readable for the length given, and the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            libc::socklen_t::try_from(size_of::<T>())?,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("set option {name} of a packet socket"));
    }
    Ok(())
}

/// Reads, and by that resets, the socket's count of frames that found no room.
fn drops(socket: &OwnedFd) -> anyhow::Result<u64> {
    let mut counts = [0u32; 2];
    let mut length = libc::socklen_t::try_from(size_of_val(&counts))?;
    // SAFETY: `counts` is writable for `length` bytes, the size of struct tpacket_stats.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            counts.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("read a packet socket's statistics");
    }
    Ok(u64::from(counts[1]))
}

/// Sends a frame as it is from an interface of a namespace. False if a program on its way out dropped it at once.
pub fn inject(ns: &Namespace, interface: &str, frame: &[u8]) -> anyhow::Result<bool> {
    ns.inside(|| {
        let socket = open_socket()?;
        // SAFETY: all zero is a valid sockaddr_ll; its fields are set below.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET)?;
        to.sll_ifindex = nix::net::if_::if_nametoindex(interface)?.cast_signed();
        // SAFETY: frame and address are readable for the lengths given, and live until the call returns.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                libc::socklen_t::try_from(size_of_val(&to))?,
            )
        };
        if usize::try_from(sent) == Ok(frame.len()) {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOBUFS) => Ok(false),
            _ => Err(error).context("inject a frame"),
        }
    })
}

/// Looks for workload addresses and for a marker of the payload on the underlay.
#[derive(Debug)]
pub struct WireWatch {
    watched: Vec<IpNet>,
    canary: Vec<u8>,
    secret: Vec<u8>,
    tunnel_ports: Vec<u16>,
    /// All frames.
    pub frames: u64,
    /// WireGuard messages and ESP packets among them.
    pub tunnelled: u64,
    /// Injected frames that were found, by what was around them.
    pub canaries: Vec<Wrapping>,
    /// Frames that show a workload's address.
    pub clear: u64,
    /// Frames that contain the secret.
    pub secrets: u64,
    /// The first findings.
    pub findings: Vec<Finding>,
}

/// One frame that shows what it must not.
#[derive(Clone, Debug)]
pub struct Finding {
    /// When.
    pub at: Instant,
    /// What could be read; absent where only the secret was found.
    pub clear: Option<Clear>,
    /// The frame's beginning.
    pub head: Vec<u8>,
}

impl WireWatch {
    /// Frames that carry `canary` are the proof that the capture sees; `secret` must never be seen.
    pub fn new(watched: Vec<IpNet>, canary: &[u8], secret: &[u8], tunnel_ports: &[u16]) -> Self {
        Self {
            watched,
            canary: canary.to_vec(),
            secret: secret.to_vec(),
            tunnel_ports: tunnel_ports.to_vec(),
            frames: 0,
            tunnelled: 0,
            canaries: Vec::new(),
            clear: 0,
            secrets: 0,
            findings: Vec::new(),
        }
    }
}

impl WireWatch {
    /// The first findings, a line each.
    pub fn describe_findings(&self) -> String {
        let line = |finding: &Finding| {
            let what = match &finding.clear {
                Some(clear) => format!("{clear:?}"),
                None => "the secret".into(),
            };
            let head: String = finding
                .head
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("{:?} ago: {what}: {head}", finding.at.elapsed())
        };
        self.findings
            .iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Handler for WireWatch {
    fn frame(&mut self, now: Instant, frame: &[u8]) {
        self.frames += 1;
        if scan::is_tunnelled(frame, &self.tunnel_ports) {
            self.tunnelled += 1;
        }
        let clear = scan::scan(frame, &self.watched);
        if let Some(clear) = &clear
            && contains(frame, &self.canary)
        {
            self.canaries.push(clear.wrapping);
            return;
        }
        let secret = contains(frame, &self.secret);
        self.clear += u64::from(clear.is_some());
        self.secrets += u64::from(secret);
        if (clear.is_some() || secret) && self.findings.len() < KEPT {
            self.findings.push(Finding {
                at: now,
                clear,
                head: frame.iter().take(128).copied().collect(),
            });
        }
    }
}

/// When frames from certain addresses came into a namespace.
#[derive(Debug)]
pub struct FlowWatch {
    sources: Vec<IpNet>,
    /// How many came.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last came.
    pub last: Option<Instant>,
    /// The longest time between two.
    pub longest_gap: Duration,
}

impl FlowWatch {
    /// Watches frames from these addresses.
    pub fn new(sources: &[std::net::IpAddr]) -> Self {
        Self {
            sources: sources.iter().copied().map(IpNet::from).collect(),
            frames: 0,
            bytes: 0,
            last: None,
            longest_gap: Duration::ZERO,
        }
    }
}

impl Handler for FlowWatch {
    fn frame(&mut self, now: Instant, frame: &[u8]) {
        if scan::source(frame).is_none_or(|from| !self.sources.iter().any(|s| s.contains(&from))) {
            return;
        }
        self.frames += 1;
        self.bytes += u64::try_from(frame.len()).unwrap_or_default();
        if let Some(last) = self.last {
            self.longest_gap = self.longest_gap.max(now.duration_since(last));
        }
        self.last = Some(now);
    }
}

/// True if `needle` is somewhere in `hay`: by the C library, since every byte of a download passes here.
fn contains(hay: &[u8], needle: &[u8]) -> bool {
    if needle.is_empty() {
        return false;
    }
    // SAFETY: both are readable for their lengths.
    let found = unsafe {
        libc::memmem(
            hay.as_ptr().cast(),
            hay.len(),
            needle.as_ptr().cast(),
            needle.len(),
        )
    };
    !found.is_null()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_is_in_a_frame() {
        assert!(contains(b"xxsecret", b"secret"));
        assert!(!contains(b"xxsecre", b"secret"));
        assert!(!contains(b"anything", b""));
    }
}
