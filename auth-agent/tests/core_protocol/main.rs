//! The rules of proofs, announcements, pairs, holds, revocation and restart, one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod announcements;
mod batches;
#[path = "../core_bench/mod.rs"]
mod core_bench;
mod cut;
mod holds;
mod pairs;
mod proofs;
mod questions;
mod refused;
mod resolve;
mod restart;
mod stored;

use core_bench::*;
use handfast_agent::core::{
    Alarm, AnnouncedState, CloseReason, Config, ConnId, Discarded, Effect, EndpointId, Event,
    Identity, IdentityNumber, Journal, PeerNumber, SessionState,
};
use handfast_agent::wire::Frame;

fn proofs(effects: &[Effect]) -> Vec<Option<[u8; 32]>> {
    let proofs = effects.iter().filter_map(|effect| match effect {
        Effect::SendProof { request, .. } => Some(*request),
        _ => None,
    });
    proofs.collect()
}

fn discards(effects: &[Effect]) -> Vec<Discarded> {
    let discards = effects.iter().filter_map(|effect| match effect {
        Effect::Discard { reason, .. } => Some(*reason),
        _ => None,
    });
    discards.collect()
}

fn refused_announcement(effects: &[Effect]) -> bool {
    has(effects, |e| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::AnnounceRefused { .. },
                ..
            }
        )
    }) && !has(effects, |e| matches!(e, Effect::SetRemote { .. }))
}

fn released(effects: &[Effect]) -> bool {
    let release = |e: &Effect| matches!(e, Effect::Release { .. });
    // Nothing may come after a release but releases.
    let first = effects.iter().position(release);
    first.is_some_and(|first| effects[first..].iter().all(release))
}

/// A session with the higher node, endpoint 1 held for 10.122.0.1: what has been sent.
fn held_on(dialled: bool) -> (Bench, Vec<Effect>) {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.hold(1, "10.122.0.1");
    let effects = bench.live(1, HIGHER, dialled);
    (bench, effects)
}
