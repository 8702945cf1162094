//! What the Workload API asks: whose process is this, what has it now and after each change, and tokens.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rustls_pki_types::UnixTime;
use spiffe::SpiffeId;
use tokio::sync::watch;

use super::{Inner, Workloads};
use crate::identity::KnownEntry;
use crate::identity::selectors::Demands;
use crate::workload_api::{AttestError, Attested, JwtError, JwtSvid, Peer, Source, WorkloadState};

/// Audiences of one JWT-SVID, and bytes of all of them.
const MAX_AUDIENCES: usize = 32;
const MAX_AUDIENCES_BYTES: usize = 4096;

impl Source for Workloads {
    fn attest<'a>(
        &'a self,
        peer: &'a Arc<Peer>,
    ) -> BoxFuture<'a, Result<Arc<Attested>, AttestError>> {
        Box::pin(async move {
            let demands = self.0.lock().table.demands();
            self.0.look(peer, demands).await
        })
    }

    fn watch(&self, workload: &Arc<Attested>) -> watch::Receiver<Arc<WorkloadState>> {
        // What was looked at is told by what was found: a look for names or a hash leaves something behind, unless
        // there is nothing to be found, in which case looking again does no harm.
        let values = workload.selectors.iter();
        let seen = Demands::of(values.map(|s| (s.kind.as_str(), s.value.as_str())));
        let receiver = self.0.lock().watch(workload, seen);
        self.0.wake.notify_one();
        receiver
    }

    fn jwt_svids<'a>(
        &'a self,
        workload: &'a Arc<Attested>,
        audiences: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> BoxFuture<'a, Result<Vec<JwtSvid>, JwtError>> {
        Box::pin(async move {
            check_audiences(&audiences)?;
            let (entries, now) = {
                let state = self.0.lock();
                if !state.initialised {
                    return Err(JwtError::Unavailable("the CA was not heard yet".into()));
                }
                let now = state.now();
                let matching = state.table.matching(&workload.selectors, now);
                let entries = matching.into_iter().filter_map(|id| {
                    let entry = Arc::clone(state.table.entry(&id)?);
                    let asked = spiffe_id
                        .as_ref()
                        .is_none_or(|asked| entry.spiffe_id == asked.to_string());
                    (asked && !state.denies_entry(&entry.spiffe_id)).then_some((id, entry))
                });
                (entries.collect::<Vec<_>>(), now)
            };
            let mut seen = HashSet::new();
            let mut svids = Vec::new();
            let mut error = JwtError::NotEntitled;
            for (id, entry) in entries {
                // Two entries may name one identity: one token of it is enough.
                if !seen.insert(entry.spiffe_id.clone()) {
                    continue;
                }
                match self.0.jwt(id, &entry, audiences.clone(), now).await {
                    Ok(svid) => svids.push(svid),
                    Err(problem) => error = problem,
                }
            }
            self.0.report();
            if svids.is_empty() {
                Err(error)
            } else {
                Ok(svids)
            }
        })
    }

    fn now(&self) -> UnixTime {
        let now = self.0.lock().now();
        UnixTime::since_unix_epoch(Duration::from_secs(now))
    }

    fn denies(&self, id: &SpiffeId) -> bool {
        self.0.lock().denies_id(id)
    }
}

fn check_audiences(audiences: &[String]) -> Result<(), JwtError> {
    let bytes: usize = audiences.iter().map(String::len).sum();
    let invalid = |problem: String| Err(JwtError::Invalid(problem));
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return invalid("an audience is needed, and none may be empty".into());
    }
    if audiences.len() > MAX_AUDIENCES || bytes > MAX_AUDIENCES_BYTES {
        return invalid(format!(
            "at most {MAX_AUDIENCES} audiences of {MAX_AUDIENCES_BYTES} bytes in all"
        ));
    }
    Ok(())
}

impl Inner {
    async fn jwt(
        &self,
        id: Arc<str>,
        entry: &KnownEntry,
        audiences: Vec<String>,
        now: u64,
    ) -> Result<JwtSvid, JwtError> {
        let good = |key_id: &str| !self.lock().table.is_retired(key_id);
        let started = Instant::now();
        let fetched = self.jwts.fetch(&self.link, id, audiences, now, good).await;
        match &fetched {
            Ok(_) => crate::metrics::issued("jwt", started.elapsed()),
            Err(JwtError::NotEntitled) => crate::metrics::not_issued("jwt", "refused", 1),
            Err(JwtError::Invalid(_)) => crate::metrics::not_issued("jwt", "invalid", 1),
            Err(JwtError::Unavailable(_)) => crate::metrics::not_issued("jwt", "not-reached", 1),
        }
        let jwt = fetched?;
        if jwt.spiffe_id.to_string() != entry.spiffe_id {
            return Err(JwtError::Unavailable(
                "the entry names another identity by now".into(),
            ));
        }
        Ok(JwtSvid {
            spiffe_id: jwt.spiffe_id,
            token: jwt.token,
            hint: entry.hint.clone(),
            not_after: jwt.not_after,
        })
    }
}
