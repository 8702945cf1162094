//! Keeps the revocation list in step with the deny list.
//!
//! The deny list names identities, nodes and serial numbers; a CRL knows
//! serial numbers alone. Which were signed for an identity or handed to a
//! node stands in the audit log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::state::State;
use crate::audit::{self, Filter, Outcome, Record};
use crate::deny::DenyList;
use crate::model::{Serial, Subject};
use crate::{Error, now_ms};

/// No workload's SVID lives longer (milliseconds).
const LONGEST_MS: u64 = 366 * 24 * 3600 * 1000;

/// The lists as the Workload API hands them out, DER.
pub(super) type Crls = Arc<Vec<Vec<u8>>>;

/// Makes the list anew after each change of the deny list, which is dated
/// anew every hour. `log` is the folder of the audit log.
pub(super) async fn keep(state: Arc<State>, log: PathBuf) {
    let mut snapshots = state.snapshot.subscribe();
    let mut made = None;
    loop {
        let deny = Arc::clone(&snapshots.borrow_and_update().deny);
        if made != Some(deny.number()) {
            match make(&state, &log, &deny).await {
                Ok(list) => {
                    made = Some(deny.number());
                    state.crls.send_replace(Arc::new(vec![list]));
                }
                Err(error) => tracing::error!(%error, "the revocation list is not made"),
            }
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

async fn make(
    state: &State,
    log: &std::path::Path,
    deny: &Arc<DenyList>,
) -> Result<Vec<u8>, Error> {
    let (log, asked) = (log.to_owned(), Arc::clone(deny));
    let revoked = tokio::task::spawn_blocking(move || revoked(&log, &asked))
        .await
        .map_err(|error| Error::Protocol(error.to_string()))??;
    let revoked: Vec<(Serial, u64)> = revoked.into_iter().collect();
    state.authority.sign_crl(deny.number(), &revoked)
}

/// Serial numbers that are denied, each with the time since which.
fn revoked(log: &std::path::Path, deny: &DenyList) -> Result<BTreeMap<Serial, u64>, Error> {
    let mut revoked = BTreeMap::new();
    let mut by_name = BTreeMap::new();
    for denial in deny.denials() {
        match &denial.subject {
            Subject::Serial(serial) => {
                revoked.insert(serial.clone(), denial.since_ms);
            }
            Subject::SpiffeId(id) => {
                by_name.insert(id.to_string(), denial.since_ms);
            }
            Subject::Node(name) => {
                by_name.insert(format!("node {name}"), denial.since_ms);
            }
        }
    }
    if by_name.is_empty() {
        return Ok(revoked);
    }
    let now = now_ms() / 1000;
    let issued = Filter {
        act: Some("svid.issue".to_owned()),
        since_ms: Some(now_ms().saturating_sub(LONGEST_MS)),
        ..Filter::default()
    };
    audit::read(log, &issued, |record| {
        let since = by_name
            .get(&record.subject)
            .or_else(|| by_name.get(&format!("node {}", last_segment(&record.by))));
        if let (Some(since), Some(serial)) = (since, live_workload_svid(&record, now)) {
            revoked.insert(serial, *since);
        }
        true
    })?;
    Ok(revoked)
}

/// The serial number, if the record is of a workload's SVID that has not expired.
fn live_workload_svid(record: &Record, now: u64) -> Option<Serial> {
    let text = |key: &str| record.detail.get(key).and_then(|value| value.as_str());
    let not_after = record.detail.get("not_after")?.as_u64()?;
    let workload = text("kind")?.starts_with("workload");
    (record.outcome == Outcome::Done && workload && not_after >= now)
        .then(|| text("serial")?.parse().ok())
        .flatten()
}

fn last_segment(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}
