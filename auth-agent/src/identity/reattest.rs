//! When a node that the CA has turned away proves anew who it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_ca::client::Attestation;

use super::{IdentityError, NodeStore};

/// Between two attempts: a CA that has banned a node is not asked again and again.
const PAUSE: Duration = Duration::from_secs(30);

/// Remembers when it was last tried.
#[derive(Debug, Default)]
pub struct Reattest(Option<Instant>);

impl Reattest {
    /// By what to attest now; none if it was tried a moment ago, or if this node needs a token for it.
    ///
    /// # Errors
    /// What the node attests by cannot be read.
    pub fn due(
        &mut self,
        store: &NodeStore,
    ) -> Result<Option<Arc<dyn Attestation>>, IdentityError> {
        if self.0.is_some_and(|last| last.elapsed() < PAUSE) {
            return Ok(None);
        }
        self.0 = Some(Instant::now());
        match store.standing()? {
            Some(standing) => standing.read().map(Some),
            None => Ok(None),
        }
    }
}
