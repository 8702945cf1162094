//! What a packet costs: printed, and not judged, since a busy machine would. `make bench` does both.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::time::Duration;

use support::{
    cost::{PACKETS, REMOTE, measure, node, open},
    driver::Order,
    lane::Lane,
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

/// Ratio with gates to without, of each round; which goes first takes turns.
fn ratios(lane: &Lane, rounds: usize, measure: impl Fn(&Lane) -> f64) -> Vec<f64> {
    let one = |gates: bool| {
        lane.set_gates(gates);
        let before = lane.passed();
        let value = measure(lane);
        assert_eq!(lane.passed() > before, gates, "gates are {gates}");
        value
    };
    let mut ratios: Vec<f64> = (0..rounds)
        .map(|round| match round % 2 {
            0 => {
                let plain = one(false);
                one(true) / plain
            }
            _ => {
                let gated = one(true);
                gated / one(false)
            }
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios
}

#[test]
#[ignore = "measures, and shows nothing about being right"]
fn traffic_through_gates_against_plain() {
    let Some(lane) = Lane::new() else {
        return;
    };
    let say = |what: &str, ratios: Vec<f64>| {
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let middle = ratios[ratios.len() / 2];
        println!("{what}: {middle:.3} ({least:.3} to {most:.3})");
    };
    say(
        "throughput",
        ratios(&lane, 11, |lane| lane.throughput(Duration::from_secs(1))),
    );
    say(
        "connections",
        ratios(&lane, 11, |lane| {
            lane.connections(Duration::from_millis(500))
        }),
    );
    say(
        "kept connection, p99",
        ratios(&lane, 11, |lane| {
            let taken = lane.exchanges(10_000);
            taken[taken.len() * 99 / 100]
        }),
    );
    assert_eq!(lane.drops(), []);
}
