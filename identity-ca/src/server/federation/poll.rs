//! Fetches every foreign bundle as often as it asks for (F-7), and remembers only the latest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use rand::Rng;
use rustls::RootCertStore;
use spiffe::TrustDomain;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::state::State;
use crate::audit::Act;
use crate::bundle::{DEFAULT_REFRESH_HINT, TrustBundle};
use crate::federation::fetch::{Trust, fetch};
use crate::federation::{Profile, Relationship};
use crate::registry::Fetched;
use crate::verify::Verifier;
use crate::{Error, federation};

/// Fetches at one time.
const AT_ONCE: usize = 8;
/// However rarely a partner wants to be asked (seconds).
const AT_LEAST: Duration = Duration::from_secs(24 * 3600);
/// After a failure, or earlier if the partner wants to be asked more often.
const AGAIN: Duration = Duration::from_secs(30);

/// When each trust domain's turn is.
#[derive(Default)]
pub(in crate::server) struct Fetcher {
    due: Mutex<HashMap<TrustDomain, Instant>>,
    woken: Notify,
    /// The Web PKI, read when it is first needed.
    web: tokio::sync::OnceCell<RootCertStore>,
}

impl Fetcher {
    /// Makes it a trust domain's turn.
    pub(in crate::server) fn wake(&self, domain: &TrustDomain) {
        self.due().insert(domain.clone(), Instant::now());
        self.woken.notify_one();
    }

    fn due(&self) -> std::sync::MutexGuard<'_, HashMap<TrustDomain, Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose turn it is; those that are gone are forgotten, new ones come at once.
    fn turns(&self, all: &[Relationship]) -> Vec<Relationship> {
        let (mut due, now) = (self.due(), Instant::now());
        due.retain(|domain, _| all.iter().any(|one| one.trust_domain == *domain));
        let mut turns = Vec::new();
        for one in all {
            if *due.entry(one.trust_domain.clone()).or_insert(now) <= now {
                turns.push(one.clone());
            }
        }
        turns
    }

    fn next(&self) -> Instant {
        let far = Instant::now() + AT_LEAST;
        self.due().values().copied().min().unwrap_or(far)
    }

    fn again(&self, domain: &TrustDomain, after: Duration) {
        // Not everybody at the same moment.
        let jitter = rand::rng().random_range(0.9..1.1);
        self.due()
            .insert(domain.clone(), Instant::now() + after.mul_f64(jitter));
    }
}

/// Fetches for as long as the server runs.
pub(in crate::server) async fn poll(state: Arc<State>) {
    let mut snapshots = state.snapshot.subscribe();
    loop {
        let all: Vec<Relationship> = {
            let now = snapshots.borrow_and_update();
            now.federations
                .values()
                .filter(|one| one.endpoint.is_some())
                .cloned()
                .collect()
        };
        let turns = state.fetcher.turns(&all);
        stream::iter(turns)
            .for_each_concurrent(AT_ONCE, |one| {
                let state = Arc::clone(&state);
                async move {
                    // What is wrong stands in the registry and in the log.
                    drop(refresh(&state, &one).await);
                }
            })
            .await;
        tokio::select! {
            () = sleep_until(state.fetcher.next()) => {}
            () = state.fetcher.woken.notified() => {}
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

/// Fetches one bundle now.
pub(super) async fn refresh(state: &Arc<State>, one: &Relationship) -> Result<(), Error> {
    let domain = &one.trust_domain;
    let fetched = attempt(state, one).await;
    let shortest = state.federation.shortest_refresh;
    let hint = |bundle: &Option<Arc<TrustBundle>>| {
        let hint = bundle.as_ref().and_then(|bundle| bundle.refresh_hint());
        pause(hint, shortest)
    };
    match &fetched {
        Ok(()) => {
            let now = state.now();
            let bundle = now.federations.get(domain).map(|known| hint(&known.bundle));
            let after = bundle.unwrap_or_else(|| pause(None, shortest));
            state.fetcher.again(domain, after);
        }
        Err(error) => {
            tracing::warn!(trust_domain = %domain, %error, "its bundle was not fetched");
            state.fetcher.again(domain, hint(&one.bundle).min(AGAIN));
            state
                .registry
                .not_fetched(domain, &error.to_string())
                .await?;
        }
    }
    fetched
}

/// How long until the next fetch: what the bundle asks for (seconds), within reason.
fn pause(hint: Option<u64>, shortest: Duration) -> Duration {
    let hint = Duration::from_secs(hint.unwrap_or(DEFAULT_REFRESH_HINT));
    hint.min(AT_LEAST).max(shortest)
}

async fn attempt(state: &Arc<State>, one: &Relationship) -> Result<(), Error> {
    let Some(endpoint) = &one.endpoint else {
        return Err(Error::invalid(
            format!("federation with {}", one.trust_domain),
            "it has no endpoint: its bundle is set by hand (`handfast bundle set`)",
        ));
    };
    let trust = match endpoint.profile() {
        Profile::Web => Trust::Web(web_roots(state).await?),
        Profile::Spiffe(id) => Trust::Spiffe(recognising(state, id.trust_domain())?),
    };
    let read = fetch(&one.trust_domain, endpoint, &trust).await?;
    for ignored in &read.ignored {
        tracing::info!(trust_domain = %one.trust_domain, ignored, "a key of its bundle is of no use here");
    }
    let (bundle, domain) = (read.bundle, one.trust_domain.clone());
    // Most fetches bring nothing new: no change is begun for them.
    if state.registry.is_newest(&bundle).await? {
        return Ok(());
    }
    let act = Act::done("federation.fetch", "ca", &domain)
        .with("sequence", bundle.sequence())
        .with("roots", bundle.roots().count())
        .with("jwt_keys", bundle.jwt_keys().len());
    let fetched = state
        .change(|state| async move { state.registry.fetched(&bundle).await })
        .await?;
    if fetched == Fetched::New {
        state.audit.record(vec![act]).await?;
    }
    Ok(())
}

async fn web_roots(state: &State) -> Result<RootCertStore, Error> {
    let file = state.federation.web_roots.as_deref();
    let read = || async { federation::fetch::web_roots(file) };
    state.fetcher.web.get_or_try_init(read).await.cloned()
}

/// By the latest bundle of the endpoint's trust domain, which may be a third one.
fn recognising(state: &State, domain: &TrustDomain) -> Result<Verifier, Error> {
    let now = state.now();
    let foreign = now
        .federations
        .get(domain)
        .and_then(|known| known.bundle.clone());
    let bundle = if domain == now.bundle.trust_domain() {
        Some(Arc::clone(&now.bundle))
    } else {
        foreign
    };
    let bundle = bundle.ok_or_else(|| Error::Missing {
        what: "bundle of trust domain",
        name: domain.to_string(),
    })?;
    Ok(Verifier::new(bundle, Arc::clone(&now.deny)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::SHORTEST_REFRESH;

    #[test]
    fn f7_a_partner_is_asked_as_often_as_it_asks_for_within_reason() {
        let seconds = |hint| pause(hint, SHORTEST_REFRESH).as_secs();
        assert_eq!(seconds(Some(600)), 600);
        assert_eq!(seconds(None), DEFAULT_REFRESH_HINT);
        for small in [0, 1, 59, 60] {
            assert_eq!(seconds(Some(small)), 60);
        }
        for large in [86_400, 86_401, u64::MAX] {
            assert_eq!(seconds(Some(large)), 86_400);
        }
    }
}
