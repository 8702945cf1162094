//! Packets for a tunnel to carry: TCP by iperf3, and numbered UDP datagrams that are counted one by one.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::lab::Workload;
use crate::harness::process::{Process, command};
use crate::harness::wait;

/// Datagrams in a second, and bytes of each.
pub const RATE: u32 = 10_000;
const BYTES: usize = 200;
const PORT: u16 = 7777;
/// They leave in bundles of this length.
const BUNDLE: Duration = Duration::from_millis(1);
/// What may wait at the receiver: losses there are none of the tunnel's.
const ROOM: usize = 32 << 20;
/// How long the last may be on the way.
const LAST: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

/// Until a workload reaches an address.
pub fn reach(from: &Workload, to: &str) -> Result<()> {
    wait::until("the other workload", LONG, || {
        let mut ping = command("ping", &["-c", "1", "-W", "1", to]);
        let said = from.place.run(&mut ping, LONG)?;
        Ok(said.status.success().then_some(()))
    })
}

/// A server that measures TCP.
pub struct Iperf(#[allow(dead_code, reason = "runs as long as this lives")] Process);

impl Iperf {
    pub fn start(server: &Workload) -> Result<Self> {
        let started = server.place.spawn(
            &format!("iperf-{}", server.short),
            &mut command("iperf3", &["-s"]),
        )?;
        Ok(Self(started))
    }

    /// Bits in a second, as the server got them.
    pub fn run(&self, client: &Workload, to: &str, seconds: u32) -> Result<f64> {
        let seconds = seconds.to_string();
        let said = wait::until("iperf3", LONG, || {
            let mut asked = command("iperf3", &["-J", "-c", to, "-t", &seconds]);
            let said = client.place.run(&mut asked, LONG)?;
            Ok(said.status.success().then_some(said))
        })?;
        let report: serde_json::Value = serde_json::from_str(&said.stdout)?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        bits.context("iperf3 told no rate")
    }
}

/// A flow of numbered datagrams.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
    ended: Arc<AtomicBool>,
}

/// What became of a flow.
#[derive(Debug)]
pub struct Carried {
    pub sent: u64,
    pub arrived: u64,
}

impl Flow {
    pub fn start(from: &Workload, to: &Workload, address: &str) -> Result<Self> {
        let address: SocketAddr = format!("{address}:{PORT}").parse()?;
        let receiver = to.ns.inside(|| Ok(UdpSocket::bind(address)?))?;
        setsockopt(&receiver, sockopt::RcvBufForce, &ROOM)?;
        let sender = from.ns.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        setsockopt(&sender, sockopt::SndBufForce, &ROOM)?;
        sender.connect(address)?;
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::default());
        Ok(Self {
            sender: std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || send(&sender, &stop)
            }),
            receiver: std::thread::spawn({
                let ended: Arc<AtomicBool> = Arc::clone(&ended);
                move || receive(&receiver, &ended)
            }),
            stop,
            ended,
        })
    }

    pub fn end(self) -> Result<Carried> {
        let broken = |_| anyhow!("a thread ended unexpectedly");
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(broken)??;
        std::thread::sleep(LAST);
        self.ended.store(true, Ordering::Relaxed);
        let arrived = self.receiver.join().map_err(broken)??;
        Ok(Carried { sent, arrived })
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool) -> Result<u64> {
    let bundle = u64::from(RATE) * u64::try_from(BUNDLE.as_micros())? / 1_000_000;
    let mut datagram = [0; BYTES];
    let (mut number, mut next) = (0_u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..bundle {
            if let Some(head) = datagram.first_chunk_mut::<8>() {
                *head = number.to_be_bytes();
            }
            socket.send(&datagram)?;
            number += 1;
        }
        next += BUNDLE;
        // Behind after a pause of the machine: it goes on at its rate, and does not make up for what was missed.
        let now = Instant::now();
        next = next.max(now - BUNDLE);
        std::thread::sleep(next.saturating_duration_since(now));
    }
    Ok(number)
}

/// Counts each number once.
fn receive(socket: &UdpSocket, ended: &AtomicBool) -> Result<u64> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut seen: Vec<bool> = Vec::new();
    let mut datagram = [0; BYTES + 1];
    loop {
        match socket.recv(&mut datagram) {
            Ok(BYTES) => {
                let head = datagram.first_chunk::<8>().context("a short datagram")?;
                let number = usize::try_from(u64::from_be_bytes(*head))?;
                if seen.len() <= number {
                    seen.resize(number + 1, false);
                }
                if let Some(seen) = seen.get_mut(number) {
                    *seen = true;
                }
            }
            Ok(_) => {}
            Err(_) if ended.load(Ordering::Relaxed) => {
                return Ok(seen.iter().filter(|seen| **seen).count() as u64);
            }
            Err(_) => {}
        }
    }
}
