//! Workloads' identities end to end: a real CA server, the identity half of real agents, and this very process as the
//! workload that asks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod endpoints;
mod eviction;
mod kills;
mod memory;
mod outage;
mod push;
mod recovery;
mod registry;
mod revocation;
mod rotation;
mod trust;
mod world;
