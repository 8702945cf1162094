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
mod servers;
mod tokens;
mod whole;

/// Whoever moves clocks has another one.
pub(crate) fn now() -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::now()
}
