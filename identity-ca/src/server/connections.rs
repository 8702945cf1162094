//! Connections that are open, judged again whenever what they were let in by changes.
//!
//! A certificate is looked at in the handshake, and a connection may last for
//! days. Whoever would not be let in now, or not in the same way, is cut off:
//! those whose root was revoked, banned and evicted nodes, operators who are
//! none any more. Agents come back with what they have now.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::listen::{Shown, recognise};
use super::state::State;
use crate::authority::{Kind, Standing, certificate_id};
use crate::now_ms;
use crate::registry::{Revisions, Snapshot};

/// Whether this server may still be relied on is asked so often.
const TICK: Duration = Duration::from_secs(1);
/// Whoever is refused by every call by now hears on the open stream why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Agents that only have to come back with newer certificates do so spread over this time.
const SPREAD: Duration = Duration::from_secs(5);

/// All that have shown a certificate.
#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
}

struct Entry {
    chain: Arc<[CertificateDer<'static>]>,
    shown: Shown,
    /// What it hangs on has been left behind already when it came.
    left: bool,
    end: Option<oneshot::Sender<()>>,
}

/// A connection's own end of its entry, which goes with it.
pub(super) struct Open {
    state: Arc<State>,
    number: u64,
    end: Option<oneshot::Receiver<()>>,
}

impl Open {
    /// An error once the connection was told to end; wakes the task when that happens.
    pub(super) fn poll_ended(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let told = match &mut self.end {
            Some(end) => Pin::new(end).poll(context) != Poll::Pending,
            None => true,
        };
        if told {
            self.end = None;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.connections.lock().open.remove(&self.number);
    }
}

impl Connections {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, numbers: &[u64]) {
        let mut table = self.lock();
        for number in numbers {
            let end = table.open.get_mut(number).and_then(|one| one.end.take());
            // One that has just gone does not need to know.
            end.map(|end| end.send(()));
        }
    }
}

impl State {
    /// Enters a connection that was let in by what `chain` shows. Says why it
    /// is not, if that has just changed.
    pub(super) fn keep_judging(
        self: &Arc<Self>,
        chain: &[CertificateDer<'static>],
        shown: &Shown,
        judged_by: &Arc<Snapshot>,
    ) -> Result<Open, String> {
        let (sender, end) = oneshot::channel();
        let entry = Entry {
            chain: chain.into(),
            shown: shown.clone(),
            left: self.has_left(chain, shown),
            end: Some(sender),
        };
        let number = {
            let mut table = self.connections.lock();
            table.next += 1;
            let number = table.next;
            table.open.insert(number, entry);
            number
        };
        let open = Open {
            state: Arc::clone(self),
            number,
            end: Some(end),
        };
        // A change that came meanwhile was told to nobody who knew of this one.
        let now = self.now();
        if !Arc::ptr_eq(&now, judged_by) {
            recognise(&now, chain, crate::now()).map_err(|rejection| rejection.to_string())?;
        }
        Ok(open)
    }

    /// Does it hang on a root or an issuing CA that is none any more?
    fn has_left(&self, chain: &[CertificateDer<'_>], shown: &Shown) -> bool {
        let former = matches!(shown, Shown::Node(node) if node.former);
        let retired = || {
            let issuer = certificate_id(chain.get(1)?);
            let authorities = self.authority.authorities();
            let record = authorities.find(&issuer)?;
            Some(record.kind == Kind::Issuing && record.standing == Standing::Retired)
        };
        former || retired().unwrap_or(false)
    }

    fn judge(&self, snapshot: &Snapshot, whole: bool) -> Verdicts {
        // Not under the lock: signatures take their time.
        let all: Vec<_> = {
            let table = self.connections.lock();
            let seen = |(number, one): (&u64, &Entry)| {
                (*number, Arc::clone(&one.chain), one.shown.clone(), one.left)
            };
            table.open.iter().map(seen).collect()
        };
        let mut verdicts = Verdicts::default();
        for (number, chain, shown, left) in all {
            if !may_stay(snapshot, &shown) {
                verdicts.refused.push(number);
            } else if whole {
                match recognise(snapshot, &chain, crate::now()) {
                    Err(_) => verdicts.strangers.push(number),
                    Ok(shown) if self.has_left(&chain, &shown) && !left => {
                        verdicts.outdated.push(number);
                    }
                    Ok(_) => {}
                }
            }
        }
        verdicts
    }
}

/// What becomes of connections.
#[derive(Debug, Default)]
struct Verdicts {
    /// Their certificates would not be let in now.
    strangers: Vec<u64>,
    /// They are known, and may do nothing.
    refused: Vec<u64>,
    /// They are to come back with newer certificates.
    outdated: Vec<u64>,
}

fn may_stay(snapshot: &Snapshot, shown: &Shown) -> bool {
    match shown {
        Shown::Node(node) => snapshot.admitted(node).is_ok(),
        Shown::Operator(svid) => {
            let denied = snapshot.deny.denies_id(&svid.spiffe_id)
                || snapshot.deny.denies_serial(&svid.serial);
            snapshot.operators.knows(&svid.spiffe_id)
                && !denied
                && svid.not_after >= now_ms() / 1000
        }
    }
}

/// Judges all after each change that can matter, for as long as the server runs.
pub(super) async fn keep(state: Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    let mut judged = Revisions::default();
    let mut relied_on = true;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let now = snapshot.revisions;
        let whole = (judged.bundle, judged.retired) != (now.bundle, now.retired);
        let some = |of: &Revisions| (of.deny, of.nodes, of.operators);
        if whole || some(&judged) != some(&now) {
            judged = now;
            let judging = Arc::clone(&state);
            let verdicts =
                tokio::task::spawn_blocking(move || judging.judge(&snapshot, whole)).await;
            carry_out(&state, verdicts.unwrap_or_default());
        }
        let in_touch = state.authority.in_touch();
        if let Err(why) = &in_touch
            && relied_on
        {
            tracing::error!(%why, "agents are sent to other servers");
            let all: Vec<u64> = state.connections.lock().open.keys().copied().collect();
            state.connections.end(&all);
        }
        relied_on = in_touch.is_ok();
        let changed = tokio::time::timeout(TICK, snapshots.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

fn carry_out(state: &Arc<State>, verdicts: Verdicts) {
    let count = verdicts.strangers.len() + verdicts.refused.len() + verdicts.outdated.len();
    if count == 0 {
        return;
    }
    tracing::info!(
        count,
        "connections end: what they were let in by has changed"
    );
    state.connections.end(&verdicts.strangers);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let since = Instant::now();
        sleep(LAST_WORDS).await;
        state.connections.end(&verdicts.refused);
        let each = SPREAD
            / u32::try_from(verdicts.outdated.len())
                .unwrap_or(u32::MAX)
                .max(1);
        for one in verdicts.outdated {
            sleep(each.min(SPREAD.saturating_sub(since.elapsed()))).await;
            state.connections.end(&[one]);
        }
    });
}
