//! What the CA is told of this node: the last update that was applied, and what the node's SVIDs still hang on.
//!
//! One report at a time and always the newest: two that overtake each other would leave a rotation waiting for
//! something that has long happened.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use handfast_ca::client::AgentClient;
use tokio::sync::watch;

/// Before a report that was not taken is said again.
const RETRY: Duration = Duration::from_secs(2);

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
}

impl Report {
    /// Everything that something here hangs on.
    pub(super) fn in_use(&self) -> Vec<String> {
        self.node
            .union(&self.workloads)
            .map(ToString::to_string)
            .collect()
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
