//! Nothing is lost while keys change: a stream of numbered datagrams goes on through new keys of the tunnel on either
//! side, and through an agent's restart, with which its sessions are renewed.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::lab::Workload;
use crate::harness::mesh::workload_addresses;
use crate::harness::process::command;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

/// Datagrams a second, unless `HANDFAST_RATE` says otherwise: what a busy machine's userspace WireGuard still keeps up
/// with when it does not run for a while.
const RATE: u64 = 1000;
const PORT: u16 = 7777;

#[test]
fn no_packet_is_lost_to_new_keys_or_a_restart() {
    changes_under_load("wireguard");
}

#[test]
fn no_packet_is_lost_to_new_keys_of_ipsec_or_a_restart() {
    changes_under_load("ipsec");
}

fn changes_under_load(encryption: &str) {
    let Some(_turn) = support::turn_over(&format!("rotation of {encryption}"), encryption) else {
        return;
    };
    let rate = std::env::var("HANDFAST_RATE").map_or(RATE, |told| told.parse().unwrap());
    let mut mesh = Mesh::start_over(encryption);
    let one = mesh.workload(&mesh.n1, "one", &[], 2);
    let two = mesh.workload(&mesh.n2, "two", &[], 2);
    let [to, _] = workload_addresses(2, 2);
    // The pair is proven: what waits for a proof is held within bounds, and this is not about those.
    let ping = format!("-c 1 -W 1 {to}");
    let reached = wait::until("the first answer", 4 * SOON, || {
        let mut ping = command("ping", &ping.split(' ').collect::<Vec<_>>());
        let said = one.place.run(&mut ping, SOON)?;
        Ok((said.code() == 0).then_some(()))
    });
    reached.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
    let stream = Stream::start(&one, &two, SocketAddr::new(to, PORT), rate);
    stream.flows(&mesh, "at first");
    for (node, name) in [(&mesh.n1, "n1"), (&mesh.n2, "n2")] {
        // In an emulator everything takes longer.
        let limit = wait::patience(Duration::from_secs(18))
            .as_secs()
            .to_string();
        let rotated = node.cli(&["tunnel", "rotate-keys", "--timeout", &limit]);
        let rotated = rotated.unwrap();
        rotated.success("handfast tunnel rotate-keys").unwrap();
        stream.flows(&mesh, &format!("with new keys of {name}"));
    }
    mesh.n1.agent().unwrap().interrupt(SOON).unwrap();
    mesh.n1.run().unwrap();
    stream.flows(&mesh, "after a restart");
    let (sent, missing) = stream.stop();
    assert!(sent > rate, "{sent} are hardly any");
    assert!(
        missing.is_empty(),
        "lost of {sent}: {missing:?}\n{}",
        mesh.evidence()
    );
    eprintln!("{encryption}: {sent} sent at up to {rate}/s, none lost");
}

/// Numbered datagrams from one workload to another.
struct Stream {
    stop: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<BTreeSet<u64>>,
    all_sent: Arc<AtomicU64>,
}

impl Stream {
    fn start(from: &Workload, to: &Workload, at: SocketAddr, rate: u64) -> Self {
        let hearing = to.ns.inside(|| {
            let socket = UdpSocket::bind(at)?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        });
        let hearing = hearing.unwrap();
        let saying = from.ns.inside(|| {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(at)?;
            Ok(socket)
        });
        let saying = saying.unwrap();
        let (stop, heard) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let all_sent = Arc::new(AtomicU64::new(u64::MAX));
        let sender = std::thread::spawn({
            let (stop, all_sent) = (Arc::clone(&stop), Arc::clone(&all_sent));
            move || {
                let sent = send(&saying, rate, &stop);
                all_sent.store(sent, Ordering::Release);
                sent
            }
        });
        let receiver = std::thread::spawn({
            let (heard, all_sent) = (Arc::clone(&heard), Arc::clone(&all_sent));
            move || receive(&hearing, &heard, &all_sent)
        });
        Self {
            stop,
            heard,
            sender,
            receiver,
            all_sent,
        }
    }

    /// Waits until more has come.
    #[track_caller]
    fn flows(&self, mesh: &Mesh, when: &str) {
        let before = self.heard.load(Ordering::Relaxed);
        let more = wait::until("the stream to flow", 4 * SOON, || {
            let now = self.heard.load(Ordering::Relaxed);
            Ok((now > before + 200).then_some(()))
        });
        more.unwrap_or_else(|error| panic!("{when}: {error:#}\n{}", mesh.evidence()));
    }

    /// Ends it. How many were sent, and which of them were lost.
    fn stop(self) -> (u64, Vec<u64>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        assert_eq!(self.all_sent.load(Ordering::Acquire), sent);
        let heard = self.receiver.join().unwrap();
        let missing = (0..sent).filter(|number| !heard.contains(number));
        (sent, missing.collect())
    }
}

/// Sends `rate` datagrams a second, those of a millisecond together. What was missed by not running is not made up for.
fn send(socket: &UdpSocket, rate: u64, stop: &AtomicBool) -> u64 {
    let mut datagram = [b'x'; 200];
    let burst = rate.div_ceil(1000);
    let pause = Duration::from_nanos(burst * 1_000_000_000 / rate);
    let (mut number, mut next) = (0_u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..burst {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            socket.send(&datagram).unwrap();
            number += 1;
        }
        next = (next + pause).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    number
}

/// Hears until all that was sent is here, or nothing comes any more.
fn receive(socket: &UdpSocket, heard: &AtomicU64, all_sent: &AtomicU64) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut bytes = [0; 2048];
    let mut last = Instant::now();
    loop {
        if let Ok(length) = socket.recv(&mut bytes) {
            assert_eq!(length, 200);
            numbers.insert(u64::from_be_bytes(bytes[..8].try_into().unwrap()));
            heard.fetch_add(1, Ordering::Relaxed);
            last = Instant::now();
        }
        let all = all_sent.load(Ordering::Acquire);
        let over = all != u64::MAX && last.elapsed() > wait::patience(Duration::from_secs(3));
        if over || u64::try_from(numbers.len()).unwrap() >= all {
            return numbers;
        }
    }
}
