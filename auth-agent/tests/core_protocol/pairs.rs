//! Pairs: recorded when both proofs stand, and no longer than they do.

use super::*;

#[test]
fn a_pair_is_recorded_only_when_both_proofs_stand() {
    let pair =
        |e: &Effect| matches!(e, Effect::SetPair { pair, .. } if pair.peer != PeerNumber::LOCAL);
    let (mut bench, _) = held_on(true);
    assert!(
        !has(&bench.proven(1, HIGHER, "db", 101, false), pair),
        "ours is not accepted"
    );
    assert!(has(&bench.frame(1, accepted(1)), pair));
    let (mut bench, _) = held_on(true);
    assert!(
        !has(&bench.frame(1, accepted(1)), pair),
        "theirs is not verified"
    );
    assert!(has(&bench.proven(1, HIGHER, "db", 101, false), pair));
}

#[test]
fn a_pair_ends_with_the_earlier_proof_or_the_maximum_age() {
    let expires = |bench: &mut Bench, not_after: u64| {
        bench.frame(1, accepted(1));
        bench.frame(
            1,
            Frame::Proof {
                authenticator: vec![9],
                request: None,
            },
        );
        bench.verdict(1, HIGHER, "db", 9, not_after);
        bench.pairs()[0].expires
    };
    let (mut bench, _) = held_on(true);
    assert_eq!(expires(&mut bench, WALL + 100), WALL + 100);
    let (mut bench, _) = held_on(true);
    assert_eq!(expires(&mut bench, WALL + 3 * DAY), WALL + DAY, "ours");
    let (mut bench, _) = held_on(true);
    bench.feed(policy(true, Some(SECOND * 60)));
    assert_eq!(expires(&mut bench, WALL + DAY), WALL + 60);
    assert!(
        dials(&bench.pass_alive(1, SECOND * 35)) >= 1,
        "proven anew before it ends"
    );
}

#[test]
fn pairs_that_policy_no_longer_wants_go() {
    let mut bench = Bench::paired();
    assert_eq!(bench.pairs().len(), 1);
    let effects = bench.feed(policy(false, None));
    assert!(has(&effects, |e| matches!(e, Effect::RemovePair { .. })));
    assert!(bench.pairs().is_empty());
    bench.feed(policy(true, None));
    assert_eq!(bench.pairs().len(), 1);
}

#[test]
fn what_policy_implies_is_proven_before_traffic() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.live(1, LOWER, false);
    let effects = bench.proven(1, LOWER, "db", 1, true);
    assert_eq!(proofs(&effects), [None], "the answer to its proof is ours");
    announced_generation(&effects, "10.109.0.1");
    let effects = bench.workload(2, "10.109.0.2", "api");
    assert_eq!(
        proofs(&effects),
        [None],
        "and so with an endpoint that comes later"
    );
}

#[test]
fn two_identities_of_this_node_are_a_pair_as_soon_as_both_svids_are_here() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.feed(Event::EndpointAdded {
        endpoint: EndpointId(2),
        addresses: [ip("10.109.0.2")].into(),
        identity: Some(identity("db")),
    });
    assert!(!released(&bench.hold(1, "10.109.0.2")));
    let effects = bench.svid("db", 2, WALL + DAY);
    assert!(has(&effects, |e| matches!(e, Effect::SetPair { pair, .. }
        if pair.peer == PeerNumber::LOCAL && pair.local != pair.remote)));
    assert!(released(&effects));
}

#[test]
fn flushed_pairs_are_proven_again_in_a_successor() {
    let mut bench = Bench::paired();
    let effects = bench.feed(Event::FlushPairs);
    assert!(has(&effects, |e| matches!(e, Effect::RemovePair { .. })));
    assert!(bench.pairs().is_empty());
    bench.frame(1, Frame::Ping);
    assert!(dials(&effects) + dials(&bench.pass(SECOND)) >= 1);
}
