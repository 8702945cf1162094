//! What the CA is told of this node: the last update that was applied, and what the node's SVIDs still hang on.
//!
//! One report at a time and always the newest: two that overtake each other would leave a rotation waiting for
//! something that has long happened.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_ca::client::AgentClient;
use tokio::sync::watch;

/// Before a report that was not taken is said again.
const RETRY: Duration = Duration::from_secs(2);

/// A workload has taken in by then what went out on its stream; nobody says so. A rotation that runs ahead of slow
/// clients, or of an agent that is killed in that moment, would have them refused.
const TAKING_IN: Duration = Duration::from_millis(500);

/// How the node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// The last update; 0 before the first.
    pub(super) sequence: u64,
    /// Why it could not be applied, if it could not.
    pub(super) problem: Option<String>,
    /// What the node's own SVIDs hang on.
    pub(super) node: BTreeSet<Arc<str>>,
    /// What its workloads' hang on.
    pub(super) workloads: BTreeSet<Arc<str>>,
    /// Workloads that an earlier run has served, and that have not asked again.
    pub(super) away: Option<Away>,
    /// Number of the bundle that workloads were sent.
    bundle: u64,
    /// When that, or what is in use, changed last.
    changed: Option<Instant>,
}

/// What workloads use that cannot be told anything yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away {
    /// What their SVIDs hang on.
    pub(super) authorities: BTreeSet<Arc<str>>,
    /// Number of the bundle that they have.
    pub(super) bundle: u64,
    /// The last update that came with another one: applied here, not yet by them.
    applied: Option<(u64, Option<String>)>,
}

impl Away {
    pub(super) fn new(authorities: BTreeSet<Arc<str>>, bundle: u64) -> Self {
        Self {
            authorities,
            bundle,
            applied: None,
        }
    }
}

impl Report {
    /// Everything that something here hangs on.
    pub(super) fn in_use(&self) -> Vec<String> {
        let away = self.away.iter().flat_map(|away| &away.authorities);
        let all: BTreeSet<&Arc<str>> = self.node.union(&self.workloads).chain(away).collect();
        all.into_iter().map(ToString::to_string).collect()
    }

    /// An update is applied, with the bundle of this number.
    pub(super) fn applied(&mut self, sequence: u64, problem: Option<String>, bundle: u64) {
        match &mut self.away {
            Some(away) if away.bundle != bundle => away.applied = Some((sequence, problem)),
            _ => (self.sequence, self.problem) = (sequence, problem),
        }
        self.bundle = bundle;
    }

    /// Changes it; says whether the CA would hear another thing.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let (told, felt) = (self.told(), (self.bundle, self.in_use()));
        change(self);
        if self.sequence > 0 && (self.bundle, self.in_use()) != felt {
            self.changed = Some(Instant::now());
        }
        self.told() != told
    }

    fn told(&self) -> (u64, Option<String>, Vec<String>) {
        (self.sequence, self.problem.clone(), self.in_use())
    }

    /// How long it is to be kept back.
    fn rest(&self) -> Option<Duration> {
        let since = self.changed?.elapsed();
        TAKING_IN.checked_sub(since).filter(|rest| !rest.is_zero())
    }

    /// Who was away is back, and has what this node has.
    pub(super) fn back(&mut self) {
        if let Some(applied) = self.away.take().and_then(|away| away.applied) {
            (self.sequence, self.problem) = applied;
        }
    }
}

/// Tells one server; ends when dropped.
#[derive(Debug)]
pub(super) struct Reporter(tokio::task::JoinHandle<()>);

impl Reporter {
    pub(super) fn start(client: AgentClient, reports: watch::Receiver<Report>) -> Self {
        Self(tokio::spawn(run(client, reports)))
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(client: AgentClient, mut reports: watch::Receiver<Report>) {
    loop {
        let report = reports.borrow_and_update().clone();
        // Before this node has applied anything there is nothing to tell.
        if report.sequence > 0 {
            if let Some(rest) = report.rest() {
                tokio::time::sleep(rest).await;
                continue;
            }
            let told = client
                .acknowledge(report.sequence, report.problem.as_deref(), report.in_use())
                .await;
            if let Err(error) = told {
                tracing::debug!(%error, report.sequence, "the CA did not take an acknowledgement");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
}
