//! The policy language: parse, resolve, compile, explain.
//!
//! Documents go in as text and come out as a [`PolicySet`] that answers what a
//! workload may send and receive. Nothing here reads a file, a clock or a
//! socket, so every answer can be tested and repeated.
//!
//! What documents mean, where it is not plain:
//! - Policies add up. A workload that some policy selects is under default deny
//!   in each direction in which that policy has a rule; deny rules win.
//! - `ingress: []` says nothing of ingress. `ingress: [{}]` denies all of it: a
//!   rule that names neither peers nor ports allows nothing. A rule with ports
//!   alone is for everybody; `fromEndpoints: []` is nobody, `fromEndpoints: [{}]`
//!   every workload, and neither the host nor the world.
//! - A document with a namespace selects inside it, and its peers are inside it
//!   too unless a selector names namespaces. Without a namespace, as outside
//!   Kubernetes, a document speaks of every workload of the mesh.
//! - Labels are those that the CA has signed; `k8s:` and `any:` before a key
//!   change nothing. Labels of a foreign trust domain mean nothing: there, only
//!   `authentication.peers` selects. Prefixes select unmanaged addresses alone.
//! - Where several rules allow a flow, the one with the narrowest ports that
//!   says something of authentication decides, among equals one that names
//!   peers, among these the strongest mode. What no rule says is left to the
//!   agent. The shortest `maxAge` of all of them holds.
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

mod changed;
mod compile;
mod document;
mod entry;
mod file;
mod local;
mod matrix;
mod model;
mod pairing;
mod ports;
mod read;
mod selected;
mod selector;
mod set;
pub mod tools;

pub use changed::{Changed, ChangedFor};
pub use entry::{Entry, NAMED_PORT, Pairing, Remote, Workload, lookup};
pub use local::{LocalPolicy, Ruling};
pub use matrix::{Closed, Matrix, Update};
pub use model::{
    Authentication, Direction, Encryption, Kind, PolicyInfo, Protocol, RuleInfo, RuleRef, Verdict,
};
pub use ports::{PortPrefix, Ports, ports_to_prefixes};
pub use read::{custom_resource_definition, json_schema, split};
pub use selected::Selected;
pub use set::{Note, PolicySet, ReadError, Source};
