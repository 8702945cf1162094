//! Servers of one CA, and what operators do to nodes.

use serde::Serialize;

/// A server as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaServer {
    /// Its name among those that share the store.
    pub name: String,
    /// `HOST:PORT` for agents; empty if agents are not sent to it.
    pub address: String,
    /// Of the program that serves.
    pub version: String,
    /// When it started (unix milliseconds).
    pub started_at_ms: u64,
    /// When it was last heard (unix milliseconds).
    pub seen_at_ms: u64,
    /// It is the one that answers.
    pub this: bool,
    /// It was heard lately: agents are sent to it.
    pub alive: bool,
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeAct {
    /// It must attest again.
    Evict,
    /// It may not attest again, until that is lifted.
    Ban,
    /// It may attest again; it is still evicted.
    Unban,
    /// Nothing between it and managed nodes may go in cleartext.
    Enforce,
    /// It is joining again: cleartext between it and others is counted, not dropped.
    Relax,
}
