//! The thread that writes: what waits is written and made durable together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::act::Act;
use super::file::{Log, Position};
use super::line::Record;
use super::syslog::Syslog;
use crate::{Error, metrics, now_ms};

/// Batches that wait for the disk; whoever brings one more waits with them.
const QUEUE: usize = 256;
/// Batches that are made durable at once.
const TOGETHER: usize = 64;

/// A handle of the log. Cheap to clone; the log closes with the last.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    batches: mpsc::Sender<Batch>,
    position: watch::Receiver<Position>,
    failing: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Batch {
    acts: Vec<Act>,
    written: oneshot::Sender<Result<(), String>>,
}

impl Audit {
    /// Opens the log in `dir` and begins to write. `server` is the name that
    /// its records carry; `syslog` the socket of a local collector.
    pub(crate) fn open(dir: &Path, server: &str, syslog: Option<PathBuf>) -> Result<Self, Error> {
        let (log, torn) = Log::open(dir)?;
        let (batches, receiver) = mpsc::channel(QUEUE);
        let (positions, position) = watch::channel(log.position);
        let failing = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            log,
            server: server.to_owned(),
            syslog: syslog.map(Syslog::new),
            positions,
            failing: Arc::clone(&failing),
        };
        if torn > 0 {
            let act = Act::done("audit.repair", "ca", "audit log").with("bytes_removed", torn);
            writer.write(vec![act])?;
        }
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(Error::io("cannot start a thread for", dir))?;
        Ok(Self {
            batches,
            position,
            failing,
        })
    }

    /// Writes acts down, in this order; returns when they are durable.
    pub(crate) async fn record(&self, acts: Vec<Act>) -> Result<(), Error> {
        let (written, outcome) = oneshot::channel();
        let gone = || Error::Audit("its writer has ended".to_owned());
        self.batches
            .send(Batch { acts, written })
            .await
            .map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(Error::Audit)
    }

    /// Asked before anything is signed or changed: can it be written down?
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        if self.failing() {
            let resumed = Act::done("audit.resume", "ca", "audit log");
            self.record(vec![resumed]).await
        } else {
            Ok(())
        }
    }

    /// Was the last attempt to write a failure?
    pub(crate) fn failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// How far the log has come.
    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }
}

struct Writer {
    log: Log,
    server: String,
    syslog: Option<Syslog>,
    positions: watch::Sender<Position>,
    failing: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(first) = batches.blocking_recv() {
            let mut acts = first.acts;
            let mut waiting = vec![first.written];
            while let Some(batch) = (waiting.len() < TOGETHER)
                .then(|| batches.try_recv().ok())
                .flatten()
            {
                acts.extend(batch.acts);
                waiting.push(batch.written);
            }
            let since = Instant::now();
            let outcome = self.write(acts).map_err(|error| error.to_string());
            metrics::audit(since);
            self.failing.store(outcome.is_err(), Ordering::Release);
            if let Err(problem) = &outcome {
                tracing::error!(problem, "audit; nothing is signed or changed without it");
            }
            for one in waiting {
                // Whoever has stopped waiting does not need to know.
                let _ = one.send(outcome.clone());
            }
        }
    }

    fn write(&mut self, acts: Vec<Act>) -> Result<(), Error> {
        let at_ms = now_ms();
        let mut position = self.log.position;
        let mut lines = String::new();
        for act in acts {
            let number = position.entries + 1;
            let record = Record::new(act, number, at_ms, &self.server, position.hash);
            let (line, hash) = record.to_line()?;
            lines.push_str(&line);
            position = Position {
                entries: number,
                hash,
            };
        }
        self.log.append(lines.as_bytes(), position)?;
        self.positions.send_replace(position);
        if let Some(syslog) = &mut self.syslog {
            let at = crate::client::moment(at_ms);
            lines.lines().for_each(|line| syslog.send(&at, line));
        }
        Ok(())
    }
}
