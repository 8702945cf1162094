//! Requests that never stop, from a pod to whichever pods are ready, and a count of those that were lost.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::harness::wait;
use crate::pod::Pod;
use crate::support::{PAGE, SOON};

/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod that requests may go to.
#[derive(Debug)]
pub struct Backend {
    address: IpAddr,
    /// Requests that are on their way.
    open: AtomicUsize,
}

/// What balances load over pods that are ready, and keeps the books.
#[derive(Debug, Default)]
pub struct Traffic {
    ready: Mutex<Vec<Arc<Backend>>>,
    stop: AtomicBool,
    done: AtomicUsize,
    lost: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

/// Ends the requests, also when what goes on meanwhile panics.
pub struct Running<'a>(&'a Traffic);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

impl Traffic {
    /// A pod is ready.
    pub fn add(&self, address: IpAddr) {
        let backend = Backend {
            address,
            open: AtomicUsize::new(0),
        };
        locked(&self.ready).push(Arc::new(backend));
    }

    /// A pod is to go: no request goes there any more, and those that are on their way are waited for.
    pub fn drain(&self, address: IpAddr) -> anyhow::Result<()> {
        let mut ready = locked(&self.ready);
        let at = ready.iter().position(|backend| backend.address == address);
        let backend = ready.remove(at.context("it is not ready")?);
        drop(ready);
        wait::until("open requests to end", SOON, || {
            Ok((backend.open.load(Ordering::SeqCst) == 0).then_some(()))
        })
    }

    /// Waits until so many more requests have been answered.
    pub fn more(&self, count: usize) -> anyhow::Result<()> {
        let wanted = self.done.load(Ordering::SeqCst) + count;
        let answered = wait::until("requests to be answered", SOON, || {
            Ok((self.done.load(Ordering::SeqCst) >= wanted).then_some(()))
        });
        answered.with_context(|| format!("{:?}", self.books()))
    }

    /// Stops the requests when it is dropped.
    pub fn running(&self) -> Running<'_> {
        Running(self)
    }

    /// Answered, lost (with the reasons), and how long the slowest took.
    pub fn books(&self) -> (usize, Vec<String>, Duration) {
        (
            self.done.load(Ordering::SeqCst),
            locked(&self.lost).clone(),
            *locked(&self.slowest),
        )
    }

    /// Sends requests from a pod, one after the other, each on a connection of its own, until it is stopped.
    pub fn send_from(&self, client: &Pod, turn: usize) {
        let sent = client.workload.ns.inside(|| {
            let mut turn = turn;
            while !self.stop.load(Ordering::SeqCst) {
                turn += 1;
                self.send(turn);
            }
            Ok(())
        });
        if let Err(error) = sent {
            locked(&self.lost).push(format!("no requests at all: {error:#}"));
        }
    }

    fn send(&self, turn: usize) {
        let ready = locked(&self.ready);
        let Some(backend) = ready.get(turn % ready.len().max(1)).map(Arc::clone) else {
            return;
        };
        // Counted before it could be drained.
        backend.open.fetch_add(1, Ordering::SeqCst);
        drop(ready);
        let begun = Instant::now();
        let answer = page(backend.address);
        let taken = begun.elapsed();
        backend.open.fetch_sub(1, Ordering::SeqCst);
        match answer {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::SeqCst);
                let mut slowest = locked(&self.slowest);
                *slowest = (*slowest).max(taken);
            }
            Err(error) => {
                // By the clock of the agents' logs.
                let now = time::OffsetDateTime::now_utc().time();
                locked(&self.lost).push(format!(
                    "{} at {now} after {taken:?}: {error:#}",
                    backend.address
                ));
            }
        }
    }
}

fn page(address: IpAddr) -> anyhow::Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, 80), PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read")?;
    ensure!(answer.ends_with(PAGE), "not the page: {answer:?}");
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
