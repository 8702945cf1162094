//! The Workload API and SDS on a real socket, over a CA that really signs: SPIFFE.md's list, by number, and real
//! clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod agent;
mod authority;
mod bounds;
mod fetch;
mod frames;
mod hostile;
mod jwt;
mod languages;
mod python;
mod rust_client;
mod script;
mod sds;
mod support;
mod x509;
