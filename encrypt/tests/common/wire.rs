//! What is on a node's wire: a raw socket that looks at every packet, inside encapsulations too, and one that
//! sends what was caught before.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Node;

/// What was seen.
#[derive(Default)]
pub struct Seen {
    /// ESP packets.
    pub esp: usize,
    /// Different associations among them.
    pub spis: usize,
    /// Packets that show an address of a managed prefix, bare or inside something.
    pub clear: usize,
    /// ESP packets that came in, whole IPv4 packets.
    pub inward_esp: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (esp, spis, clear) = (self.esp, self.spis, self.clear);
        write!(
            f,
            "{esp} ESP packets by {spis} associations, {clear} in clear"
        )
    }
}

/// Looks until it is stopped.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Sniffer {
    pub fn start(node: &Node, device: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (name, device, flag) = (node.name.clone(), device.to_owned(), Arc::clone(&stop));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter(&name);
            let socket = packet_socket(&device).unwrap();
            ready.send(()).unwrap();
            watch(&socket, &flag)
        });
        is_ready.recv().unwrap();
        Self {
            stop,
            thread: Some(thread),
        }
    }

    pub fn stop(mut self) -> Seen {
        // What is on its way gets there.
        std::thread::sleep(std::time::Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Sends a whole IPv4 packet from a node, as it is.
pub fn send_raw(from: &Node, to: &str, packet: &[u8]) {
    let (name, packet) = (from.name.clone(), packet.to_vec());
    let to: Ipv4Addr = to.parse().unwrap();
    let sender = std::thread::spawn(move || {
        enter(&name);
        // SAFETY: a socket is opened, and owned at once; the address is whole.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW);
            assert!(socket >= 0);
            let socket = OwnedFd::from_raw_fd(socket);
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as u16;
            address.sin_addr.s_addr = u32::from(to).to_be();
            let sent = libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            );
            assert_eq!(
                sent,
                packet.len() as isize,
                "{}",
                io::Error::last_os_error()
            );
        }
    });
    sender.join().unwrap();
}

/// This thread goes to the node's network namespace.
fn enter(name: &str) {
    let namespace = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
}

fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a socket is opened, and owned at once; the address is whole.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all));
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = nix::net::if_::if_nametoindex(device)? as i32;
        let bound = libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        );
        let pause = libc::timeval {
            tv_sec: 0,
            tv_usec: 50_000,
        };
        let size: libc::c_int = 32 << 20;
        for (option, value, length) in [
            (
                libc::SO_RCVTIMEO,
                (&raw const pause).cast(),
                size_of_val(&pause),
            ),
            (
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of_val(&size),
            ),
        ] {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                value,
                length as u32,
            );
        }
        match bound {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn watch(socket: &OwnedFd, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut spis = BTreeSet::new();
    let mut frame = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: all zeros is an address without a family; the buffers outlive the call.
        let (length, from) = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut size = size_of_val(&from) as u32;
            let length = libc::recvfrom(
                socket.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            );
            (length, from)
        };
        let Ok(length) = usize::try_from(length) else {
            continue;
        };
        let Some(packet) = frame[..length].get(14..) else {
            continue;
        };
        if shows_managed(packet) {
            seen.clear += 1;
        } else if packet.len() > 28 && packet[0] == 0x45 && packet[9] == 50 {
            seen.esp += 1;
            spis.insert(packet[20..24].to_vec());
            if from.sll_pkttype == libc::PACKET_HOST {
                seen.inward_esp.push(packet.to_vec());
            }
        }
    }
    seen.spis = spis.len();
    seen
}

/// Whether an IP header with an address of 10.71.0.0/16 or fd71::/16 begins anywhere in the packet: bare, or in
/// VXLAN, Geneve, IPIP, GRE or whatever else is around it. ARP is about the underlay only.
fn shows_managed(packet: &[u8]) -> bool {
    (0..packet.len()).any(|at| {
        let rest = &packet[at..];
        let addresses: [Option<IpAddr>; 2] = match rest {
            // As long as it says, and with a header that adds up: ciphertext that looks so by chance does not.
            [0x45, ..] if rest.len() >= 20 && sums_up(&rest[..20]) => [12, 16].map(|at| {
                let bytes: [u8; 4] = rest[at..at + 4].try_into().unwrap();
                Some(IpAddr::from(bytes))
            }),
            [first, ..] if first >> 4 == 6 && rest.len() >= 40 => [8, 24].map(|at| {
                let bytes: [u8; 16] = rest[at..at + 16].try_into().unwrap();
                Some(IpAddr::from(bytes))
            }),
            _ => [None; 2],
        };
        addresses
            .into_iter()
            .flatten()
            .any(|address| match address {
                IpAddr::V4(v4) => v4.octets()[..2] == [10, 71],
                // Long enough for ciphertext not to look like it.
                IpAddr::V6(v6) => matches!(v6.segments(), [0xfd71, 1..=3, 0, 0, ..]),
            })
    })
}

/// Whether an IPv4 header's checksum fits (RFC 1071).
fn sums_up(header: &[u8]) -> bool {
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}
