//! Fail closed: whatever is killed, whenever, the wrong client's packets never reach the server.
//!
//! HANDFAST_KILLS says how many kills of each process, 50 unless told; HANDFAST_SEED their moments.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::capture::{Capture, WireWatch};
use crate::harness::counters::Arrivals;
use crate::harness::lab::Workload;
use crate::harness::mesh::{Node, TUNNEL_PORTS, ranges, workload_addresses};
use crate::harness::wait;
use crate::support::{self, Mesh, PAGE, SOON};

/// In every datagram of the wrong client, so that it is known whatever address it shows.
const MARKER: &[u8] = b"a packet of the wrong client";
/// How often each process is killed unless told otherwise.
const KILLS: usize = 50;
/// What is killed in turn: the CA, two agents, two tunnels.
const VICTIMS: usize = 5;

#[test]
fn the_wrong_client_never_reaches_the_server_whatever_is_killed() {
    let Some(_turn) = support::turn("kills") else {
        return;
    };
    let mut mesh = Mesh::start();
    let server = mesh.workload(&mesh.n2, "nginx", &["run=nginx"], 2);
    let _http = support::serve(&mesh.lab, &server);
    mesh.apply(&support::example_policy());
    let wrong = workload_addresses(1, 4);
    let arrivals = Arrivals::watch(&server.place, &[("wrong", &wrong)]).unwrap();
    let marked = Capture::start(
        &server.ns,
        WireWatch::new(Vec::new(), b"", MARKER, &TUNNEL_PORTS),
    )
    .unwrap();
    let wire = Capture::start(
        mesh.lab.switch(),
        WireWatch::new(ranges(), b"", MARKER, &TUNNEL_PORTS),
    )
    .unwrap();
    let good = mesh.workload(&mesh.n1, "good", &["client=good"], 3);
    let bad = mesh.workload(&mesh.n1, "bad", &["client=bad"], 4);
    let url = support::url(workload_addresses(2, 2)[0]);
    assert_eq!(support::curl(&good, &url, 5).as_deref(), Ok(PAGE));

    let flood = Flood::start(&bad, workload_addresses(2, 2), workload_addresses(1, 3));
    let mut moments = Moments::from_environment();
    let times = std::env::var("HANDFAST_KILLS").map_or(KILLS, |times| times.parse().unwrap());
    let kills = times * VICTIMS;
    for turn in 0..kills {
        wait::pause(Duration::from_millis(moments.next() % 250)).unwrap();
        supervise(&mut mesh);
        let victim = kill_one(&mut mesh, turn, &mut moments);
        let (arrived, shown) = (
            arrivals.packets("wrong").unwrap(),
            marked.with(|marked| marked.secrets),
        );
        assert_eq!(
            (arrived, shown),
            (0, 0),
            "after kill {turn}, of {victim}; {moments:?}"
        );
    }
    let sent = flood.stop();
    eprintln!("{kills} kills under {sent} packets of the wrong client; {moments:?}");
    assert!(sent > 100 * kills as u64, "the flood was a trickle: {sent}");
    wire.with(|wire| {
        assert_eq!(
            (wire.clear, wire.secrets),
            (0, 0),
            "{}",
            wire.describe_findings()
        );
    });
    assert_eq!(
        marked.lost().unwrap(),
        0,
        "the capture at the server missed frames"
    );

    // Everything has come again: the right client still gets its page.
    let start = Instant::now();
    let page = wait::until("the right client after all that", 2 * SOON, || {
        supervise(&mut mesh);
        Ok(support::curl(&good, &url, 3).ok())
    });
    let page = page.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.evidence()));
    eprintln!("the right client was back after {:?}", start.elapsed());
    assert_eq!(page, PAGE);
    assert_eq!(arrivals.packets("wrong").unwrap(), 0);
}

/// What a service manager does: an agent whose tunnel was killed while it started has ended, and is started again.
fn supervise(mesh: &mut Mesh) {
    for node in [&mut mesh.n1, &mut mesh.n2] {
        if !node.agent().unwrap().running() {
            node.launch().unwrap();
        }
    }
}

/// Kills one process and, where nobody else would, starts it again. Returns its name.
fn kill_one(mesh: &mut Mesh, turn: usize, moments: &mut Moments) -> &'static str {
    let restart_after = Duration::from_millis(moments.next() % 150);
    match turn % VICTIMS {
        0 => {
            mesh.authority.server().unwrap().kill();
            wait::pause(restart_after).unwrap();
            mesh.authority.serve().unwrap();
            "the CA"
        }
        1 => {
            restart(&mut mesh.n1, restart_after);
            "the client's agent"
        }
        2 => {
            restart(&mut mesh.n2, restart_after);
            "the server's agent"
        }
        3 => {
            kill_tunnel(&mesh.n1);
            "the client's tunnel"
        }
        _ => {
            kill_tunnel(&mesh.n2);
            "the server's tunnel"
        }
    }
}

fn restart(node: &mut Node, after: Duration) {
    node.agent().unwrap().kill();
    wait::pause(after).unwrap();
    // Not waited for: the next kill may well meet an agent that is still starting.
    node.launch().unwrap();
    wait::pause(after).unwrap();
}

/// Kills the userspace WireGuard of a node, where it has one.
fn kill_tunnel(node: &Node) {
    for pid in node.host.ns.processes() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "wireguard-go" {
            // It may just have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Moments that one number decides (xorshift64).
#[derive(Debug)]
struct Moments {
    #[allow(dead_code, reason = "printed, so that a failure can be repeated")]
    seed: u64,
    state: u64,
}

impl Moments {
    fn from_environment() -> Self {
        let seed = std::env::var("HANDFAST_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
        Self {
            seed,
            state: seed | 1,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 16
    }
}

/// The wrong client, doing what it can: UDP, TCP, both families, and the right client's addresses as its own.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    workers: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(bad: &Workload, targets: [IpAddr; 2], spoofed: [IpAddr; 2]) -> Self {
        bad.ns
            .sysctl(&[
                ("net/ipv4/ip_nonlocal_bind", "1"),
                ("net/ipv6/ip_nonlocal_bind", "1"),
            ])
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let mut workers = Vec::new();
        for (target, spoofed) in targets.into_iter().zip(spoofed) {
            let any: IpAddr = if target.is_ipv4() {
                "0.0.0.0".parse().unwrap()
            } else {
                "::".parse().unwrap()
            };
            let sockets = bad
                .ns
                .inside(|| {
                    Ok([any, spoofed].map(|from| {
                        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).unwrap();
                        socket.set_nonblocking(true).unwrap();
                        socket
                    }))
                })
                .unwrap();
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            workers.push(std::thread::spawn(move || {
                datagrams(&stop, &sent, &sockets, target);
            }));
        }
        let namespace = crate::harness::namespace::Namespace::open(bad.ns.name()).unwrap();
        let (ending, count) = (Arc::clone(&stop), Arc::clone(&sent));
        workers.push(std::thread::spawn(move || {
            namespace
                .inside(|| {
                    connects(&ending, &count, targets);
                    Ok(())
                })
                .unwrap();
        }));
        Self {
            stop,
            sent,
            workers,
        }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.join().unwrap();
        }
        self.sent.load(Ordering::Relaxed)
    }
}

fn datagrams(stop: &AtomicBool, sent: &AtomicU64, sockets: &[UdpSocket], target: IpAddr) {
    let mut port = 1;
    while !stop.load(Ordering::Relaxed) {
        for socket in sockets {
            // Refusals by the kernel's queues are part of a flood.
            for port in [80, port] {
                let went = socket
                    .send_to(MARKER, SocketAddr::new(target, port))
                    .is_ok();
                sent.fetch_add(u64::from(went), Ordering::Relaxed);
            }
        }
        port = port % 60_000 + 7;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connects(stop: &AtomicBool, sent: &AtomicU64, targets: [IpAddr; 2]) {
    while !stop.load(Ordering::Relaxed) {
        for target in targets {
            let to = SocketAddr::new(target, 80);
            let through = TcpStream::connect_timeout(&to, Duration::from_millis(5)).is_ok();
            assert!(!through, "the wrong client has a connection to {to}");
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}
