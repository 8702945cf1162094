//! Keeps the revocation lists in step with the deny list: one of every issuing CA whose SVIDs may live.
//!
//! The deny list names identities, nodes and serial numbers; a CRL knows
//! serial numbers alone. Which were signed for an identity or handed to a
//! node is known from [`Serials`], and before this start from the audit log.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::serials::Serials;
use super::state::State;
use crate::audit::{self, Filter, Outcome, Record};
use crate::authority::{Crl, Issued};
use crate::deny::DenyList;
use crate::model::{Serial, Subject};
use crate::registry::MAX_SVID_TTL;
use crate::{Error, NodeName, now_ms};

/// Other servers' lists are looked for so often: they are for those who check without handfast.
const LOOK: Duration = Duration::from_secs(5);

/// The lists, and what they are made of.
#[derive(Default)]
pub(super) struct Crls {
    lists: watch::Sender<Lists>,
    serials: Serials,
    /// An SVID was signed by a deny list that is no longer the newest.
    overtaken: Notify,
}

/// The lists as the Workload API hands them out, DER; none if none is made yet.
pub(super) type Lists = Arc<Vec<Vec<u8>>>;

impl Crls {
    /// Tells of new lists.
    pub(super) fn subscribe(&self) -> watch::Receiver<Lists> {
        self.lists.subscribe()
    }

    /// A workload's SVID was signed: to be told before it leaves.
    pub(super) fn signed(&self, issued: &Issued, node: &NodeName) {
        let identity = issued.spiffe_id.to_string();
        self.serials
            .add(&issued.serial, &identity, node.as_str(), issued.not_after);
    }

    /// What was just signed was judged by an older deny list: the list of that
    /// change may have been made without it.
    pub(super) fn remake(&self) {
        self.overtaken.notify_one();
    }
}

/// Makes the lists anew after each change of the deny list, which is dated anew every hour, and hands on those of all
/// servers. `log` is the folder of the audit log.
pub(super) async fn keep(state: Arc<State>, log: PathBuf) {
    fill(&state, log).await;
    let mut snapshots = state.snapshot.subscribe();
    let mut known = Known::default();
    // What an earlier run has made is replaced by what has a higher number.
    known.exchange(&state).await;
    loop {
        let deny = Arc::clone(&snapshots.borrow_and_update().deny);
        let signers = state.authority.list_signers();
        if known.made_for != Some((deny.number(), signers.clone())) {
            known.make(&state, &deny, signers).await;
        }
        known.exchange(&state).await;
        known.publish(&state);
        let look = async {
            match state.registry.is_shared() {
                true => tokio::time::sleep(LOOK).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = state.crls.overtaken.notified() => known.made_for = None,
            () = look => {}
        }
    }
}

/// The newest list of each issuing CA.
#[derive(Default)]
struct Known {
    /// By issuer.
    lists: BTreeMap<String, Crl>,
    /// The deny list, and whose lists were made of it.
    made_for: Option<(u64, Vec<String>)>,
    /// Those that the store has not got yet.
    untold: Vec<Crl>,
}

impl Known {
    async fn make(&mut self, state: &State, deny: &DenyList, signers: Vec<String>) {
        let revoked: Vec<_> = revoked(&state.crls.serials, deny).into_iter().collect();
        self.untold.clear();
        let mut all = !signers.is_empty();
        for signer in &signers {
            // Rises with each list (RFC 5280 section 5.2.3), whatever made it necessary.
            let last = self.lists.get(signer).map_or(0, |list| list.number);
            let number = deny.number().max(last + 1);
            match state.authority.sign_crl(signer, number, &revoked) {
                Ok(list) => {
                    self.untold.push(list.clone());
                    self.lists.insert(signer.clone(), list);
                }
                // Health says so; the next deny list is signed by who can.
                Err(Error::NotSigning(_)) => all = false,
                Err(error) => {
                    tracing::error!(%error, signer, "a revocation list is not made");
                }
            }
        }
        if all {
            self.made_for = Some((deny.number(), signers));
        }
    }

    /// Tells the other servers, and hears of theirs. Without the store there are one's own.
    async fn exchange(&mut self, state: &State) {
        if !self.untold.is_empty() {
            match state.registry.put_crls(&self.untold).await {
                Ok(()) => self.untold.clear(),
                Err(error) => tracing::warn!(%error, "revocation lists are not kept yet"),
            }
        }
        match state.registry.crls().await {
            Ok(lists) => {
                for list in lists {
                    let known = self.lists.get(&list.issuer);
                    if known.is_none_or(|known| known.number < list.number) {
                        self.lists.insert(list.issuer.clone(), list);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the other servers' revocation lists"),
        }
        let now = now_ms();
        self.lists.retain(|_, list| list.ends_ms > now);
    }

    fn publish(&self, state: &State) {
        let lists: Vec<Vec<u8>> = self.lists.values().map(|list| list.der.clone()).collect();
        state.crls.lists.send_if_modified(|published| {
            let news = **published != lists;
            if news {
                *published = Arc::new(lists);
            }
            news
        });
    }
}

/// Takes in what was signed before this start.
async fn fill(state: &Arc<State>, log: PathBuf) {
    let filling = Arc::clone(state);
    let longest = MAX_SVID_TTL.max(state.authority.lifetimes().workload);
    let reading = move || read(&filling.crls.serials, &log, longest);
    match tokio::task::spawn_blocking(reading).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(%error, "revocation lists lack what was signed before this start");
        }
        Err(error) => tracing::error!(%error, "reading the audit log"),
    }
}

/// `longest` in seconds: what was signed earlier has expired.
fn read(serials: &Serials, log: &Path, longest: u64) -> Result<(), Error> {
    let now = now_ms();
    let issued = Filter {
        act: Some("svid.issue".to_owned()),
        since_ms: Some(now.saturating_sub(longest.saturating_mul(1000))),
        ..Filter::default()
    };
    audit::read(log, &issued, |record| {
        if let Some((serial, not_after)) = live_workload_svid(&record, now / 1000) {
            let node = last_segment(&record.by);
            serials.add(&serial, &record.subject, node, not_after);
        }
        true
    })
}

/// Serial numbers that are denied, each with the time since which.
fn revoked(serials: &Serials, deny: &DenyList) -> BTreeMap<Serial, u64> {
    let (mut identities, mut nodes) = (HashMap::new(), HashMap::new());
    let mut revoked = BTreeMap::new();
    for denial in deny.denials() {
        match &denial.subject {
            Subject::Serial(serial) => {
                revoked.insert(serial.clone(), denial.since_ms);
            }
            Subject::SpiffeId(id) => {
                identities.insert(id.to_string(), denial.since_ms);
            }
            Subject::Node(name) => {
                nodes.insert(name.to_string(), denial.since_ms);
            }
        }
    }
    revoked.extend(serials.of(&identities, &nodes));
    revoked
}

/// Serial number and end, if the record is of a workload's SVID that has not expired.
fn live_workload_svid(record: &Record, now: u64) -> Option<(Serial, u64)> {
    let text = |key: &str| record.detail.get(key).and_then(|value| value.as_str());
    let not_after = record.detail.get("not_after")?.as_u64()?;
    let workload = text("kind")?.starts_with("workload");
    let lives = record.outcome == Outcome::Done && workload && not_after >= now;
    let serial = lives.then(|| text("serial")?.parse().ok()).flatten()?;
    Some((serial, not_after))
}

fn last_segment(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::audit::{Act, Audit};
    use crate::certificate::profile::Serial20;
    use crate::model::Denial;

    #[tokio::test]
    async fn a_long_log_is_read_once_and_not_at_each_revocation() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit");
        let audit = Audit::open(&log, "ca", None).unwrap();
        let node = "spiffe://example.org/handfast/node/n1";
        for batch in 0..20_u64 {
            let issued = (0..1000_u64).map(|at| {
                let name = format!("spiffe://example.org/w{at}");
                // Every tenth has expired.
                let not_after = if batch % 10 == 0 {
                    1
                } else {
                    now_ms() / 1000 + 3600
                };
                Act::done("svid.issue", node, name)
                    .with("serial", Serial20::random().as_serial().to_string())
                    .with("not_after", not_after)
                    .with("kind", "workload of entry 0123456789abcdef")
                    .with("from", "192.0.2.10:40000")
            });
            audit.record(issued.collect()).await.unwrap();
        }
        let serials = Serials::default();
        let at = Instant::now();
        read(&serials, &log, 24 * 3600).unwrap();
        let start = at.elapsed();
        let denial = |subject| Denial {
            subject,
            since_ms: 5,
            reason: String::new(),
        };
        let w7 = spiffe::SpiffeId::new("spiffe://example.org/w7").unwrap();
        let deny = DenyList::unsigned(1, vec![denial(Subject::SpiffeId(w7))]);
        let at = Instant::now();
        assert_eq!(revoked(&serials, &deny).len(), 18);
        let each = at.elapsed();
        let n1 = DenyList::unsigned(1, vec![denial(Subject::Node("n1".parse().unwrap()))]);
        assert_eq!(revoked(&serials, &n1).len(), 18_000);
        println!("20,000 issuances: {start:?} once at the start, {each:?} at each revocation");
        assert!(each < start / 10, "{each:?}, {start:?}");
    }
}
