//! Several inputs as one step.

use super::*;

#[test]
fn several_inputs_are_stored_once_and_release_last() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.hold(1, "10.122.0.1");
    let effects = bench.live(1, HIGHER, true);
    let generation = announced_generation(&effects, "10.109.0.1");
    bench.feed(Event::Frame {
        conn: ConnId(1),
        frame: Frame::Proof {
            authenticator: vec![101],
            request: None,
        },
    });
    bench.verdict(1, HIGHER, "db", 101, WALL + DAY);
    let frames = [
        accepted(1),
        confirmed("10.109.0.1", generation),
        Frame::Announce {
            address: ip("10.122.0.1"),
            leaf_hash: leaf(101),
            generation: 5,
            boot_id: boot(1),
        },
    ];
    let conn = ConnId(1);
    let events = frames.map(|frame| Event::Frame { conn, frame });
    let effects = bench.core.handle_all(bench.now(), events);
    let stored = effects.iter().filter(|e| **e == Effect::Persist);
    assert_eq!(stored.count(), 1);
    assert_eq!(effects[0], Effect::Persist);
    assert!(released(&effects));
    assert_eq!(bench.pairs().len(), 1);
}

#[test]
fn what_a_step_of_several_inputs_takes_out_is_taken_out_again_by_the_next_agent() {
    let mut bench = Bench::paired();
    let withdraw = Event::Frame {
        conn: ConnId(1),
        frame: Frame::Withdraw {
            address: ip("10.122.0.1"),
            generation: 6,
        },
    };
    let events = [withdraw, deny(1, &["db"], &[], &[]), Event::Tick];
    bench.core.handle_all(bench.now(), events);
    let removals = bench.core.snapshot().removals;
    assert!(removals.remotes.contains(&ip("10.122.0.1")));
    assert_eq!(removals.pairs.len(), 1);
}

#[test]
fn a_broken_rule_ends_the_connection_for_what_comes_after_it_in_the_same_step() {
    let mut bench = Bench::paired();
    let frame = |frame| Event::Frame {
        conn: ConnId(1),
        frame,
    };
    let events = [Event::Garbage { conn: ConnId(1) }, frame(Frame::Ping)];
    let effects = bench.core.handle_all(bench.now(), events);
    assert_eq!(closed(&effects), [(1, CloseReason::Garbage)]);
    assert!(sent(&effects, 1).is_empty());
}
