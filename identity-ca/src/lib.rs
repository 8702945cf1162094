//! The authority: keys, issuing, attestation, registry, bundles; and the SVID verifier.
//!
//! Three faces. Agents use [`client`] (join, issue, watch), [`certificate`]
//! (keys and CSRs) and [`verify`] (whose certificate is this?); operators use
//! [`client::admin`]; `handfast ca` uses [`authority`] and [`server`].

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

pub mod authority;
pub mod bundle;
pub mod certificate;
pub mod client;
mod convert;
pub mod deny;
mod error;
pub mod model;
mod names;
mod registry;
pub mod server;
mod tls;
pub mod token;
pub mod verify;

pub use self::error::Error;
pub use self::names::{NodeName, node_id};

/// The messages of `proto/ca.proto`.
pub(crate) mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    tonic::include_proto!("handfast.ca.v1");
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
