//! What nodes saw of flows under rules in audit mode.

use serde::Serialize;

use crate::NodeName;

/// Flows from one identity to another under one rule, on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObservedPair {
    /// The policy's name in the registry.
    pub policy: String,
    /// The policy's version at that time.
    pub version: u64,
    /// The rule's place in the document, such as `spec.ingress[0]`.
    pub field: String,
    /// Who opened: a SPIFFE ID, `host`, `world` or `unknown`.
    pub source: String,
    /// Toward whom, in the same words.
    pub destination: String,
    /// Flows that were opened.
    pub flows: u64,
    /// How many of them without a proof.
    pub unproven: u64,
    /// The last time that the pair was seen with a proof (unix milliseconds).
    pub proven_at_ms: Option<u64>,
    /// The last flow that was opened without one (unix milliseconds).
    pub unproven_at_ms: Option<u64>,
}

impl ObservedPair {
    /// Whether the pair has a proof, by the last that was seen of it.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven_at_ms > self.unproven_at_ms
    }

    /// When it was last seen at all (unix milliseconds).
    #[must_use]
    pub fn seen_at_ms(&self) -> u64 {
        self.proven_at_ms.max(self.unproven_at_ms).unwrap_or(0)
    }
}

/// All that one node saw of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeObservations {
    /// Which node.
    pub node: NodeName,
    /// It has reported without a long pause since then (unix milliseconds).
    pub since_ms: u64,
    /// When it reported last (unix milliseconds).
    pub heard_at_ms: u64,
    /// What it saw and could not keep.
    pub lost: u64,
    /// What it saw.
    pub pairs: Vec<ObservedPair>,
}
