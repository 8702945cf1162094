//! Resolve: who an address is, told to those whom it concerns.

use std::collections::BTreeSet;

use super::*;

#[test]
fn who_an_address_is_is_told_only_where_policy_pairs_the_proven_asker() {
    let ask = |bench: &mut Bench, address: &str, number: u8| {
        let address = ip(address);
        let effects = bench.frame(
            1,
            Frame::Resolve {
                address,
                leaf_hash: leaf(number),
            },
        );
        sent(&effects, 1)
    };
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.feed(policy(false, None));
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    let refusal = |address| Frame::ResolveRefused {
        address: ip(address),
    };
    assert_eq!(
        ask(&mut bench, "10.109.0.1", 1),
        [refusal("10.109.0.1")],
        "policy"
    );
    bench.feed(policy(true, None));
    assert_eq!(
        ask(&mut bench, "10.109.0.1", 2),
        [refusal("10.109.0.1")],
        "not proven"
    );
    assert_eq!(
        ask(&mut bench, "10.109.0.9", 1),
        [refusal("10.109.0.9")],
        "nobody"
    );
    assert!(!ask(&mut bench, "10.109.0.1", 1).contains(&refusal("10.109.0.1")));
}

#[test]
fn who_has_yet_to_get_its_svid_is_announced_with_it_and_not_refused_before() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    // By other labels it is another, whose SVID is being asked for.
    let mut other = identity("web");
    other.labels.insert("label".to_owned(), "new".to_owned());
    bench.feed(Event::EndpointAdded {
        endpoint: EndpointId(1),
        addresses: BTreeSet::from([ip("10.109.0.1")]),
        identity: Some(other),
    });
    let ask = Frame::Resolve {
        address: ip("10.109.0.1"),
        leaf_hash: leaf(1),
    };
    assert_eq!(sent(&bench.frame(1, ask), 1), []);
    let effects = bench.relabel(1, "10.109.0.1", "web", "new", 9);
    let announced =
        |frame: &Frame| matches!(frame, Frame::Announce { leaf_hash, .. } if *leaf_hash == leaf(9));
    let proven =
        |e: &Effect| matches!(e, Effect::SendProof { leaf_hash, .. } if *leaf_hash == leaf(9));
    assert!(
        has(&effects, proven) || sent(&effects, 1).iter().any(announced),
        "{effects:?}"
    );
}

#[test]
fn an_endpoint_that_nobody_has_named_yet_is_not_refused() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    let endpoint = |identity| Event::EndpointAdded {
        endpoint: EndpointId(1),
        addresses: BTreeSet::from([ip("10.109.0.1")]),
        identity,
    };
    bench.feed(endpoint(None));
    let effects = bench.frame(
        1,
        Frame::Resolve {
            address: ip("10.109.0.1"),
            leaf_hash: leaf(1),
        },
    );
    assert!(sent(&effects, 1).is_empty());
    bench.feed(endpoint(Some(identity("web"))));
    let effects = bench.svid("web", 1, WALL + DAY);
    announced_generation(&effects, "10.109.0.1");
}

#[test]
fn a_refusal_is_remembered_for_a_while_and_discards_what_waits() {
    let (mut bench, _) = held_on(false);
    let address = ip("10.122.0.1");
    let effects = bench.frame(1, Frame::ResolveRefused { address });
    assert!(has(&effects, |e| matches!(e, Effect::SetNegative { .. })));
    assert_eq!(discards(&effects), [Discarded::ResolveRefused]);
    let resolve = |e: &Effect| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Resolve { .. },
                ..
            }
        )
    };
    assert!(!has(&bench.hold(1, "10.122.0.1"), resolve));
    bench.pass(SECOND * 6);
    assert!(has(&bench.hold(1, "10.122.0.1"), resolve));
}

#[test]
fn resolves_are_limited_for_an_endpoint_and_a_peer() {
    let (mut bench, _) = held_on(false);
    let mut asked = 0;
    for host in 2..=250 {
        let effects = bench.hold(1, &format!("10.122.0.{host}"));
        asked += sent(&effects, 1).len();
    }
    assert!((100..=130).contains(&asked), "{asked}");
    bench.workload(2, "10.109.0.2", "api");
    let effects = bench.hold(2, "10.122.0.251");
    let asks = |frame: &Frame| matches!(frame, Frame::Resolve { .. });
    assert!(sent(&effects, 1).iter().any(asks), "another endpoint may");
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    let mut answered = 0;
    for _ in 0..4_000 {
        let address = ip("10.109.0.9");
        let effects = bench.frame(
            1,
            Frame::Resolve {
                address,
                leaf_hash: leaf(1),
            },
        );
        answered += sent(&effects, 1).len();
    }
    assert!((2_000..=2_100).contains(&answered), "{answered}");
}

#[test]
fn an_unknown_source_is_asked_for_once() {
    let mut bench = Bench::paired();
    let unknown = Event::UnknownSource {
        peer: bench.peer(HIGHER),
        address: ip("10.122.0.5"),
        endpoint: EndpointId(1),
    };
    assert_eq!(sent(&bench.feed(unknown.clone()), 1).len(), 1);
    assert!(sent(&bench.feed(unknown), 1).is_empty());
}
