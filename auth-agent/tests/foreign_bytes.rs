//! Every parser of foreign bytes, fed with examples that were mutated at random: no panic, no property broken.
//!
//! The same functions as `make fuzz`, without following coverage, so that a stable compiler and a few seconds
//! do. `HANDFAST_FUZZ_ROUNDS` asks for more rounds, `HANDFAST_FUZZ_SEED` for others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

fn feed(name: &str, rounds: usize) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let rounds = number("HANDFAST_FUZZ_ROUNDS").map_or(rounds, |rounds| rounds as usize);
    let mut random = StdRng::seed_from_u64(number("HANDFAST_FUZZ_SEED").unwrap_or(7250));
    let target = fuzz::TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target of that name");
    let seeds = (target.seeds)();
    for seed in &seeds {
        (target.run)(seed);
    }
    (target.run)(&[]);
    for round in 0..rounds {
        let mut data = seeds.choose(&mut random).expect("a seed").clone();
        for _ in 0..random.random_range(1..=4) {
            mutate(&mut random, &mut data, &seeds);
        }
        let outcome = std::panic::catch_unwind(|| (target.run)(&data));
        assert!(outcome.is_ok(), "{name}, round {round}: {}", hex(&data));
    }
}

fn mutate(random: &mut StdRng, data: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = random.random_range(0..=data.len());
    let end = (at + random.random_range(1..=16)).min(data.len());
    match random.random_range(0..8) {
        0 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
        1 if at < data.len() => data[at] = random.random(),
        2 if at < data.len() => data[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(random).expect("one"),
        3 => data.truncate(at),
        4 => drop(data.drain(at..end)),
        5 => {
            let piece = data[at..end].to_vec();
            data.splice(at..at, piece);
        }
        6 => {
            let other = seeds.choose(random).expect("a seed");
            let from = random.random_range(0..=other.len());
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
        _ => {
            let mut piece = vec![0; random.random_range(1..=64)];
            random.fill_bytes(&mut piece);
            data.splice(at..end, piece);
        }
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn frames_are_legal_or_refused() {
    feed("frames", 60_000);
}

#[test]
fn audit_lines_are_sealed_or_refused() {
    feed("audit", 20_000);
}

#[test]
fn what_lies_in_adopted_maps_is_what_an_agent_writes_or_nothing() {
    feed("adopted", 200_000);
}

#[test]
fn answers_of_the_kernel_and_of_a_daemon_are_read_or_refused() {
    feed("answers", 100_000);
}

#[test]
fn authenticators_of_another_making_are_refused() {
    feed("authenticators", 20_000);
}

#[test]
fn backups_are_whole_and_as_they_were_written_or_refused() {
    feed("backups", 20_000);
}

#[test]
fn files_of_entries_are_written_as_they_were_read() {
    feed("entry_files", 20_000);
}

#[test]
fn changed_bundles_add_nothing_and_changed_tokens_are_refused() {
    feed("bundles", 20_000);
}

#[test]
fn changed_certificates_are_refused() {
    feed("certificates", 20_000);
}

#[test]
fn events_say_what_their_bytes_say_or_are_none() {
    feed("events", 200_000);
}

#[test]
fn what_an_agent_has_stored_is_read_as_it_was_or_refused() {
    feed("journals", 50_000);
}

#[test]
fn packets_say_what_their_bytes_say_or_are_refused() {
    feed("packets", 200_000);
}

#[test]
fn policies_are_read_whole_or_refused_with_a_place() {
    feed("policies", 50_000);
}

#[test]
fn the_tools_files_are_read_or_refused() {
    feed("policy_files", 20_000);
}

#[test]
fn headers_mean_what_they_meant_with_another_authority() {
    feed("authority", 200_000);
}
