//! End to end: the real binary, real kernels' namespaces, real packets. Needs root; says so where it is missing.
//!
//! Each test has a lab of its own, and one runs at a time, since they measure time and share two processors.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../src/demo/harness/mod.rs"]
#[allow(dead_code)]
mod harness;

mod bad_input;
mod bad_policy;
mod both_at_once;
mod demo;
mod detach;
mod enforce;
mod explain;
mod full_disk;
mod hold;
mod hold_protocols;
mod host;
mod instruments;
mod kills;
mod layout;
mod leaks;
mod metrics;
mod neighbours;
mod networks;
mod outside;
mod readme;
mod restarts;
mod reuse;
mod rotation;
mod same_node;
mod support;
mod tripwire;
mod workload_api;
