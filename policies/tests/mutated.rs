//! The fuzz targets of this crate's parsers, fed with their examples mutated at random (`make fuzz` follows coverage).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../fuzz/src/policies.rs"]
mod policies;
#[path = "../../fuzz/src/policy_files.rs"]
mod policy_files;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Cuts a piece out of an example and puts a piece of another one, or some bytes, in its place.
#[derive(Clone, Debug)]
struct Wound {
    at: Index,
    length: usize,
    from: Index,
    start: Index,
    taken: usize,
    bytes: Vec<u8>,
}

fn wound() -> impl Strategy<Value = Wound> {
    (
        any::<Index>(),
        0_usize..30,
        any::<Index>(),
        any::<Index>(),
        0_usize..40,
        vec(any::<u8>(), 0..3),
    )
        .prop_map(|(at, length, from, start, taken, bytes)| Wound {
            at,
            length,
            from,
            start,
            taken,
            bytes,
        })
}

fn wounded(seeds: &[Vec<u8>], which: Index, wounds: Vec<Wound>) -> Vec<u8> {
    let mut data = which.get(seeds).clone();
    for wound in wounds {
        let at = wound.at.index(data.len() + 1);
        let end = (at + wound.length).min(data.len());
        let other = wound.from.get(seeds);
        let start = wound.start.index(other.len());
        let piece = &other[start..(start + wound.taken).min(other.len())];
        let new: Vec<u8> = piece.iter().chain(&wound.bytes).copied().collect();
        data.splice(at..end, new);
    }
    data
}

#[test]
fn the_examples_pass() {
    for seed in policies::seeds() {
        policies::run(&seed);
    }
    for seed in policy_files::seeds() {
        policy_files::run(&seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn wounded_policies_are_read_or_refused(which in any::<Index>(), wounds in vec(wound(), 1..4)) {
        policies::run(&wounded(&policies::seeds(), which, wounds));
    }

    #[test]
    fn wounded_files_are_read_or_refused(which in any::<Index>(), wounds in vec(wound(), 1..4)) {
        policy_files::run(&wounded(&policy_files::seeds(), which, wounds));
    }
}
