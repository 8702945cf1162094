//! Policies that go back by themselves unless somebody confirms them.

use serde::Serialize;

/// What is on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyTrial {
    /// The number of the change that put the policies in force.
    pub number: u64,
    /// When that was (unix milliseconds).
    pub began_at_ms: u64,
    /// When they go back (unix milliseconds).
    pub deadline_ms: u64,
    /// Who put them in force.
    pub operator: String,
    /// Those that it has changed, by name.
    pub policies: Vec<TriedPolicy>,
}

/// One policy on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TriedPolicy {
    /// Its name in the registry.
    pub name: String,
    /// There was none of that name before: it goes if the trial does.
    pub created: bool,
}
