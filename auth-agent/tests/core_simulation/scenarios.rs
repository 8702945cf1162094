//! Single stories, told on purpose: what must not be lost, what must be cut, and how soon.

use std::collections::BTreeSet;
use std::time::Duration;

use handfast_agent::core::{DenyList, EndpointId, PeerNumber};

use super::history::{SECOND, everybody_reaches_everybody, populate};
use super::kernel::Verdict;
use super::node::identity;
use super::world::{Setup, World};

fn world(nodes: usize, seed: u64) -> World {
    let mut world = World::new(Setup::new(nodes, seed));
    populate(&mut world);
    world
}

/// Every story is told with what happened, if it ends badly.
fn told(nodes: usize, seeds: u64, story: impl Fn(&mut World)) {
    for seed in 0..seeds {
        let mut setup = Setup::new(nodes, seed);
        setup.trace = true;
        let mut world = World::new(setup);
        populate(&mut world);
        story(&mut world);
    }
}

#[test]
fn the_first_packets_of_all_pairs_arrive_without_any_loss() {
    told(3, 20, |world| {
        everybody_reaches_everybody(world);
        assert!(world.dropped.is_empty(), "{:?}", world.dropped);
    });
}

#[test]
fn a_first_packet_between_strangers_arrives_within_a_few_round_trips() {
    let mut world = world(2, 7);
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
    let lost = sent.iter().filter(|n| !world.delivered.contains(n)).count();
    if lost > 0 {
        let (all, why) = (sent.len(), &world.dropped);
        world.fail(&format!("property 7: lost {lost} of {all}: {why:?}"));
    }
}

#[test]
fn a_lost_connection_loses_no_packet() {
    told(2, 10, |world| {
        let broken = |world: &mut World, step: u32| {
            if step % 7 == 3 {
                world.break_all();
            }
        };
        nothing_is_lost_while(world, broken, 200);
    });
}

#[test]
fn a_restart_of_either_agent_loses_no_packet_of_a_recorded_pair() {
    told(2, 10, |world| {
        let restarts = |world: &mut World, step: u32| {
            if step % 40 == 10 {
                let index = usize::try_from(step / 40 % 2).unwrap();
                world.crash(index, Duration::from_millis(u64::from(step) * 3));
            }
        };
        nothing_is_lost_while(world, restarts, 400);
    });
}

#[test]
fn a_rotation_of_the_ca_loses_no_packet() {
    told(2, 5, |world| {
        let rotates = |world: &mut World, step: u32| {
            if step % 20 == 5 {
                world.rotate();
            }
        };
        nothing_is_lost_while(world, rotates, 300);
        assert!(world.ca.signing > 3, "root {}", world.ca.signing);
    });
}

#[test]
fn a_change_of_tunnel_keys_loses_no_packet() {
    told(3, 10, |world| {
        // The one before is gone after ten seconds.
        let rotates = |world: &mut World, step: u32| match step % 390 {
            10 => world.rotate_tunnel_key(0),
            140 => world.rotate_tunnel_key(1),
            // Both at once, while a connection breaks.
            270 => {
                world.rotate_tunnel_key(0);
                world.rotate_tunnel_key(1);
                world.break_some();
            }
            _ => {}
        };
        nothing_is_lost_while(world, rotates, 1_000);
        assert_eq!(world.nodes[0].rotations, 5);
        world.run(SECOND * 15);
        let at = world.at;
        assert!(world.nodes[..2].iter().all(|node| node.has_rotated(at)));
    });
}

#[test]
fn an_agent_that_dies_while_tunnel_keys_change_loses_no_packet() {
    told(2, 10, |world| {
        let dies = |world: &mut World, step: u32| {
            if step % 50 == 10 {
                let index = usize::try_from(step / 50 % 2).unwrap();
                world.rotate_tunnel_key(index);
                // Somewhere in the middle of it.
                world.crash_after = Some((
                    usize::try_from(step / 100 % 2).unwrap(),
                    7 + step as usize / 9,
                ));
            }
        };
        nothing_is_lost_while(world, dies, 500);
    });
}

#[test]
fn successors_that_are_asked_for_lose_no_packet() {
    told(2, 10, |world| {
        let renews = |world: &mut World, step: u32| {
            if step % 9 == 3 {
                world.renew_some_session(usize::try_from(step / 9 % 2).unwrap());
            }
        };
        nothing_is_lost_while(world, renews, 300);
    });
}

/// A packet each way every minute for so many hours.
fn hours(world: &mut World, hours: u32, mut what: impl FnMut(&mut World, u32)) {
    let (here, there) = (world.nodes[0].address(1), world.nodes[1].address(1));
    world.send(0, EndpointId(1), there);
    world.run(SECOND * 3);
    for minute in 0..hours * 60 {
        what(world, minute);
        let one = world.send(0, EndpointId(1), there);
        let two = world.send(1, EndpointId(1), here);
        world.run(SECOND * 60);
        if !world.delivered.contains(&one) || !world.delivered.contains(&two) {
            world.fail(&format!("minute {minute}: {:?}", world.dropped));
        }
    }
    assert!(world.dropped.is_empty(), "{:?}", world.dropped);
}

#[test]
fn successor_sessions_and_renewed_svids_lose_no_packet_in_thirty_hours() {
    let mut world = world(2, 3);
    hours(&mut world, 30, |_, _| {});
    let sessions = world.nodes[0].kernel.sessions.values();
    let newest = sessions.map(|session| session.current).max();
    assert!(newest.unwrap() >= 50, "a successor every half hour");
    let serials = world.ca.certificates.len();
    assert!(serials >= 8, "every SVID renewed: {serials}");
}

#[test]
fn a_ca_that_is_away_for_twelve_hours_cuts_nothing() {
    // It goes at the worst moment: just before everything would have been renewed, at half its life.
    for gone in [0, 11 * 60 + 50] {
        let mut world = world(2, 4);
        hours(&mut world, 27, |world, minute| {
            if minute == gone {
                world.ca.reach.fill(false);
            }
            if minute == gone + 12 * 60 {
                world.ca_comes_back();
            }
        });
    }
}

#[test]
fn simultaneous_dials_end_in_one_session() {
    for seed in 0..200 {
        let mut world = world(2, seed);
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
        let epochs = world.nodes.iter().map(|node| {
            let sessions = node.kernel.sessions.values();
            sessions.map(|s| s.current - s.oldest).max().unwrap()
        });
        if epochs.collect::<Vec<_>>() != [0, 0] {
            world.fail("no agreement on the session");
        }
    }
}

fn named(name: &str) -> BTreeSet<String> {
    BTreeSet::from([format!("spiffe://example.org/{name}")])
}

/// Who is cut by a list, of the workloads of nodes 0 and 1.
fn cut(world: &World, list: &DenyList) -> Vec<(std::net::IpAddr, std::net::IpAddr)> {
    let mut cut = Vec::new();
    for here in world.nodes[0].workloads.values() {
        for there in world.nodes[1].workloads.values() {
            let either = [here, there];
            let of_identity = either
                .iter()
                .any(|w| list.identities.contains(&w.identity.spiffe_id));
            let of_serial = world.ca.certificates.values().any(|c| {
                list.serials.contains(c.serial.to_be_bytes().as_slice())
                    && either.iter().any(|w| w.identity == c.identity)
            });
            if of_identity || of_serial || !list.nodes.is_empty() {
                let host =
                    |node: usize, w: &super::node::Workload| world.nodes[node].address(w.host);
                cut.push((host(0, here), host(1, there)));
            }
        }
    }
    cut
}

fn lists() -> Vec<DenyList> {
    let list = |number| DenyList {
        number,
        signed: vec![0, 0, 0, 0, 0, 0, 0, 1],
        ..DenyList::default()
    };
    vec![
        DenyList {
            identities: named("w1-1"),
            ..list(1)
        },
        DenyList {
            identities: named("w0-2"),
            ..list(1)
        },
        DenyList {
            nodes: named("handfast/node/c1"),
            ..list(1)
        },
        // Node SVIDs have the first serials; these are the workloads'.
        DenyList {
            serials: (3..=6_u64).map(|s| s.to_be_bytes().to_vec()).collect(),
            ..list(1)
        },
    ]
}

/// Two nodes with pairs between all workloads; then node 0, alone, hears of a revocation and its agent dies
/// after so many effects of it. Within a second of its return nothing of the revoked passes, either way.
fn dies_within_a_revocation(list: &DenyList, effects: usize) -> bool {
    let mut world = world(2, 11);
    everybody_reaches_everybody(&mut world);
    world.cuts.extend([(0, 1), (1, 0)]);
    world.ca.reach.fill(false);
    world.crash_after = Some((0, effects));
    world.take_list(0, list.clone().into());
    let died = world.crash_after.take().is_none();
    world.run(Duration::from_millis(900));
    let (node, now) = (&world.nodes[0], world.at);
    let mut peers = node.kernel.tunnels.keys();
    let peer = peers.next().copied().unwrap_or(PeerNumber(1));
    let boot = node.boot_clock(now);
    for (here, there) in cut(&world, list) {
        let out = node.kernel.to_tunnel(here, there, boot);
        let back = node.kernel.at_ingress(peer, there, here, boot);
        if out == Verdict::Pass || back == Verdict::Pass {
            world.fail(&format!(
                "property 6: dead after effect {effects}, {out:?} {back:?}"
            ));
        }
    }
    died
}

#[test]
fn an_agent_that_dies_within_a_revocation_leaves_nothing_of_it_undone() {
    for list in lists() {
        let effects = (0..10_000)
            .find(|effects| !dies_within_a_revocation(&list, *effects))
            .unwrap();
        assert!(effects > 4, "{list:?}: only {effects} effects");
    }
}

#[test]
fn a_revocation_reaches_every_node_in_a_second_though_the_ca_reaches_one() {
    // A chain: each node has sessions with its neighbours only, and the CA speaks to the first.
    for list in lists() {
        for seed in 0..5 {
            let mut world = world(5, seed);
            for index in 0..4 {
                let (here, there) = (
                    world.nodes[index].address(1),
                    world.nodes[index + 1].address(1),
                );
                world.send(index, EndpointId(1), there);
                world.send(index + 1, EndpointId(1), here);
            }
            let (one, two) = (world.nodes[0].address(1), world.nodes[1].address(1));
            world.run(SECOND * 5);
            world.ca.reach = vec![true, false, false, false, false];
            let mut serials = BTreeSet::new();
            if !list.serials.is_empty() {
                let of_two = world.ca.certificates.values().filter(|c| c.owner == 1);
                serials.extend(of_two.map(|c| c.serial.to_be_bytes().to_vec()));
            }
            world.revoke(|all| {
                all.identities.clone_from(&list.identities);
                all.nodes.clone_from(&list.nodes);
                all.serials = serials;
            });
            world.run(SECOND);
            let deny = world.ca.deny.clone();
            // A revoked node is told nothing, and passes nothing on.
            let reached = match list.nodes.is_empty() {
                true => 5,
                false => 1,
            };
            for node in &world.nodes[..reached] {
                assert_eq!(node.deny.as_ref(), Some(&deny), "node {}", node.index);
            }
            if !list.serials.is_empty() || list.identities.contains("spiffe://example.org/w0-2") {
                continue;
            }
            // The check on every packet does the rest; this one must not arrive.
            let sent = [
                world.send(0, EndpointId(1), two),
                world.send(1, EndpointId(1), one),
            ];
            world.run(SECOND * 4);
            assert!(sent.iter().all(|number| !world.delivered.contains(number)));
        }
    }
}

#[test]
fn a_workload_that_takes_over_an_address_gets_nothing_of_its_predecessor() {
    // The peer is reachable, slow, cut off, or its agent is dead: the check on every packet is the test.
    for state in 0..4 {
        for seed in 0..20 {
            let mut world = world(2, seed);
            everybody_reaches_everybody(&mut world);
            world.faults.straggle_percent = 50;
            let (here, there) = (world.nodes[0].address(1), world.nodes[1].address(1));
            match state {
                1 => {
                    world.faults.slow_percent = 100;
                    world.break_all();
                }
                2 => world.cuts.extend([(0, 1)]),
                3 => world.crash(1, SECOND * 7),
                _ => {}
            }
            let mut endpoint = EndpointId(1);
            for round in 0..6 {
                world.send(0, endpoint, there);
                world.send(1, EndpointId(1), here);
                world.remove_workload(0, endpoint);
                endpoint = world
                    .add_workload(0, 1, identity(&format!("next{round}")))
                    .unwrap();
                for _ in 0..10 {
                    world.send(0, endpoint, there);
                    world.send(1, EndpointId(1), here);
                    world.run(Duration::from_millis(300));
                }
            }
            world.cuts.clear();
            world.faults = Default::default();
            world.run(SECOND * 60);
            everybody_reaches_everybody(&mut world);
        }
    }
}
