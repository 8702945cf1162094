//! Whether the node is fit for work, for probes that ask from outside its loop.

use std::sync::{Arc, Mutex, PoisonError};

/// Shared between the agent's loop, which knows, and whoever asks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Default for Readiness {
    /// Of an agent that has not started yet.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some("the agent is starting".into()))))
    }
}

impl Readiness {
    /// Ready, or why not.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn check(&self) -> Result<(), String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(problem) => Err(problem.clone()),
        }
    }

    pub(super) fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}
