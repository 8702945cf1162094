//! One TCP connection and how long it took to be made.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::harness::counters::Retransmissions;
use crate::harness::lab::Workload;
use crate::harness::namespace::Namespace;

/// The port of every server here.
pub const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(10);

/// A listener in a namespace. The kernel makes the connections; nobody has to take them.
pub fn listen(ns: &Namespace) -> Result<TcpListener> {
    ns.inside(|| Ok(TcpListener::bind(("::", PORT))?))
}

/// Connects from a namespace, and says how long that took.
pub fn connect(ns: &Namespace, to: IpAddr) -> Result<Duration> {
    let to = SocketAddr::new(to, PORT);
    ns.inside(|| {
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&to, PATIENCE);
        let took = start.elapsed();
        drop(stream.with_context(|| format!("no connection to {to}"))?);
        Ok(took)
    })
}

/// Takes what a listener has waiting, so that its queue has room.
pub fn drain(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    while listener.accept().is_ok() {}
    Ok(())
}

/// SYN and SYN-ACK segments that these have had to send again, ever.
pub fn syn_again<'a>(all: impl IntoIterator<Item = &'a Workload>) -> Result<u64> {
    let mut sum = 0;
    for workload in all {
        sum += Retransmissions::read(&workload.ns)?.syn;
    }
    Ok(sum)
}

/// A quantile, in milliseconds.
pub fn quantile(times: &[Duration], of: f64) -> Result<f64> {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = ((sorted.len() as f64 * of) as usize).min(sorted.len().saturating_sub(1));
    let time = sorted.get(at).context("nothing was measured")?;
    Ok(time.as_secs_f64() * 1000.0)
}
