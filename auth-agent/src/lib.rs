//! The node: SVIDs for local workloads, sessions with peers, proofs, pairs and holds.
//!
//! `core` decides (no sockets, no clock), `shell` does (all I/O). `wire`, `proof` and `tls` are what nodes
//! say to each other; `identity` keeps this node's keys and SVIDs; `endpoint` attaches workloads; `admin` is
//! the local socket that the command line talks to.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod admin;
pub mod check;
mod clock;
pub mod cni;
pub mod config;
pub mod core;
pub mod endpoint;
mod files;
pub mod identity;
pub mod metrics;
pub mod proof;
pub mod shell;
pub mod tls;
pub mod wire;
pub mod workload_api;
