//! Rotation over real connections: a CA server, agents that join, watch, issue and confirm, and traffic between
//! their SVIDs all the while.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../common/mod.rs"]
mod common;

mod agent;
mod crash;
mod modes;
mod whole;
