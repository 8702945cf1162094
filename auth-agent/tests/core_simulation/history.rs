//! One history: a world made from a seed, faults for a while, then the wait until all is well again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use handfast_agent::core::{EndpointId, Times};

use super::node::identity;
use super::packets::{HANDSHAKE, LOST_KEYS};
use super::tunnels::UNANSWERED;
use super::world::{Failure, Faults, Setup, World};

pub const SECOND: Duration = Duration::from_secs(1);

/// Nodes of a history, by its seed: most are small, since most of what goes wrong needs two or three, and what a
/// history costs grows with the square.
const NODES: [usize; 64] = [
    2, 2, 2, 3, 3, 3, 2, 4, 3, 2, 3, 3, 3, 2, 3, 2, //
    2, 2, 3, 3, 2, 3, 2, 3, 3, 2, 5, 3, 3, 2, 2, 4, //
    2, 3, 2, 3, 3, 2, 2, 4, 3, 2, 3, 2, 3, 2, 3, 2, //
    2, 2, 2, 3, 6, 3, 2, 3, 3, 2, 3, 3, 4, 2, 3, 8,
];
/// Seeds below have real authenticators in every eighth history, others in every 64th: they cost ten times as much.
const OFTEN: u64 = 4_096;
/// Faults of a history.
const STEPS: u32 = 24;

/// Two workloads on each node, each somebody of its own.
pub fn populate(world: &mut World) {
    for index in 0..world.nodes.len() {
        for host in 1..=2 {
            world.add_workload(index, host, identity(&format!("w{index}-{host}")));
        }
    }
    world.run(SECOND);
}

fn setup(seed: u64) -> Setup {
    let nodes = NODES[usize::try_from(seed % 64).unwrap()];
    let mut setup = Setup::new(nodes, seed);
    setup.real_proofs = match std::env::var("HANDFAST_PROOFS").as_deref() {
        Ok("real") => true,
        Ok("terms") => false,
        _ => seed.is_multiple_of(if seed < OFTEN { 8 } else { 64 }),
    };
    if seed % 3 == 1 {
        // Time runs faster: sessions and certificates are renewed and expire within a history.
        setup.times = Times {
            session: SECOND * 120,
            renew: SECOND * 40,
            // Longer than an address rests: what is held must not rely on that.
            hold: SECOND * 10,
            ..Times::default()
        };
        setup.lifetime = 300;
    }
    setup
}

/// Runs a seed's history to its end.
pub fn run(seed: u64, trace: bool) {
    let mut setup = setup(seed);
    setup.trace |= trace;
    let fast = setup.lifetime < 3_600;
    let mut world = World::new(setup);
    populate(&mut world);
    let kind = world.rng.below(4);
    world.faults = Faults {
        crash_permille: if kind == 0 { 2 } else { 0 },
        straggle_percent: 25,
        loss_percent: if kind == 1 { 5 } else { 0 },
        tunnel_percent: if kind == 2 { 20 } else { 0 },
        refuse_percent: if kind == 3 { 3 } else { 0 },
        // A full disk is found by agents that die and by those whose kernel refuses, and by others.
        disk_percent: if seed % 4 == 2 { 2 } else { 0 },
        slow_percent: 15,
        lie_percent: 0,
    };
    if world.nodes.len() > 2 && world.rng.chance(60) {
        world.liar = Some(world.rng.index(world.nodes.len()));
        world.faults.lie_percent = 15;
    }
    for _ in 0..STEPS {
        world.disturb();
        world.some_traffic(4);
        if let Some(liar) = world.liar {
            world.spoof(liar);
        }
        let pause = match world.rng.below(20) {
            0 if fast => SECOND * 75,
            0..=1 => SECOND * 10,
            2..=9 => SECOND,
            _ => Duration::from_millis(50),
        };
        world.run(pause);
    }
    all_is_well_again(&mut world);
}

/// Once the faults have stopped, every pair that policy wants is established within a bounded time.
fn all_is_well_again(world: &mut World) {
    world.faults_stop();
    world.run(SECOND * 10);
    // Whoever waits for a silent connection gives up by then, and backoff has run out.
    world.some_traffic(8);
    world.run(SECOND * 90);
    world.dropped.clear();
    everybody_reaches_everybody(world);
}

/// Everybody sends to everybody once; all must arrive, and that within the hold's bounds.
pub fn everybody_reaches_everybody(world: &mut World) {
    let liar = world.liar;
    let honest = world.nodes.iter().filter(|node| Some(node.index) != liar);
    let workloads: Vec<(usize, EndpointId)> = honest
        .flat_map(|node| {
            let index = node.index;
            node.workloads
                .keys()
                .map(move |endpoint| (index, *endpoint))
        })
        .collect();
    let mut sent = Vec::new();
    for (from, endpoint) in &workloads {
        for (to, other) in &workloads {
            if from == to {
                continue;
            }
            let there = world.nodes[*to].workloads[other].addresses.clone();
            let here = world.nodes[*from].workloads[endpoint].addresses.clone();
            for address in there {
                if here.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
                    let number = world.send(*from, *endpoint, address);
                    sent.push((number, *from, *endpoint, address));
                }
            }
        }
    }
    world.run(SECOND * 3);
    sent.retain(|(number, ..)| !world.delivered.contains(number));
    let lost = |why| world.dropped.get(why).copied().unwrap_or(0);
    let (handshake, lost_keys) = (lost(HANDSHAKE), lost(LOST_KEYS));
    if !sent.is_empty() && handshake + lost_keys >= sent.len() as u64 {
        // A tunnel that had no keys, just when both ends set its preshared key anew: five seconds later it has. One
        // whose other end has lost them notices after fifteen.
        if lost_keys > 0 {
            world.run(UNANSWERED);
        }
        for (number, from, endpoint, address) in &mut sent {
            *number = world.send(*from, *endpoint, *address);
        }
        world.run(SECOND * 3);
    }
    for (number, from, _, to) in sent {
        if !world.delivered.contains(&number) {
            world.fail(&format!(
                "liveness: node {from} does not reach {to}: {:?}",
                world.dropped
            ));
        }
    }
}

/// Runs a history; what it failed by, if it did.
pub fn outcome(seed: u64, trace: bool) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, trace))).map_err(said)
}

/// The text of a panic.
fn said(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<Failure>() {
        Ok(failure) => failure.0,
        Err(other) => match other.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => other.downcast_ref::<&str>().unwrap_or(&"?").to_string(),
        },
    }
}

/// The first seed that fails, and how.
#[cfg(feature = "planted-bugs")]
pub fn first_failure(seeds: impl Iterator<Item = u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| {
        let failure = outcome(seed, false).err()?;
        Some((seed, failure))
    })
}
