//! Workloads that never stop talking, and count what they hear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::MARKER;
use crate::harness::lab::Workload;

const PORT: u16 = 5005;

/// A workload that talks to another's addresses without end, and counts what it hears.
pub struct Talk {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    heard: [Arc<AtomicU64>; 2],
    workers: Vec<JoinHandle<()>>,
}

impl Talk {
    pub fn start(workload: &Workload, to: [IpAddr; 2]) -> Self {
        let mut talk = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            heard: [Arc::default(), Arc::default()],
            workers: Vec::new(),
        };
        for (address, heard) in to.into_iter().zip(talk.heard.clone()) {
            // One port for each family: the socket for IPv6 would take both.
            let (any, port): (IpAddr, u16) = match address {
                IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), PORT),
                IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), PORT + 1),
            };
            let bind = || Ok(UdpSocket::bind(SocketAddr::new(any, port))?);
            let socket = workload.ns.inside(bind).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            let hearing = socket.try_clone().unwrap();
            let stop = Arc::clone(&talk.stop);
            talk.workers.push(std::thread::spawn(move || {
                let mut bytes = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if hearing.recv(&mut bytes).is_ok() {
                        heard.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
            let (stop, sent) = (Arc::clone(&talk.stop), Arc::clone(&talk.sent));
            talk.workers.push(std::thread::spawn(move || {
                // Some of them longer than a packet: fragments are looked through as well.
                let (short, mut long) = (MARKER.to_vec(), MARKER.repeat(48));
                long.truncate(1900);
                let mut turn = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    turn = turn.wrapping_add(1);
                    let words = if turn.is_multiple_of(16) {
                        &long
                    } else {
                        &short
                    };
                    // No link yet, or none any more: said to nobody.
                    let said = socket.send_to(words, SocketAddr::new(address, port));
                    sent.fetch_add(u64::from(said.is_ok()), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            }));
        }
        talk
    }

    /// Datagrams heard so far, by family.
    pub fn heard(&self) -> [u64; 2] {
        self.heard
            .each_ref()
            .map(|heard| heard.load(Ordering::Relaxed))
    }

    /// Datagrams sent in all.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let _ = worker.join();
        }
        self.sent.load(Ordering::Relaxed)
    }
}
