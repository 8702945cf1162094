//! `kill -9` of the agents under load: what is proven goes on without the loss of a packet, what is not stays out.
//!
//! HANDFAST_KILLS says how many kills, 20 unless told.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::counters::{Arrivals, Retransmissions};
use crate::harness::lab::Workload;
use crate::harness::mesh::workload_addresses;
use crate::harness::namespace::Namespace;
use crate::harness::wait;
use crate::support::{self, Mesh, SOON};

const KILLS: usize = 20;
const DATAGRAMS: u16 = 5001;
const STREAM: u16 = 5002;
const CONNECTIONS: u16 = 5003;
const LIMIT: Duration = Duration::from_secs(10);

/// `client: good` may reach the server by any protocol, proven.
const POLICY: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: restarts}
spec:
  endpointSelector: {matchLabels: {run: nginx}}
  ingress:
    - fromEndpoints: [{matchLabels: {client: good}}]
      authentication: {mode: required}
";

#[test]
fn an_agent_killed_twenty_times_costs_a_proven_pair_no_packet_and_lets_no_other_through() {
    let Some(_turn) = support::turn("restarts") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    mesh.apply(POLICY);
    let wrong = workload_addresses(1, 4);
    let arrivals = Arrivals::watch(&server.place, &[("wrong", &wrong)]).unwrap();
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let bad = mesh.workload(&mesh.n1, "bad", &["client=bad"], 4);

    let stop = Arc::new(AtomicBool::new(false));
    let to = workload_addresses(2, 2);
    let echo = Echo::start(&server, &good, to, &stop);
    let stream = Stream::start(&server, &good, to[0], &stop);
    let connects = Connects::start(&server, &good, to[1], &stop);
    let _wrong = flood(&bad, to, &stop);
    wait::until("all flows", SOON, || {
        let flows = [&echo.received, &stream.received, &connects.made];
        let begun = flows.iter().all(|f| f.load(Ordering::Relaxed) > 20);
        Ok(begun.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
    let begun = Instant::now();
    let before = Retransmissions::read(&good.ns).unwrap();

    let kills = std::env::var("HANDFAST_KILLS").map_or(KILLS, |times| times.parse().unwrap());
    for kill in 0..kills {
        let node = [&mut mesh.n1, &mut mesh.n2]
            .into_iter()
            .nth(kill % 2)
            .unwrap();
        node.agent().unwrap().kill();
        // Long enough that the flows notice, were there something to notice.
        wait::pause(Duration::from_millis(100 + 37 * (kill as u64 % 10))).unwrap();
        node.launch().unwrap();
        if kill % 3 > 0 {
            node.ready().unwrap();
        }
        wait::pause(Duration::from_millis(200)).unwrap();
    }
    mesh.n1.ready().unwrap();
    mesh.n2.ready().unwrap();
    wait::pause(Duration::from_secs(1)).unwrap();

    let again = Retransmissions::read(&good.ns).unwrap().since(before);
    stop.store(true, Ordering::Relaxed);
    let (sent, answered) = echo.end();
    let (bytes, longest) = stream.end();
    let (made, failed, slowest) = connects.end();
    eprintln!(
        "{kills} kills in {:.1?}: {answered} of {sent} datagrams answered, {bytes} bytes in order with pauses up to \
         {longest:?}, {made} new connections up to {slowest:?}, {} segments sent again",
        begun.elapsed(),
        again.all
    );
    assert_eq!(answered, sent, "datagrams were lost");
    assert_eq!(failed, 0, "new connections of the proven pair failed");
    assert_eq!(again.syn, 0, "first packets of new connections were lost");
    assert!(
        longest < Duration::from_secs(5),
        "the stream stood still for {longest:?}"
    );
    assert_eq!(arrivals.packets("wrong").unwrap(), 0);
}

/// Numbered datagrams over both families, each echoed.
struct Echo {
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Echo {
    fn start(
        server: &Workload,
        client: &Workload,
        to: [IpAddr; 2],
        stop: &Arc<AtomicBool>,
    ) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        let far = socket(server, DATAGRAMS, false);
        std::thread::spawn(move || echo(&far));
        for to in to {
            let near = socket(client, 0, to.is_ipv4());
            let (ending, count) = (Arc::clone(stop), Arc::clone(&received));
            threads.push(std::thread::spawn(move || {
                let mut sent = 0;
                let to = SocketAddr::new(to, DATAGRAMS);
                while !ending.load(Ordering::Relaxed) {
                    sent += u64::from(near.send_to(b"number", to).is_ok());
                    std::thread::sleep(Duration::from_millis(4));
                    count.fetch_add(waiting(&near), Ordering::Relaxed);
                }
                let last = Instant::now();
                while last.elapsed() < Duration::from_secs(2) {
                    count.fetch_add(waiting(&near), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
                sent
            }));
        }
        Self { received, threads }
    }

    /// How many were sent, and how many answered.
    fn end(self) -> (u64, u64) {
        let sent = self.threads.into_iter().map(|t| t.join().unwrap()).sum();
        (sent, self.received.load(Ordering::Relaxed))
    }
}

fn socket(at: &Workload, port: u16, v4: bool) -> UdpSocket {
    let any = if v4 { "0.0.0.0" } else { "::" };
    let bind = || Ok(UdpSocket::bind((any, port)).unwrap());
    let socket = at.ns.inside(bind).unwrap();
    socket.set_nonblocking(port == 0).unwrap();
    // Room for what comes while its reader's thread waits for a processor.
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
    socket
}

fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    // Ends with the process: the namespace may be gone before.
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], from);
    }
}

fn waiting(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 64];
    let mut count = 0;
    while socket.recv_from(&mut buffer).is_ok() {
        count += 1;
    }
    count
}

/// One connection that never pauses by itself.
struct Stream {
    received: Arc<AtomicU64>,
    reader: JoinHandle<Duration>,
}

impl Stream {
    fn start(server: &Workload, client: &Workload, to: IpAddr, stop: &Arc<AtomicBool>) -> Self {
        let listener = listen(server, STREAM);
        let ending = Arc::clone(stop);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut number: u8 = 0;
            while !ending.load(Ordering::Relaxed) && stream.write_all(&[number; 512]).is_ok() {
                number = number.wrapping_add(1);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let namespace = Namespace::open(client.ns.name()).unwrap();
        let reader = std::thread::spawn(move || {
            let to = SocketAddr::new(to, STREAM);
            let connect = || Ok(TcpStream::connect_timeout(&to, LIMIT).unwrap());
            let mut stream = namespace.inside(connect).unwrap();
            let mut piece = [0; 512];
            let (mut number, mut longest) = (0u8, Duration::ZERO);
            let mut last = Instant::now();
            while stream.read_exact(&mut piece).is_ok() {
                assert!(
                    piece.iter().all(|byte| *byte == number),
                    "bytes are out of order"
                );
                number = number.wrapping_add(1);
                longest = longest.max(last.elapsed());
                last = Instant::now();
                count.fetch_add(512, Ordering::Relaxed);
            }
            longest
        });
        Self { received, reader }
    }

    /// The bytes, and the longest pause between two pieces.
    fn end(self) -> (u64, Duration) {
        let longest = self.reader.join().unwrap();
        (self.received.load(Ordering::Relaxed), longest)
    }
}

/// One new connection after the other, of a pair that is proven.
struct Connects {
    made: Arc<AtomicU64>,
    thread: JoinHandle<(u64, Duration)>,
}

impl Connects {
    fn start(server: &Workload, client: &Workload, to: IpAddr, stop: &Arc<AtomicBool>) -> Self {
        let listener = listen(server, CONNECTIONS);
        std::thread::spawn(move || while listener.accept().is_ok() {});
        let made = Arc::new(AtomicU64::new(0));
        let (ending, count) = (Arc::clone(stop), Arc::clone(&made));
        let namespace = Namespace::open(client.ns.name()).unwrap();
        let thread = std::thread::spawn(move || {
            let to = SocketAddr::new(to, CONNECTIONS);
            let all = || {
                let (mut failed, mut slowest) = (0, Duration::ZERO);
                while !ending.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    match TcpStream::connect_timeout(&to, LIMIT) {
                        Ok(_) => count.fetch_add(1, Ordering::Relaxed),
                        Err(_) => {
                            failed += 1;
                            0
                        }
                    };
                    slowest = slowest.max(start.elapsed());
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok((failed, slowest))
            };
            namespace.inside(all).unwrap()
        });
        Self { made, thread }
    }

    /// How many were made, how many failed, and how long the slowest took.
    fn end(self) -> (u64, u64, Duration) {
        let (failed, slowest) = self.thread.join().unwrap();
        (self.made.load(Ordering::Relaxed), failed, slowest)
    }
}

fn listen(at: &Workload, port: u16) -> TcpListener {
    let bind = || Ok(TcpListener::bind(("::", port)).unwrap());
    at.ns.inside(bind).unwrap()
}

/// The wrong client's datagrams and connections to the same ports.
fn flood(bad: &Workload, to: [IpAddr; 2], stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let sockets = to.map(|to| socket(bad, 0, to.is_ipv4()));
    let namespace = Namespace::open(bad.ns.name()).unwrap();
    let ending = Arc::clone(stop);
    std::thread::spawn(move || {
        let all = || {
            while !ending.load(Ordering::Relaxed) {
                for (socket, to) in sockets.iter().zip(to) {
                    let _ = socket.send_to(b"wrong", SocketAddr::new(to, DATAGRAMS));
                    let to = SocketAddr::new(to, CONNECTIONS);
                    let through = TcpStream::connect_timeout(&to, Duration::from_millis(5));
                    assert!(
                        through.is_err(),
                        "the wrong client has a connection to {to}"
                    );
                }
            }
            Ok(())
        };
        namespace.inside(all).unwrap();
    })
}
