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

pub mod attest;
// What tests share with those that see the crate from outside.
#[cfg(test)]
extern crate self as handfast_ca;

pub mod audit;
pub mod authority;
pub mod backup;
pub mod bundle;
pub mod certificate;
pub mod client;
mod convert;
pub mod deny;
mod error;
mod failpoint;
pub mod federation;
pub mod jwt;
pub mod kubernetes;
mod metrics;
pub mod model;
mod names;
mod registry;
pub mod rotation;
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

/// Milliseconds since 1970 by this machine's clock: the only place that asks it.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    });
    #[cfg(test)]
    let now = now.saturating_add_signed(test_clock::offset());
    now
}

/// The same as certificates are judged by.
pub(crate) fn now() -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms()))
}

/// Threads whose clock is wrong.
#[cfg(test)]
mod test_clock {
    use std::cell::Cell;

    thread_local! {
        static OFFSET: Cell<i64> = const { Cell::new(0) };
    }

    pub(crate) fn offset() -> i64 {
        OFFSET.get()
    }

    /// This thread's clock jumps, forward or back.
    pub(crate) fn jump(seconds: i64) {
        OFFSET.set(OFFSET.get() + seconds * 1000);
    }

    /// Runs `work` on a thread and runtime of its own, by a clock that is
    /// `seconds` off.
    pub(crate) fn off_by<T: Send + 'static, F: Future<Output = T>>(
        seconds: i64,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        std::thread::spawn(move || {
            OFFSET.set(seconds * 1000);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(work())
        })
    }
}
