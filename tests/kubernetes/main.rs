//! Kubernetes, end to end: a real API server with the RBAC that is deployed, nodes that are network namespaces, and pods
//! that are namespaces attached through the CNI plugin, called as a container runtime calls it.
//!
//! What no part of a cluster does here, the tests do in its place: no scheduler places pods, no controller makes them,
//! and no kubelet says that they run. Skipped, with the reason, where the API server's binary is missing
//! (`scripts/setup.sh kubernetes` builds it).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../src/demo/harness/mod.rs"]
#[allow(dead_code)]
mod harness;
#[path = "../e2e/support.rs"]
#[allow(dead_code)]
mod support;

mod cluster;
mod conflist;
mod container;
mod engine;
mod first_packet;
mod group;
mod join;
mod joining;
mod late_watch;
mod lease;
mod life;
mod mesh;
mod path;
mod plugin;
mod pod;
mod policies;
mod relay;
mod rollout;
mod running;
mod sources;
mod traffic;
mod waiting;
