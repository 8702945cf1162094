//! Proofs: who proves when, and what is not believed.

use super::*;

#[test]
fn a_client_proves_only_on_granted_requests_and_a_server_at_once() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.hold(1, "10.122.0.1");
    assert!(proofs(&bench.greet(1, HIGHER, true)).is_empty());
    let requests = vec![[9; 32]];
    let effects = bench.frame(1, Frame::Grant { requests });
    assert_eq!(proofs(&effects), [Some([9; 32])]);
    let (_, effects) = held_on(false);
    assert_eq!(proofs(&effects), [None]);
}

#[test]
fn an_identity_is_proven_once_in_a_session_and_again_when_renewed() {
    let (mut bench, _) = held_on(true);
    bench.frame(1, accepted(1));
    assert!(proofs(&bench.hold(1, "10.122.0.9")).is_empty());
    let effects = bench.svid("web", 77, WALL + 2 * DAY);
    assert_eq!(proofs(&effects).len(), 1);
}

#[test]
fn a_clients_proof_must_answer_a_request_that_was_granted_and_only_once() {
    for request in [None, Some([99; 32])] {
        let mut bench = Bench::new();
        bench.live(1, LOWER, false);
        let authenticator = vec![1];
        let effects = bench.frame(
            1,
            Frame::Proof {
                authenticator,
                request,
            },
        );
        assert_eq!(closed(&effects), [(1, CloseReason::RequestNotGranted)]);
    }
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    bench.proven(1, LOWER, "db", 1, true);
    let request = Some([1; 32]);
    let effects = bench.frame(
        1,
        Frame::Proof {
            authenticator: vec![1],
            request,
        },
    );
    assert_eq!(closed(&effects), [(1, CloseReason::RequestNotGranted)]);
}

#[test]
fn a_grant_from_a_client_is_a_violation() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let effects = bench.frame(
        1,
        Frame::Grant {
            requests: vec![[1; 32]],
        },
    );
    assert_eq!(closed(&effects), [(1, CloseReason::OutOfState("grant"))]);
}

#[test]
fn a_flood_of_grants_is_a_violation() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    let requests = vec![[1; 32]; 256];
    bench.frame(
        1,
        Frame::Grant {
            requests: requests.clone(),
        },
    );
    let mut effects = bench.frame(
        1,
        Frame::Grant {
            requests: requests.clone(),
        },
    );
    effects.extend(bench.frame(1, Frame::Grant { requests }));
    assert_eq!(closed(&effects), [(1, CloseReason::TooManyGrants)]);
}

#[test]
fn a_proof_of_another_node_or_expired_or_revoked_is_refused() {
    let refused = |effects: &[Effect]| {
        let refusal = |f: &Frame| matches!(f, Frame::ProofRefused { .. });
        sent(effects, 1).iter().any(refusal)
    };
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.feed(deny(1, &["bad"], &[], &[&[55]]));
    assert!(refused(&bench.proven(1, HIGHER, "db", 1, false)));
    let wrong = [
        ("db", 2, WALL),
        ("bad", 3, WALL + DAY),
        ("db", 55, WALL + DAY),
    ];
    for (name, number, not_after) in wrong {
        let authenticator = vec![number];
        bench.frame(
            1,
            Frame::Proof {
                authenticator,
                request: None,
            },
        );
        assert!(refused(&bench.verdict(1, LOWER, name, number, not_after)));
    }
    assert!(!refused(&bench.proven(1, LOWER, "db", 4, false)));
}

#[test]
fn confirming_what_was_never_said_is_a_violation() {
    let (address, generation) = (ip("10.109.0.1"), u64::MAX);
    let frames = [
        accepted(42),
        Frame::ProofRefused {
            leaf_hash: None,
            reason: "no".into(),
        },
        Frame::Announced {
            address,
            generation,
        },
        Frame::AnnounceRefused {
            address,
            generation,
            reason: "no".into(),
        },
        Frame::Withdrawn {
            address,
            generation,
        },
    ];
    for frame in frames {
        let mut bench = Bench::new();
        bench.live(1, LOWER, false);
        let name = frame.name();
        let effects = bench.frame(1, frame);
        assert_eq!(closed(&effects), [(1, CloseReason::NeverSaid(name))]);
    }
}

#[test]
fn frames_after_a_proof_wait_for_its_verdict_and_only_so_many() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.frame(
        1,
        Frame::Proof {
            authenticator: vec![1],
            request: None,
        },
    );
    assert!(bench.announce(1, "10.97.0.1", 1, 5).is_empty());
    let effects = bench.verdict(1, LOWER, "db", 1, WALL + DAY);
    assert!(has(&effects, |e| matches!(e, Effect::SetRemote { .. })));
    bench.frame(
        1,
        Frame::Proof {
            authenticator: vec![2],
            request: None,
        },
    );
    let mut effects = Vec::new();
    for generation in 0..=1_024 {
        effects.extend(bench.announce(1, "10.97.0.2", 2, generation));
    }
    assert_eq!(closed(&effects), [(1, CloseReason::TooMuchWaiting)]);
}

#[test]
fn a_refused_proof_discards_what_waits_for_it_and_is_tried_again_later() {
    let (mut bench, _) = held_on(false);
    let reason = "clock".into();
    let effects = bench.frame(
        1,
        Frame::ProofRefused {
            leaf_hash: Some(leaf(1)),
            reason,
        },
    );
    assert_eq!(discards(&effects), [Discarded::ProofRefused]);
    bench.hold(1, "10.122.0.1");
    assert_eq!(proofs(&bench.pass(SECOND * 6)).len(), 1);
}

#[test]
fn a_proof_that_is_thrown_away_is_refused_by_name() {
    let mut bench = Bench::paired();
    let effects = bench.feed(deny(1, &["db"], &[], &[]));
    let refused = |f: &Frame| {
        matches!(
            f,
            Frame::ProofRefused {
                leaf_hash: Some(_),
                ..
            }
        )
    };
    assert!(sent(&effects, 1).iter().any(refused));
}

#[test]
fn an_accepted_proof_that_the_peer_throws_away_is_shown_again_and_its_addresses_with_it() {
    let mut bench = Bench::paired();
    let refused = Frame::ProofRefused {
        leaf_hash: Some(leaf(1)),
        reason: "revoked".into(),
    };
    let effects = bench.frame(1, refused.clone());
    assert!(has(&effects, |e| matches!(e, Effect::RemovePair { .. })));
    assert!(bench.pairs().is_empty());
    let effects = bench.pass(SECOND * 6);
    assert_eq!(proofs(&effects).len(), 1);
    let effects = bench.frame(1, accepted(1));
    assert_eq!(bench.pairs().len(), 1);
    let address = ip("10.109.0.1");
    let again = |f: &Frame| matches!(f, Frame::Announce { address: of, .. } if *of == address);
    assert!(sent(&effects, 1).iter().any(again));
    // One that this node does not know any more harms nobody.
    bench.feed(deny(1, &["web"], &[], &[]));
    assert!(closed(&bench.frame(1, refused)).is_empty());
}

#[test]
fn a_peer_that_shows_the_same_proof_again_and_again_loses_its_connection() {
    let mut bench = Bench::new();
    bench.live(1, HIGHER, true);
    let mut shown = 0;
    while closed(&bench.proven(1, HIGHER, "db", 1, false)).is_empty() {
        shown += 1;
        assert!(shown < 100);
    }
    assert!(shown > 64, "an answer may be late: {shown}");
}
