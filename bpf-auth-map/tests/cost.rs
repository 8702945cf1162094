//! What a packet costs: printed, and not judged, since a busy machine would. `make bench` does both.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use support::{
    cost::{PACKETS, REMOTE, measure, node, open},
    driver::Order,
};

#[test]
#[ignore = "measures, and shows nothing about being right"]
fn nanoseconds_of_a_packet() {
    let Some(mut node) = node("cost", 2_000) else {
        return;
    };
    let first = open(&mut node, &REMOTE[1], 0..1_000);
    println!("first packet of a flow, {}: {first:.0}", REMOTE[1].program);
    for way in &REMOTE {
        let mut rounds: Vec<f64> = (0..7)
            .map(|_| measure(&mut node, way, Order::Random(1_000), PACKETS))
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!(
            "{}: {:.0} ({:.0} to {:.0})",
            way.program, rounds[3], rounds[0], rounds[6]
        );
    }
}
