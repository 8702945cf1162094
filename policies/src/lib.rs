//! The policy language: parse, resolve, compile, explain.
//!
//! Documents go in as text and come out as a [`PolicySet`] that answers what a
//! workload may send and receive. Nothing here reads a file, a clock or a
//! socket, so every answer can be tested and repeated.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod compile;
mod document;
mod entry;
mod model;
mod pairing;
mod ports;
mod read;
mod selector;
mod set;

pub use entry::{Entry, Pairing, Remote, Workload, lookup};
pub use model::{
    Authentication, Direction, Encryption, Kind, PolicyInfo, Protocol, RuleInfo, RuleRef, Verdict,
};
pub use ports::{PortPrefix, Ports, ports_to_prefixes};
pub use read::split;
pub use set::{PolicySet, ReadError, Source};
