//! What gates cost: nanoseconds and instructions of a packet in the kernel, and what is left of bandwidth, connections and latency.

mod traffic;

#[allow(
    dead_code,
    clippy::all,
    reason = "what the tests of the datapath share"
)]
#[path = "../../../../bpf-auth-map/tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, ensure};

use crate::clock::Clock;
use crate::report::{Figure, Goal, ROUNDS, figure};
use support::{
    cost::{self, PACKETS, REMOTE, Way},
    driver::Order,
    run::Node,
};

/// Flows that are in use.
const HOT: u32 = 1_000;
/// Flows that are known, on a full node.
const MANY: u32 = 500_000;

/// Every figure of the group.
pub fn measure() -> Result<Vec<Figure>> {
    ensure!(nix::unistd::geteuid().is_root(), "gates need root");
    let mut figures = in_the_kernel()?;
    figures.extend(traffic::measure()?);
    Ok(figures)
}

/// `gate.instructions_per_packet`, where the clock counts them; nothing elsewhere.
pub fn instructions() -> Result<Vec<Figure>> {
    if Clock::here()? != Clock::Instructions {
        return Ok(Vec::new());
    }
    let mut node = cost::node("bench-instructions", HOT).context("no bpffs")?;
    cost::open(&mut node, &REMOTE[1], 0..HOT);
    let mut all = Vec::new();
    let mut each = REMOTE.map(|way| (way.program, Vec::new()));
    for _ in 0..ROUNDS {
        let seen = REMOTE
            .map(|way| cost::measure(&mut node, &way, Order::Random(HOT), PACKETS / 10).round());
        all.push(seen.iter().sum());
        for ((_, rounds), seen) in each.iter_mut().zip(seen) {
            rounds.push(seen);
        }
    }
    let medians: Vec<String> = each
        .iter_mut()
        .map(|(program, rounds)| {
            rounds.sort_by(f64::total_cmp);
            format!("{program} {}", rounds[rounds.len() / 2])
        })
        .collect();
    let how = format!(
        "x86-64 instructions of all four gates between two workloads on two nodes ({}), {HOT} flows to 100 proven workloads \
         in random order, by program test run in a guest whose clock counts instructions",
        medians.join(", ")
    );
    let id = "gate.instructions_per_packet";
    Ok(vec![figure(id, "", Goal::None, all, &how)?])
}

/// `gate.ns_per_packet`, `gate.growth_500k` and what is reported beside them.
fn in_the_kernel() -> Result<Vec<Figure>> {
    let mut small = cost::node("bench-small", HOT).context("no bpffs")?;
    let mut large = cost::node("bench-large", MANY).context("no bpffs")?;
    let [.., to_tunnel, from_tunnel, _] = &REMOTE;
    // Both gates keep a flow under one key: who opens it is of no account.
    cost::open(&mut small, to_tunnel, 0..HOT);
    let first: Vec<f64> = (0..MANY)
        .step_by(MANY as usize / 10)
        .map(|from| cost::open(&mut large, to_tunnel, from..from + MANY / 10))
        .collect();

    let (mut packet, mut growth, mut uniform) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let of = |node: &mut Node, way: &Way, flows| {
            cost::measure(node, way, Order::Random(flows), PACKETS)
        };
        let few = [to_tunnel, from_tunnel].map(|way| of(&mut small, way, HOT));
        let many = [to_tunnel, from_tunnel].map(|way| of(&mut large, way, HOT));
        let spread = of(&mut large, to_tunnel, MANY);
        // The first round warms up.
        if round > 0 {
            packet.push(few[0].max(few[1]));
            growth.push((many[0] + many[1]) / (few[0] + few[1]));
            uniform.push(spread);
        }
    }
    let mut whole = Vec::new();
    for _ in 0..ROUNDS {
        let each = REMOTE.map(|way| cost::measure(&mut small, &way, Order::Random(HOT), PACKETS));
        whole.push(each.iter().sum());
    }
    let what = format!(
        "by program test run, {PACKETS} TCP packets a round; a small program in front chooses the flow, and what it \
         costs itself is taken off"
    );
    let flows = format!("{HOT} flows to 100 proven workloads in random order");
    Ok(vec![
        figure(
            "gate.ns_per_packet",
            "ns",
            Goal::AtMost(250.0),
            packet,
            &format!("the dearer of the two gates of a tunnel, {flows}, {what}"),
        )?,
        figure(
            "gate.growth_500k",
            "ratio",
            Goal::AtMost(1.3),
            growth,
            &format!(
                "the same with {MANY} flows known, over that with {HOT}; both gates of a tunnel"
            ),
        )?,
        figure(
            "gate.uniform_500k_ns",
            "ns",
            Goal::None,
            uniform,
            &format!("to-tunnel, each packet of any of {MANY} flows, {what}"),
        )?,
        figure(
            "gate.first_packet_ns",
            "ns",
            Goal::None,
            first,
            "to-tunnel, the packet that opens a flow: announcement, policy, pair, connection and event",
        )?,
        figure(
            "gate.whole_way_ns",
            "ns",
            Goal::None,
            whole,
            &format!("all four gates between two workloads on two nodes, {flows}"),
        )?,
    ])
}
