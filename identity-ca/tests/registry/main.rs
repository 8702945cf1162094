//! The registry over real sockets and real databases: entries, nodes, operators, several servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../common/mod.rs"]
mod common;
mod entries;
mod full_disk;
mod gone;
mod large;
mod nodes;
mod observations;
mod operators;
mod servers;
mod trial;
