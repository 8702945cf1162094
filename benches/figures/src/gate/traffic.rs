//! What is left of bandwidth, new connections and latency behind gates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::lane::Lane;
use crate::report::{Figure, Goal, figure};

/// Rounds of bandwidth; the others are shorter, and have more.
const ROUNDS: usize = 15;
const SHORT_ROUNDS: usize = 31;
/// Exchanges on a kept connection in a round.
const EXCHANGES: usize = 5_000;

/// `gate.throughput_ratio`, `gate.conn_rate_ratio` and `gate.kept_p99_ratio`.
pub fn measure() -> Result<Vec<Figure>> {
    let lane = Lane::new().context("no root, no bpffs or no iperf3")?;
    let throughput = ratios(&lane, ROUNDS, |lane| {
        lane.throughput(Duration::from_secs(1))
    })?;
    let connections = ratios(&lane, SHORT_ROUNDS, |lane| {
        lane.connections(Duration::from_millis(300))
    })?;
    let latency = ratios(&lane, SHORT_ROUNDS, |lane| {
        let taken = lane.exchanges(EXCHANGES);
        taken[taken.len() * 99 / 100]
    })?;
    let drops = lane.drops();
    ensure!(drops.is_empty(), "gates dropped packets: {drops:?}");
    let what = "between two workloads on two nodes joined by plain veth links, four gates each way against none on \
                the same links, in turns, no encryption";
    Ok(vec![
        figure(
            "gate.throughput_ratio",
            "ratio",
            Goal::AtLeast(0.95),
            throughput,
            &format!("iperf3, one TCP connection, a second each, {what}"),
        )?,
        figure(
            "gate.conn_rate_ratio",
            "ratio",
            Goal::AtLeast(0.9),
            connections,
            &format!("TCP connections one after the other, a byte each, {what}"),
        )?,
        figure(
            "gate.kept_p99_ratio",
            "ratio",
            Goal::AtMost(1.1),
            latency,
            &format!("p99 of {EXCHANGES} exchanges of 100 bytes on one connection, {what}"),
        )?,
    ])
}

/// With gates over without, of each round; which of both goes first takes turns. The first round warms up.
fn ratios(lane: &Lane, rounds: usize, measure: impl Fn(&Lane) -> f64) -> Result<Vec<f64>> {
    let one = |gates: bool| {
        lane.set_gates(gates);
        let before = lane.passed();
        let value = measure(lane);
        let judged = lane.passed() > before;
        ensure!(judged == gates, "packets judged: {judged}, gates: {gates}");
        Ok(value)
    };
    let mut ratios = Vec::new();
    for round in 0..=rounds {
        let ratio = if round % 2 == 0 {
            let plain = one(false)?;
            one(true)? / plain
        } else {
            let gated = one(true)?;
            gated / one(false)?
        };
        if round > 0 {
            ratios.push(ratio);
        }
    }
    Ok(ratios)
}
