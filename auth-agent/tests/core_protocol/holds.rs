//! Holds: released last, dropped in time, never more than a share.

use handfast_agent::core::{Direction, HoldKey};

use super::*;

#[test]
fn a_held_packet_is_released_last_and_only_when_the_gate_can_decide() {
    let (mut bench, effects) = held_on(true);
    assert!(!released(&effects));
    let generation = announced_generation(&effects, "10.109.0.1");
    let steps = [
        bench.frame(1, accepted(1)),
        bench.frame(1, confirmed("10.109.0.1", generation)),
        bench.proven(1, HIGHER, "db", 101, false),
    ];
    assert!(steps.iter().all(|step| !released(step)));
    assert!(released(&bench.announce(1, "10.122.0.1", 101, 5)));
    assert!(
        released(&bench.hold(1, "10.122.0.1")),
        "everything stands already"
    );
}

#[test]
fn a_hold_without_a_decision_ends_after_three_seconds() {
    let (mut bench, _) = held_on(true);
    assert!(discards(&bench.pass(SECOND * 2)).is_empty());
    assert_eq!(discards(&bench.pass(SECOND * 2)), [Discarded::Timeout]);
}

#[test]
fn an_endpoint_and_a_peer_may_hold_only_their_share_and_one_endpoint_never_that_of_a_peer() {
    let mut config = Config::new(1);
    config.limits.holds = 80;
    let mut bench = Bench::with(config);
    for (endpoint, name) in [(1, "web"), (2, "api"), (3, "db")] {
        bench.workload(endpoint, &format!("10.109.0.{endpoint}"), name);
    }
    for host in 1..=5 {
        for endpoint in [1, 2] {
            let effects = bench.hold(endpoint, &format!("10.122.0.{host}"));
            assert!(discards(&effects).is_empty(), "{endpoint} {host}");
        }
        let over = [Discarded::TooMany];
        if host == 5 {
            assert_eq!(discards(&bench.hold(1, "10.97.0.1")), over, "the endpoint");
            assert_eq!(discards(&bench.hold(3, "10.122.0.99")), over, "the peer");
        }
    }
    assert!(discards(&bench.hold(3, "10.97.0.1")).is_empty());
    bench.pass(SECOND * 4);
    assert!(
        discards(&bench.hold(1, "10.97.0.1")).is_empty(),
        "free again"
    );
}

#[test]
fn what_is_held_does_not_outlive_its_endpoint_or_the_remotes_identity() {
    let (mut bench, _) = held_on(true);
    let effects = bench.feed(Event::EndpointRemoved {
        endpoint: EndpointId(1),
    });
    assert_eq!(discards(&effects), [Discarded::EndpointGone]);
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.live(1, HIGHER, true);
    bench.proven(1, HIGHER, "db", 101, false);
    bench.announce(1, "10.122.0.1", 101, 5);
    assert!(!released(&bench.hold(1, "10.122.0.1")));
    bench.proven(1, HIGHER, "cache", 102, false);
    let effects = bench.announce(1, "10.122.0.1", 102, 6);
    let discard = place(&effects, |e| {
        matches!(
            e,
            Effect::Discard {
                reason: Discarded::RemoteChanged,
                ..
            }
        )
    });
    assert!(discard < place(&effects, |e| matches!(e, Effect::SetRemote { .. })));
}

#[test]
fn an_endpoint_without_identity_or_an_address_of_nobody_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.feed(Event::EndpointAdded {
        endpoint: EndpointId(1),
        addresses: [ip("10.109.0.1")].into(),
        identity: None,
    });
    assert_eq!(
        discards(&bench.hold(1, "10.122.0.1")),
        [Discarded::NoIdentity]
    );
    bench.workload(2, "10.109.0.2", "web");
    assert_eq!(discards(&bench.hold(2, "203.0.113.1")), [Discarded::NoPeer]);
    assert_eq!(
        discards(&bench.hold(7, "10.122.0.1")),
        [Discarded::EndpointGone]
    );
}

#[test]
fn what_comes_in_for_an_address_that_was_not_announced_waits_for_nobody() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    let key = HoldKey {
        endpoint: EndpointId(1),
        direction: Direction::Ingress,
        remote: ip("10.122.0.1"),
    };
    let effects = bench.feed(Event::Held(key));
    assert_eq!(discards(&effects), [Discarded::NotAnnounced]);
    // Once the peer can have meant this endpoint, it waits like any other.
    let mut bench = Bench::paired();
    assert!(discards(&bench.feed(Event::Held(key))).is_empty());
}

#[test]
fn what_came_from_an_addresses_former_holder_is_never_its_next_holders() {
    let mut bench = Bench::paired();
    bench.frame(
        1,
        Frame::Withdraw {
            address: ip("10.122.0.1"),
            generation: 6,
        },
    );
    // It has waited in the peer's tunnel, for longer than anything is on its way otherwise.
    bench.pass(SECOND * 2);
    let key = HoldKey {
        direction: Direction::Ingress,
        ..egress(1, "10.122.0.1")
    };
    assert!(discards(&bench.feed(Event::Held(key))).is_empty());
    bench.proven(1, HIGHER, "next", 102, false);
    let effects = bench.announce(1, "10.122.0.1", 102, 8);
    assert!(!released(&effects));
    assert_eq!(discards(&effects).len(), 1);
}

#[test]
fn what_was_taken_before_an_address_was_forgotten_is_not_for_its_next_holder() {
    for late in [false, true] {
        let mut bench = Bench::paired();
        bench.frame(
            1,
            Frame::Withdraw {
                address: ip("10.122.0.1"),
                generation: 6,
            },
        );
        // The gate took it when the address was somebody's still; the core hears of it now.
        if late {
            bench.pass(SECOND * 2);
        }
        assert!(discards(&bench.hold(1, "10.122.0.1")).is_empty());
        bench.proven(1, HIGHER, "next", 102, false);
        let effects = bench.announce(1, "10.122.0.1", 102, 8);
        assert_eq!(released(&effects), late, "{late}");
        assert_eq!(discards(&effects).is_empty(), late, "{late}");
    }
}
