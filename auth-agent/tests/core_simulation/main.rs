//! Seeded histories of two to eight nodes: faults of every kind for a while, safety after every effect, and
//! liveness once the faults have stopped. docs/simulator.md says what is in a history and what it has found.
//!
//! `HANDFAST_HISTORIES` says how many, `HANDFAST_SEED` which comes first, `HANDFAST_PROOFS=real` or `terms` of what
//! their authenticators are made (`proofs`), `HANDFAST_THREADS` how many run at a time, `HANDFAST_PROGRESS` after how
//! many a line tells how far it has come. A seed that fails is run again and prints its history, or as much of its end
//! as `HANDFAST_LINES` says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod authority;
mod faults;
mod forge;
mod history;
mod kernel;
mod liar;
mod links;
mod node;
mod packets;
#[cfg(feature = "planted-bugs")]
mod planted;
mod proofs;
mod rng;
mod scenarios;
mod shell;
mod truth;
mod tunnels;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn number(name: &str, otherwise: u64) -> u64 {
    let said = std::env::var(name).ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn many_histories_of_faults_stay_safe_and_end_well() {
    let first = number("HANDFAST_SEED", 1);
    let last = first + number("HANDFAST_HISTORIES", 2_000);
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = number("HANDFAST_THREADS", cores as u64);
    let (progress, started) = (number("HANDFAST_PROGRESS", u64::MAX), Instant::now());
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        break;
                    }
                    let outcome = history::outcome(seed, false);
                    let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if count.is_multiple_of(progress) {
                        let (took, failed) = (started.elapsed(), failed.lock().unwrap().len());
                        eprintln!(
                            "{count} histories from seed {first}: {failed} failed, {took:.0?}"
                        );
                    }
                    if let Err(why) = outcome {
                        eprintln!("seed {seed}: {}", why.lines().last().unwrap_or_default());
                        failed.lock().unwrap().push((seed, why));
                        if failed.lock().unwrap().len() >= number("HANDFAST_FAILURES", 1) as usize {
                            break;
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    for (seed, why) in &failed {
        println!("seed {seed}: {}", why.lines().last().unwrap_or_default());
    }
    if let Some((seed, _)) = failed.first() {
        let again = history::outcome(*seed, true).expect_err("a seed is a history");
        panic!("seed {seed}:\n{again}");
    }
}
