//! What the plugin says when it fails: an object that runtimes read (CNI specification, section 5, "Error").

use serde::Serialize;

/// The version that is named where the caller's is not known.
pub(super) const NEWEST: &str = "1.1.0";

/// An error as a runtime reads it from standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{msg}: {details}")]
#[serde(rename_all = "camelCase")]
pub struct CniError {
    /// The version that the caller speaks.
    pub cni_version: String,
    /// 1 to 99 are the specification's, from 100 on ours.
    pub code: u32,
    /// In short.
    pub msg: String,
    /// What to do.
    pub details: String,
}

/// Ours: the agent said no.
const REFUSED: u32 = 100;

impl CniError {
    fn new(code: u32, msg: &str, details: impl Into<String>) -> Self {
        Self {
            cni_version: NEWEST.to_owned(),
            code,
            msg: msg.to_owned(),
            details: details.into(),
        }
    }

    /// The caller speaks a version that this plugin does not.
    pub(super) fn version(asked: &str, known: &[&str]) -> Self {
        let asked: String = asked.chars().take(32).collect();
        Self::new(
            1,
            "incompatible CNI version",
            format!("{asked:?}; this plugin speaks {}", known.join(", ")),
        )
    }

    /// The container is not attached.
    pub(super) fn unknown_container(details: impl Into<String>) -> Self {
        Self::new(3, "the container is not attached", details)
    }

    /// A `CNI_` variable is missing or makes no sense.
    pub(super) fn environment(name: &str, problem: &str) -> Self {
        Self::new(
            4,
            "invalid environment variable",
            format!("{name}: {problem}"),
        )
    }

    /// Something that the plugin needs of the system is not to be had.
    pub fn io(details: impl Into<String>) -> Self {
        Self::new(5, "I/O failure", details)
    }

    /// Standard input is not JSON.
    pub(super) fn decode(details: impl Into<String>) -> Self {
        Self::new(6, "the network configuration cannot be decoded", details)
    }

    /// The configuration is none for this plugin.
    pub(super) fn config(details: impl Into<String>) -> Self {
        Self::new(7, "invalid network configuration", details)
    }

    /// It may work later: the agent or the CA is away.
    pub(super) fn later(details: impl Into<String>) -> Self {
        Self::new(11, "try again later", details)
    }

    /// Answer to STATUS: an ADD would fail.
    pub(super) fn not_available(details: impl Into<String>) -> Self {
        Self::new(50, "the plugin is not available", details)
    }

    /// The agent said no.
    pub(super) fn refused(details: impl Into<String>) -> Self {
        Self::new(REFUSED, "the agent refuses", details)
    }

    /// As runtimes read it.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    pub(super) fn in_version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.cni_version);
        self
    }
}
