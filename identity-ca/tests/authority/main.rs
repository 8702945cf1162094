//! What a CA server does when it may not, or cannot, go on as before: cut off from its store, removed, out of its time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod cut_off;
mod expired;
mod pair;
