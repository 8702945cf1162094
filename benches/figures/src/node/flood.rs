//! A workload that scans the mesh while others meet for the first time.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use super::connect::{connect, listen, quantile};
use super::first::policies;
use super::mesh::{LONG, Mesh, Wanted, addresses, cpu_seconds};
use crate::harness::lab::Workload;
use crate::harness::wait;
use crate::report::{Figure, Goal, figure};

const PAIRS: usize = 200;
/// Addresses of the other node's prefix that belong to nobody.
const UNKNOWN: u64 = 100_000;

/// `node.flood_p99_ms`, and what the agent used meanwhile.
pub fn measure() -> Result<Vec<Figure>> {
    let mut mesh = Mesh::start(2)?;
    mesh.apply(&policies(PAIRS, 0)?)?;
    let [scanner, warm] = ["scan", "warm"].map(|name| mesh.lab.workload(name));
    let (scanner, warm) = (scanner?, warm?);
    mesh.attach(1, &[wanted(&scanner, "warm-c", 5)])?;
    mesh.attach(2, &[wanted(&warm, "warm-s", 6)])?;
    let clients = mesh.namespaces("c", PAIRS)?;
    let servers = mesh.namespaces("s", PAIRS)?;
    let _listeners = servers
        .iter()
        .chain([&warm])
        .map(|server| listen(&server.ns))
        .collect::<Result<Vec<_>>>()?;
    let to = addresses(2, 6);
    let to = *to.first().context("an address")?;
    wait::until("the nodes' session", LONG, || {
        Ok(connect(&scanner.ns, to).ok())
    })?;
    let ours: Vec<Wanted> = numbered(&clients, "c");
    let theirs: Vec<Wanted> = numbered(&servers, "s");
    mesh.attach(1, &ours)?;
    mesh.attach(2, &theirs)?;

    let pid = mesh.node_mut(1)?.agent()?.id();
    let flood = Flood::start(&scanner)?;
    // The worst is over the bounds: let it get there.
    wait::pause(std::time::Duration::from_secs(4))?;
    let (start, used, sent) = (Instant::now(), cpu_seconds(pid)?, flood.sent());
    let mut times = Vec::new();
    for (client, server) in ours.iter().zip(&theirs) {
        let to = addresses(2, server.index);
        let to = *to.first().context("an address")?;
        times.push(connect(&client.workload.ns, to)?);
        wait::pause(std::time::Duration::from_millis(20))?;
    }
    let wall = start.elapsed().as_secs_f64();
    let cores = (cpu_seconds(pid)? - used) / wall;
    let rate = (flood.sent() - sent) as f64 / wall;
    flood.stop();
    let how = format!(
        "p99 of the first connections of {PAIRS} pairs while another workload of the same node sends {rate:.0} datagrams \
         a second to {UNKNOWN} addresses of the peer's prefix that nobody has (median {:.2} ms)",
        quantile(&times, 0.5)?
    );
    Ok(vec![
        figure(
            "node.flood_p99_ms",
            "ms",
            Goal::AtMost(20.0),
            vec![quantile(&times, 0.99)?],
            &how,
        )?,
        figure(
            "node.flood_agent_cores",
            "cores",
            Goal::AtMost(0.5),
            vec![cores],
            "processor time of the agent during the flood of node.flood_p99_ms, over the time that it took",
        )?,
    ])
}

fn wanted<'a>(workload: &'a Workload, label: &str, index: u8) -> Wanted<'a> {
    Wanted {
        workload,
        path: format!("{label}/{index}"),
        label: ("pair", label.to_owned()),
        index,
    }
}

fn numbered<'a>(workloads: &'a [Workload], kind: &str) -> Vec<Wanted<'a>> {
    let each = workloads.iter().zip(10..).enumerate();
    each.map(|(number, (workload, index))| wanted(workload, &format!("{kind}0-{number}"), index))
        .collect()
}

/// Datagrams as fast as one thread can send them.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn start(from: &Workload) -> Result<Self> {
        let socket = from.ns.inside(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                number = (number + 1) % UNKNOWN;
                let low = [(number >> 16) as u16, number as u16];
                let to = Ipv6Addr::new(0xfd77, 0, 0, 2, 0xdead, 0, low[0], low[1]);
                // What the kernel refuses is a part of a flood.
                if socket
                    .send_to(b"anybody?", SocketAddr::new(to.into(), 9))
                    .is_ok()
                {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { stop, sent, thread })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic there shows as a trickle.
        drop(self.thread.join());
    }
}
