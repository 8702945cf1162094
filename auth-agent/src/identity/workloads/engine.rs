//! The task that keeps SVIDs fresh: it looks what is due, makes keys, has the CA sign them in batches, and publishes
//! what comes back.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{MAX_BATCH, Refusal, Svid, SvidKind, SvidRequest};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::Inner;
use super::held::Held;
use super::state::Whom;
use crate::identity::{IdentityError, KnownEntry, NotReached};

/// Batches that are with the CA at once: enough to keep it busy, few enough that ten thousand SVIDs that are to be
/// replaced at once do not keep others waiting.
const MAX_CALLS: usize = 4;
/// Workloads that are looked at again at once.
const MAX_LOOKS: usize = 8;
/// How often things are looked at that nothing reports.
const TICK: Duration = Duration::from_secs(1);

/// Runs until nobody holds the workloads any more.
pub(super) async fn run(
    inner: Weak<Inner>,
    wake: Arc<Notify>,
    mut reached: watch::Receiver<Option<String>>,
) {
    let mut calls = JoinSet::new();
    let mut looks = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = inner.upgrade().map_or(0, |inner| inner.lock().now());
    loop {
        // Let go before waiting: what waits here must not keep the workloads alive.
        if let Some(inner) = inner.upgrade() {
            last = keep_house(&inner, last);
            if looks.is_empty() && !inner.lock().to_look_at().is_empty() {
                looks.spawn(look_again(Arc::clone(&inner)));
            }
            while calls.len() < MAX_CALLS {
                let due = {
                    let mut state = inner.lock();
                    let now = state.now();
                    state.table.due(now, MAX_BATCH)
                };
                if due.is_empty() {
                    break;
                }
                calls.spawn(batch(Arc::clone(&inner), due));
            }
        } else {
            return;
        }
        tokio::select! {
            () = wake.notified() => {}
            Some(_) = calls.join_next() => {}
            Some(_) = looks.join_next() => {}
            _ = tick.tick() => {}
            changed = reached.changed() => {
                if changed.is_err() {
                    return;
                }
                if reached.borrow_and_update().is_some()
                    && let Some(inner) = inner.upgrade()
                {
                    inner.lock().table.reached();
                }
            }
        }
    }
}

/// What the clock alone brings about since the last look. Returns the time of this one (unix seconds).
fn keep_house(inner: &Inner, last: u64) -> u64 {
    let mut state = inner.lock();
    let now = state.now();
    if now == last {
        return now;
    }
    if now < last {
        state.set_back(now);
    }
    let by_clock = state.table.ended(last, now) || state.table.changed_out(last, now);
    let gone: HashSet<Arc<str>> = state.table.tidy(now).into_iter().collect();
    if by_clock {
        state.publish(&Whom::All);
    } else {
        // Also forgets streams that were closed.
        state.publish(&Whom::With(&gone));
    }
    inner.tidy_jwts(&state, now);
    drop(state);
    inner.keep.forget(&gone);
    inner.note_served();
    inner.report();
    now
}

/// Looks again at workloads that are served; each hears of it as soon as it was looked at.
async fn look_again(inner: Arc<Inner>) {
    let (todo, demands) = {
        let state = inner.lock();
        (state.to_look_at(), state.table.demands())
    };
    let mut looks = futures::stream::iter(todo)
        .map(|(key, attested)| {
            let inner = Arc::clone(&inner);
            async move { (key, inner.look(&attested.peer, demands).await) }
        })
        .buffer_unordered(MAX_LOOKS);
    while let Some((key, looked)) = looks.next().await {
        if let Err(error) = &looked {
            tracing::debug!(%error, "a workload could not be looked at again");
        }
        let mut state = inner.lock();
        state.looked_at(key, looked.ok(), demands);
        state.publish(&Whom::One(key));
    }
    inner.wake.notify_one();
}

/// A key, and the entry that it is for.
struct Asked {
    entry: Arc<KnownEntry>,
    key: PrivateKey,
}

/// One call to the CA, from keys to publication.
async fn batch(inner: Arc<Inner>, entries: Vec<Arc<KnownEntry>>) {
    let ids: Vec<Arc<str>> = entries.iter().map(|e| e.id.as_str().into()).collect();
    let (asked, requests) = match tokio::task::spawn_blocking(move || make(entries)).await {
        Ok(Ok(made)) => made,
        Ok(Err(error)) => return put_off(&inner, &ids, &error.to_string()),
        Err(error) => return put_off(&inner, &ids, &error.to_string()),
    };
    let started = Instant::now();
    let answers = inner.link.issue(requests).await;
    match answers {
        Ok(answers) => {
            crate::metrics::issued("workload", started.elapsed());
            take(inner, asked, answers).await;
        }
        Err(NotReached { reason, .. }) => {
            crate::metrics::not_issued("workload", "not-reached", ids.len());
            put_off(&inner, &ids, &reason);
        }
    }
}

fn put_off(inner: &Inner, ids: &[Arc<str>], reason: &str) {
    tracing::debug!(%reason, count = ids.len(), "workload SVIDs were not issued");
    let mut state = inner.lock();
    let now = state.now();
    state.table.not_issued(ids, now);
}

fn make(entries: Vec<Arc<KnownEntry>>) -> Result<(Vec<Asked>, Vec<SvidRequest>), IdentityError> {
    let mut asked = Vec::with_capacity(entries.len());
    let mut requests = Vec::with_capacity(entries.len());
    for entry in entries {
        let key = PrivateKey::generate()?;
        requests.push(SvidRequest {
            kind: SvidKind::Workload {
                entry_id: entry.id.clone(),
            },
            csr: key.csr()?,
        });
        asked.push(Asked { entry, key });
    }
    Ok((asked, requests))
}

/// Verifies what came, publishes it, and keeps it for the next run.
async fn take(inner: Arc<Inner>, asked: Vec<Asked>, answers: Vec<Result<Svid, Refusal>>) {
    let (verifier, now) = {
        let state = inner.lock();
        (state.verifier.clone(), state.now())
    };
    let judging = tokio::task::spawn_blocking(move || {
        let pairs = asked.into_iter().zip(answers);
        let judged = pairs.map(|(Asked { entry, key }, answer)| {
            let id: Arc<str> = entry.id.as_str().into();
            let outcome = match answer {
                Ok(svid) => Held::verify(entry, &key, svid, &verifier, now).map_err(Failed::Bad),
                Err(refusal) => Err(Failed::Refused(refusal)),
            };
            (id, outcome)
        });
        judged.collect::<Vec<_>>()
    });
    let Ok(judged) = judging.await else { return };
    let accepted = publish(&inner, judged);
    inner.report();
    // Saved only now: whoever waits for an SVID does not wait for a file.
    let saving = tokio::task::spawn_blocking(move || {
        for held in &accepted {
            inner.keep.save(held, || inner.lock().table.holds(held));
        }
    });
    if let Err(error) = saving.await {
        tracing::warn!(%error, "SVIDs are not kept for a restart");
    }
}

/// Takes in what is good, and tells those who wait for it. Returns what was taken.
fn publish(inner: &Inner, judged: Vec<(Arc<str>, Result<Held, Failed>)>) -> Vec<Held> {
    let mut accepted = Vec::new();
    let mut touched = HashSet::new();
    let mut state = inner.lock();
    let now = state.now();
    for (id, outcome) in judged {
        match outcome {
            // The list may have come while this one was on its way.
            Ok(held) if state.denies_serial(&held.serial) => {
                state.table.not_issued(&[Arc::clone(&id)], now);
            }
            Ok(held) => {
                if state.table.accept(&id, held.clone(), now) {
                    accepted.push(held);
                }
            }
            Err(Failed::Refused(refusal)) if is_final(&refusal) => {
                tracing::warn!(entry = %id, %refusal, "the CA refuses a workload SVID");
                crate::metrics::not_issued("workload", "refused", 1);
                state.table.refuse(&id, refusal.message, now);
            }
            Err(failed) => {
                tracing::warn!(entry = %id, %failed, "a workload SVID is not taken");
                crate::metrics::not_issued("workload", "bad-answer", 1);
                state.table.not_issued(&[Arc::clone(&id)], now);
            }
        }
        touched.insert(id);
    }
    state.publish(&Whom::With(&touched));
    accepted
}

/// Why an answer brought no SVID.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the CA refuses it: {0}")]
    Refused(Refusal),
    #[error(transparent)]
    Bad(super::held::NotTaken),
}

/// Will the answer be the same until something changes in the registry?
fn is_final(refusal: &Refusal) -> bool {
    use tonic::Code;
    matches!(
        refusal.code,
        Code::PermissionDenied | Code::InvalidArgument | Code::NotFound
    )
}
