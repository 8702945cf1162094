//! Who calls, and what that caller may see from now on.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Status};

use super::metrics::OpenStream;
use super::responses::Said;
use super::{AttestError, Attested, Material, Peer, Source, WorkloadState};

/// Looking at a process may take this long: hashing a big program on a busy node.
const ATTESTATION: Duration = Duration::from_secs(10);
/// A caller whose SVIDs are being made is kept waiting for so long before it is told to try again: its own pauses are
/// longer than a signature takes.
const MAKING: Duration = Duration::from_secs(5);

/// Who has some of its identities already is kept waiting for so long for the others: who asks once would take it that
/// those are not its own.
const REST: Duration = Duration::from_secs(1);

/// What every call begins with.
#[derive(Clone)]
pub(super) struct Callers {
    source: Arc<dyn Source>,
    /// Its sender goes when the endpoint stops.
    stopping: watch::Receiver<()>,
}

impl Callers {
    pub(super) fn new(source: Arc<dyn Source>, stopping: watch::Receiver<()>) -> Self {
        Self { source, stopping }
    }

    pub(super) fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Attests the process behind `request`.
    pub(super) async fn attest<T>(&self, request: &Request<T>) -> Result<Arc<Attested>, Status> {
        let peer = request
            .extensions()
            .get::<Arc<Peer>>()
            .ok_or_else(|| Status::internal("the connection has no peer"))?;
        let attested = tokio::time::timeout(ATTESTATION, self.source.attest(peer)).await;
        let workload = attested
            .map_err(|_| Status::unavailable("attestation took too long"))?
            .map_err(|error| match error {
                AttestError::Gone => gone(),
                AttestError::Failed(_) => Status::unavailable(error.to_string()),
            })?;
        if !peer.is_alive() {
            return Err(gone());
        }
        Ok(workload)
    }

    /// What `workload` gets, from now on; waits until there is something to get.
    pub(super) async fn states(
        &self,
        workload: Arc<Attested>,
        method: &'static str,
    ) -> Result<(Material, States), Status> {
        let mut states = States {
            receiver: self.source.watch(&workload),
            stopping: self.stopping.clone(),
            workload,
            _open: OpenStream::new(method),
        };
        let first = tokio::time::timeout(MAKING, states.current()).await;
        let first = first.map_err(|_| {
            Status::unavailable("the identities of this workload are being made; try again")
        })??;
        let first = states.whole(first).await?;
        Ok((first, states))
    }
}

/// What a workload gets, now and after each change; steps that a slow reader missed are left out.
#[derive(Debug)]
pub(super) struct States {
    receiver: watch::Receiver<Arc<WorkloadState>>,
    stopping: watch::Receiver<()>,
    pub(super) workload: Arc<Attested>,
    _open: OpenStream,
}

impl States {
    /// The state as it is, or the first that is known.
    async fn current(&mut self) -> Result<Material, Status> {
        if let Some(now) = self.look() {
            return now;
        }
        self.next().await
    }

    /// The state in which nothing is being made any more, or the one that is there when that takes long.
    async fn whole(&mut self, mut now: Material) -> Result<Material, Status> {
        let rest = async {
            while !now.whole {
                now = self.next().await?;
            }
            Ok(())
        };
        match tokio::time::timeout(REST, rest).await {
            Ok(Err(end)) => Err(end),
            Ok(Ok(())) | Err(_) => Ok(now),
        }
    }

    /// The next state, after a change.
    pub(super) async fn next(&mut self) -> Result<Material, Status> {
        loop {
            let changed = tokio::select! {
                biased;
                _ = self.stopping.changed() => return Err(stopping()),
                changed = self.receiver.changed() => changed,
            };
            changed.map_err(|_| stopping())?;
            if let Some(now) = self.look() {
                return now;
            }
        }
    }

    /// None: not known yet.
    fn look(&mut self) -> Option<Result<Material, Status>> {
        let state = Arc::clone(&self.receiver.borrow_and_update());
        match &*state {
            WorkloadState::Initialising => None,
            WorkloadState::NoIdentity => Some(Err(no_identity(&self.workload))),
            // Whoever may hold the connection now is not who was attested.
            WorkloadState::Ready(_) if !self.workload.peer.is_alive() => Some(Err(gone())),
            WorkloadState::Ready(material) => Some(Ok(material.clone())),
        }
    }

    /// A response for the first state and for each further one that changes it; ends with the reason (W-9).
    pub(super) fn responses<T, F>(
        self,
        first: T,
        render: F,
    ) -> impl Stream<Item = Result<T, Status>> + Send + use<T, F>
    where
        T: Said,
        F: Fn(&Material) -> T + Send + 'static,
    {
        let begin = (Some(self), None, Some(first), render);
        futures::stream::unfold(begin, |(states, said, first, render)| async move {
            let mut states = states?;
            if let Some(first) = first {
                let said = first.clone().without_keys();
                return Some((Ok(first), (Some(states), Some(said), None, render)));
            }
            loop {
                match states.next().await {
                    Ok(material) => {
                        let now = render(&material);
                        let bare = now.clone().without_keys();
                        if said.as_ref() != Some(&bare) {
                            return Some((Ok(now), (Some(states), Some(bare), None, render)));
                        }
                    }
                    Err(end) => return Some((Err(end), (None, None, None, render))),
                }
            }
        })
    }
}

fn no_identity(workload: &Attested) -> Status {
    tracing::debug!(
        pid = workload.peer.pid(),
        selectors = %workload.selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        "no entry matches a caller of the Workload API",
    );
    Status::permission_denied(
        "no identity: no registration entry matches this process on this node",
    )
}

fn gone() -> Status {
    Status::permission_denied("the calling process is gone")
}

fn stopping() -> Status {
    Status::unavailable("the agent is stopping")
}
