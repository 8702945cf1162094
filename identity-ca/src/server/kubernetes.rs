//! What a cluster's reconciler asks of the CA around it: the registry as it is, and changes to it that are written
//! down like an operator's.

use std::collections::HashMap;
use std::sync::Arc;

use spiffe::TrustDomain;
use tokio::sync::watch;

use super::state::State;
use crate::Error;
use crate::audit::Act;
use crate::model::{Node, PolicyDocument};
use crate::registry::{EntryOrder, OwnedOutcome, PolicyOrder, Snapshot};

/// In the audit log.
const BY: &str = "kubernetes";
/// Names of one line of it.
const NAMES: usize = 32;

/// The CA, as a reconciler sees it.
#[derive(Clone)]
pub(crate) struct Registrar(Arc<State>);

impl Registrar {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }

    pub(crate) fn trust_domain(&self) -> TrustDomain {
        self.0.authority.trust_domain().clone()
    }

    /// This server among those that share the store.
    pub(crate) fn server(&self) -> &str {
        self.0.authority.server()
    }

    pub(crate) fn now(&self) -> Arc<Snapshot> {
        self.0.now()
    }

    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshot.subscribe()
    }

    /// All nodes with what their agents said last.
    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let now = self.now();
        self.0.registry.nodes_for_operators(&now.deny).await
    }

    /// IDs of entries that are owned, by owner.
    pub(crate) async fn owned_entries(&self) -> Result<HashMap<String, String>, Error> {
        self.0.registry.owned_entries().await
    }

    /// Entries of these owners say this, those of the others end.
    pub(crate) async fn change_entries(
        &self,
        put: Vec<(String, EntryOrder)>,
        gone: Vec<String>,
    ) -> Result<OwnedOutcome, Error> {
        let ids = put.iter().map(|(_, order)| order.spiffe_id.as_str());
        let names = ids.take(NAMES).collect::<Vec<_>>().join(" ");
        self.to_its_end(|state| async move {
            let outcome = state
                .change(|state| async move { state.registry.change_owned(&put, &gone).await })
                .await?;
            if outcome.is_change() {
                let act = Act::done("entry.reconcile", BY, names)
                    .with("created", outcome.created)
                    .with("updated", outcome.written.len() - outcome.created)
                    .with("deleted", outcome.deleted.len())
                    .with("ended", first(&outcome.deleted));
                state.audit.record(vec![act]).await?;
            }
            Ok(outcome)
        })
        .await
    }

    /// Puts documents: all or none.
    pub(crate) async fn put_policies(
        &self,
        orders: Vec<PolicyOrder>,
    ) -> Result<Vec<PolicyDocument>, Error> {
        let names: Vec<String> = orders.iter().map(|order| order.name.clone()).collect();
        self.to_its_end(|state| async move {
            let documents = state
                .change(|state| async move { state.registry.put_policies(&orders).await })
                .await?;
            let act = Act::done("policy.reconcile", BY, first(&names)).with("put", names.len());
            state.audit.record(vec![act]).await?;
            Ok(documents)
        })
        .await
    }

    /// Deletes documents: all or none.
    pub(crate) async fn delete_policies(&self, names: Vec<String>) -> Result<(), Error> {
        let act = Act::done("policy.reconcile", BY, first(&names)).with("deleted", names.len());
        self.to_its_end(|state| async move {
            state
                .change(|state| async move { state.registry.delete_policies(&names).await })
                .await?;
            state.audit.record(vec![act]).await
        })
        .await
    }

    /// Who loses the Lease is dropped in the middle of whatever it does: what was changed is written down all the same.
    async fn to_its_end<T, F>(&self, what: impl FnOnce(Arc<State>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let ended = tokio::spawn(what(Arc::clone(&self.0))).await;
        ended.map_err(|error| Error::Protocol(format!("a change ended early: {error}")))?
    }
}

fn first(names: &[String]) -> String {
    let names = names.iter().map(String::as_str);
    names.take(NAMES).collect::<Vec<_>>().join(" ")
}
