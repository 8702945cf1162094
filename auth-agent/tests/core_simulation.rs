//! Seeded histories of two to four nodes: faults of every kind for a while, safety after every effect, and
//! liveness once the faults have stopped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod core_support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use core_support::kernel::Verdict;
use core_support::node::{OpenPolicy, identity, open_policy};
use core_support::world::World;
use handfast_agent::core::{DenyList, EndpointId, PeerNumber, Policy};

const SECOND: Duration = Duration::from_secs(1);

/// Everybody sends to everybody once; all must arrive, and that within the hold's bounds.
fn everybody_reaches_everybody(world: &mut World) {
    let workloads: Vec<(usize, EndpointId, IpAddr)> = world
        .nodes
        .iter()
        .flat_map(|node| {
            let index = node.index;
            node.workloads
                .iter()
                .map(move |(e, w)| (index, *e, w.address))
        })
        .collect();
    let mut sent = Vec::new();
    for (from, endpoint, _) in &workloads {
        for (to, _, address) in &workloads {
            if from != to {
                sent.push((world.send(*from, *endpoint, *address), *from, *address));
            }
        }
    }
    world.run(SECOND * 3);
    for (number, from, to) in sent {
        if !world.delivered.contains(&number) {
            world.fail(&format!("liveness: node {from} does not reach {to}"));
        }
    }
}

fn populate(world: &mut World) {
    for index in 0..world.nodes.len() {
        for host in 1..=2 {
            world.add_workload(index, host, identity(&format!("w{index}-{host}")));
        }
    }
    world.run(SECOND);
}

/// One fault or change, by chance.
fn disturb(world: &mut World, deny_number: &mut u64) {
    let nodes = world.nodes.len() as u64;
    let index = usize::try_from(world.rng.below(nodes)).unwrap();
    let down = Duration::from_millis(world.rng.below(3_000));
    match world.rng.below(20) {
        0..=3 => world.break_some(),
        4..=5 => world.crash(index, down),
        6 => world.reboot(index, down),
        7..=10 => {
            let endpoints: Vec<EndpointId> = world.nodes[index].workloads.keys().copied().collect();
            if let Some(endpoint) = world.rng.pick(&endpoints) {
                let address = world.nodes[index].workloads[&endpoint].address;
                let host = address
                    .to_string()
                    .rsplit('.')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                // Its last words are still under way when somebody else gets the address at once.
                let others = (0..nodes).filter(|other| *other != index as u64);
                for other in others.collect::<Vec<_>>() {
                    let other = usize::try_from(other).unwrap();
                    for host in 1..=2 {
                        let to = world.nodes[other].address(host);
                        world.send(index, endpoint, to);
                    }
                }
                world.remove_workload(index, endpoint);
                if world.rng.chance(50) {
                    let name = format!("n{}", world.rng.below(5));
                    world.add_workload(index, host, identity(&name));
                }
            }
        }
        11..=14 => {
            let host = u8::try_from(1 + world.rng.below(2)).unwrap();
            let name = format!("n{}", world.rng.below(5));
            let address = world.nodes[index].address(host);
            if world.nodes[index].workload_at(address).is_none() {
                world.add_workload(index, host, identity(&name));
            }
        }
        15 => {
            let other = usize::try_from(world.rng.below(nodes)).unwrap();
            if other != index {
                let cut = (index.min(other), index.max(other));
                if !world.partitions.remove(&cut) {
                    world.partitions.insert(cut);
                }
            }
        }
        16..=17 => {
            let all: Vec<_> = world.nodes[index].workloads.values().cloned().collect();
            if let Some(workload) = world.rng.pick(&all) {
                world.issue(index, workload.identity, Duration::ZERO);
            }
        }
        18 => {
            *deny_number += 1;
            let name = format!("spiffe://example.org/n{}", world.rng.below(5));
            let identities = if world.rng.chance(50) {
                BTreeSet::from([name])
            } else {
                BTreeSet::new()
            };
            world.deny(DenyList {
                number: *deny_number,
                identities,
                signed: deny_number.to_be_bytes().to_vec(),
                ..DenyList::default()
            });
        }
        _ => {
            let name = |n| format!("spiffe://example.org/n{n}");
            let (one, two) = (world.rng.below(5), world.rng.below(5));
            let forbidden = BTreeSet::from([(name(one), name(two))]);
            world.set_policy(Policy(std::sync::Arc::new(OpenPolicy {
                forbidden,
                max_age: None,
            })));
        }
    }
}

fn some_traffic(world: &mut World) {
    let nodes = world.nodes.len() as u64;
    for _ in 0..4 {
        let from = usize::try_from(world.rng.below(nodes)).unwrap();
        let to = usize::try_from(world.rng.below(nodes)).unwrap();
        let host = u8::try_from(1 + world.rng.below(2)).unwrap();
        let endpoints: Vec<EndpointId> = world.nodes[from].workloads.keys().copied().collect();
        if let Some(endpoint) = world.rng.pick(&endpoints).filter(|_| from != to) {
            let destination = world.nodes[to].address(host);
            world.send(from, endpoint, destination);
        }
    }
}

fn history(seed: u64, steps: u32, crash_permille: u64) {
    let count = usize::try_from(2 + seed % 3).unwrap();
    let mut world = World::new(count, seed);
    populate(&mut world);
    let mut deny_number = 0;
    world.crash_percent = crash_permille;
    world.straggle_percent = 25;
    for _ in 0..steps {
        disturb(&mut world, &mut deny_number);
        some_traffic(&mut world);
        let pause = match world.rng.below(10) {
            0 => SECOND * 10,
            1..=4 => SECOND,
            _ => Duration::from_millis(50),
        };
        world.run(pause);
    }
    // Faults stop: within a bounded time everything that policy wants works again.
    world.crash_percent = 0;
    world.straggle_percent = 0;
    world.partitions.clear();
    world.deny(DenyList {
        number: deny_number + 1,
        signed: vec![1],
        ..DenyList::default()
    });
    world.set_policy(open_policy());
    world.run(SECOND * 10);
    // Whoever waits for a silent connection gives up by then, and backoff has run out.
    some_traffic(&mut world);
    world.run(SECOND * 90);
    everybody_reaches_everybody(&mut world);
}

#[test]
fn many_histories_of_faults_stay_safe_and_end_well() {
    let count = std::env::var("HANDFAST_HISTORIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(60);
    let first = std::env::var("HANDFAST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    for seed in first..first + count {
        history(seed, 60, if seed % 2 == 0 { 2 } else { 0 });
    }
}

#[test]
fn the_first_packets_of_all_pairs_arrive_without_any_loss() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        populate(&mut world);
        everybody_reaches_everybody(&mut world);
        assert!(world.dropped.is_empty(), "{:?}", world.dropped);
    }
}

#[test]
fn a_first_packet_between_strangers_arrives_within_a_few_round_trips() {
    let mut world = World::new(2, 7);
    populate(&mut world);
    let destination = world.nodes[1].address(1);
    let number = world.send(0, EndpointId(1), destination);
    world.run(Duration::from_millis(700));
    assert!(world.delivered.contains(&number), "cold");
    let number = world.send(0, EndpointId(2), destination);
    world.run(Duration::from_millis(200));
    assert!(
        world.delivered.contains(&number),
        "session known, identity new"
    );
}

/// A packet every 100 ms both ways for a while; every one must arrive.
fn nothing_is_lost_while(world: &mut World, mut what: impl FnMut(&mut World, u32), steps: u32) {
    let (here, there) = (world.nodes[0].address(1), world.nodes[1].address(1));
    world.send(0, EndpointId(1), there);
    world.run(SECOND * 3);
    world.dropped.clear();
    let mut sent = Vec::new();
    for step in 0..steps {
        sent.push(world.send(0, EndpointId(1), there));
        sent.push(world.send(1, EndpointId(1), here));
        world.run(Duration::from_millis(100));
        what(world, step);
    }
    world.run(SECOND * 4);
    let lost: Vec<_> = sent
        .iter()
        .filter(|n| !world.delivered.contains(n))
        .collect();
    if !lost.is_empty() {
        let why = format!(
            "property 7: lost {} of {}: {:?}",
            lost.len(),
            sent.len(),
            world.dropped
        );
        world.fail(&why);
    }
}

#[test]
fn a_lost_connection_loses_no_packet() {
    for seed in 0..10 {
        let mut world = World::new(2, seed);
        populate(&mut world);
        let broken = |world: &mut World, step: u32| {
            if step % 7 == 3 {
                world.break_all();
            }
        };
        nothing_is_lost_while(&mut world, broken, 200);
    }
}

#[test]
fn a_restart_of_either_agent_loses_no_packet_of_a_recorded_pair() {
    for seed in 0..10 {
        let mut world = World::new(2, seed);
        populate(&mut world);
        let restarts = |world: &mut World, step: u32| {
            if step % 40 == 10 {
                let index = usize::try_from(step / 40 % 2).unwrap();
                world.crash(index, Duration::from_millis(u64::from(step) * 3));
            }
        };
        nothing_is_lost_while(&mut world, restarts, 400);
    }
}

#[test]
fn successor_sessions_and_renewed_svids_lose_no_packet_in_nine_hours() {
    let mut world = World::new(2, 3);
    populate(&mut world);
    let (here, there) = (world.nodes[0].address(1), world.nodes[1].address(1));
    world.send(0, EndpointId(1), there);
    world.run(SECOND * 3);
    for minute in 0..9 * 60 {
        if minute % 120 == 60 {
            for index in 0..2 {
                let all: Vec<_> = world.nodes[index].workloads.values().cloned().collect();
                for workload in all {
                    world.issue(index, workload.identity, Duration::ZERO);
                }
            }
        }
        let one = world.send(0, EndpointId(1), there);
        let two = world.send(1, EndpointId(1), here);
        world.run(SECOND * 60);
        assert!(
            world.delivered.contains(&one) && world.delivered.contains(&two),
            "minute {minute}"
        );
    }
    assert!(world.dropped.is_empty(), "{:?}", world.dropped);
    let session = world.nodes[0]
        .kernel
        .sessions
        .values()
        .map(|s| s.current)
        .max();
    assert!(session.unwrap() >= 16, "a successor every half hour");
}

#[test]
fn simultaneous_dials_end_in_one_session() {
    for seed in 0..200 {
        let mut world = World::new(2, seed);
        populate(&mut world);
        let (here, there) = (world.nodes[0].address(1), world.nodes[1].address(1));
        let one = world.send(0, EndpointId(1), there);
        let skew = Duration::from_millis(world.rng.below(120));
        world.run(skew);
        let two = world.send(1, EndpointId(1), here);
        world.run(SECOND * 3);
        let arrived = world.delivered.contains(&one) && world.delivered.contains(&two);
        if !arrived || !world.dropped.is_empty() {
            world.fail("both sides dialled and packets were lost");
        }
        let epochs: Vec<u32> = world
            .nodes
            .iter()
            .map(|node| {
                node.kernel
                    .sessions
                    .values()
                    .map(|s| s.current - s.oldest)
                    .max()
                    .unwrap()
            })
            .collect();
        if epochs != [0, 0] {
            world.fail("no agreement on the session");
        }
    }
}

/// Two nodes with pairs between all workloads; then node 0, alone, hears of a revocation and its agent dies
/// after so many effects of it. Within a second of its return nothing of the revoked passes, either way.
fn dies_within_a_revocation(list: &DenyList, effects: usize) -> bool {
    let mut world = World::new(2, 11);
    populate(&mut world);
    everybody_reaches_everybody(&mut world);
    world.partitions.insert((0, 1));
    world.crash_after = Some((0, effects));
    world.deny_at(0, list.clone());
    let died = world.crash_after.take().is_none();
    world.run(Duration::from_millis(900));
    let (node, now) = (&world.nodes[0], world.at);
    let peer = *node.kernel.tunnels.keys().next().unwrap_or(&PeerNumber(1));
    for here in node.workloads.values() {
        for there in world.nodes[1].workloads.values() {
            let cut = !list.nodes.is_empty()
                || !list.serials.is_empty()
                || [here, there]
                    .iter()
                    .any(|w| list.identities.contains(&w.identity.spiffe_id));
            let boot = node.now(now).boot;
            let out = node.kernel.to_tunnel(here.address, there.address, boot);
            let back = node
                .kernel
                .at_ingress(peer, there.address, here.address, boot);
            if cut && (out == Verdict::Pass || back == Verdict::Pass) {
                world.fail(&format!(
                    "property 6: dead after effect {effects}, {out:?} {back:?}"
                ));
            }
        }
    }
    died
}

#[test]
fn an_agent_that_dies_within_a_revocation_leaves_nothing_of_it_undone() {
    let name = |name: &str| BTreeSet::from([format!("spiffe://example.org/{name}")]);
    let lists = [
        DenyList {
            identities: name("w1-1"),
            ..DenyList::default()
        },
        DenyList {
            identities: name("w0-2"),
            ..DenyList::default()
        },
        DenyList {
            nodes: name("handfast/node/c1"),
            ..DenyList::default()
        },
        DenyList {
            serials: (1..=5_u64).map(|s| s.to_be_bytes().to_vec()).collect(),
            ..DenyList::default()
        },
    ];
    for list in lists {
        let list = DenyList { number: 1, ..list };
        // Which SVID a pair rests on is known to the living agent only: it begins once that is stored.
        let first = usize::from(!list.serials.is_empty());
        let effects = (first..10_000)
            .find(|effects| !dies_within_a_revocation(&list, *effects))
            .unwrap();
        assert!(effects > 4, "{list:?}: only {effects} effects");
    }
}
