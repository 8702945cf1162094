//! Nodes, as operators and agents see them.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;
use spiffe::SpiffeId;

use super::as_text;
use crate::NodeName;

/// A node of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its full SPIFFE ID.
    #[serde(serialize_with = "as_text")]
    pub spiffe_id: SpiffeId,
    /// Its name in this trust domain.
    pub name: NodeName,
    /// The addresses that its workloads may have.
    pub prefixes: Vec<IpNet>,
    /// Where its sessions are reached.
    pub underlay: Vec<SocketAddr>,
    /// False while joining: cleartext toward it is counted, not dropped.
    pub managed: bool,
    /// Higher when a prefix was given anew.
    pub assignment: u64,
    /// When it joined (unix milliseconds), if it has.
    pub joined_at_ms: Option<u64>,
    /// When its agent was last heard (unix milliseconds).
    pub seen_at_ms: Option<u64>,
    /// The update that its agent acknowledged last.
    pub acknowledged: u64,
    /// What the agent could not apply; empty if nothing.
    pub problem: String,
    /// Is it on the deny list?
    pub revoked: bool,
    /// Must attest again before it gets anything more.
    pub evicted: bool,
    /// May not attest until the ban is lifted.
    pub banned: bool,
    /// How it proved itself last: `join_token`, `x509pop`, …
    pub attestation: String,
    /// What its live SVIDs hang on: SHA-256 of issuing CAs' certificates in
    /// hexadecimal, and key IDs of JWT keys.
    pub authorities_in_use: Vec<String>,
}
