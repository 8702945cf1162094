//! A store that is found damaged while the server runs: said once, loudly, and kept in mind.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::state::State;
use crate::Error;

/// The store is read through so often: damage in what nobody asks for is found
/// before the last good backup is gone.
const EXAMINE: Duration = Duration::from_secs(600);

/// What was found, until the server ends: nothing repairs it meanwhile.
#[derive(Debug, Default)]
pub(super) struct Damage(OnceLock<String>);

impl State {
    /// Why nothing of the store can be relied on, if so.
    pub(super) fn damage(&self) -> Result<(), String> {
        self.damage.0.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Keeps in mind that a store is damaged, if that is what an error says.
    pub(super) fn notice(&self, error: &Error) {
        let error = match error {
            Error::NotInForce(error) => error,
            other => other,
        };
        if !matches!(error, Error::StoreCorrupt(_) | Error::StoreDamaged { .. }) {
            return;
        }
        let store = self.registry.store().name();
        let found = format!("store {store}: {error}");
        if self.damage.0.set(found).is_ok() {
            tracing::error!(store, %error, "the store is damaged; this server is no longer ready");
        }
    }
}

/// Reads the store through now and then, for as long as the server runs.
pub(super) async fn look(state: &Arc<State>) {
    loop {
        tokio::time::sleep(EXAMINE).await;
        if let Err(error) = state.registry.store().examine().await {
            state.notice(&error);
        }
    }
}
