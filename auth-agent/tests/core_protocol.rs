//! The rules of proofs, announcements, pairs, holds, revocation and restart, one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod core_bench;

use core_bench::*;
use handfast_agent::core::{
    Alarm, AnnouncedState, CloseReason, Config, ConnId, Discarded, Effect, EndpointId, Event,
    Identity, IdentityNumber, PeerNumber, SessionState,
};
use handfast_agent::wire::Frame;

fn proofs(effects: &[Effect]) -> Vec<Option<[u8; 32]>> {
    let proofs = effects.iter().filter_map(|effect| match effect {
        Effect::SendProof { request, .. } => Some(*request),
        _ => None,
    });
    proofs.collect()
}

fn discards(effects: &[Effect]) -> Vec<Discarded> {
    let discards = effects.iter().filter_map(|effect| match effect {
        Effect::Discard { reason, .. } => Some(*reason),
        _ => None,
    });
    discards.collect()
}

fn refused_announcement(effects: &[Effect]) -> bool {
    has(effects, |e| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::AnnounceRefused { .. },
                ..
            }
        )
    }) && !has(effects, |e| matches!(e, Effect::SetRemote { .. }))
}

fn released(effects: &[Effect]) -> bool {
    let release = |e: &Effect| matches!(e, Effect::Release { .. });
    // Nothing may come after a release but releases.
    let first = effects.iter().position(release);
    first.is_some_and(|first| effects[first..].iter().all(release))
}

/// A session with the higher node, endpoint 1 held for 10.122.0.1: what has been sent.
fn held_on(dialled: bool) -> (Bench, Vec<Effect>) {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    bench.hold(1, "10.122.0.1");
    let effects = bench.live(1, HIGHER, dialled);
    (bench, effects)
}

// Proofs.

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
            leaf_hash: Some(leaf(42)),
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

// Announcements.

#[test]
fn an_announcement_is_believed_only_with_a_live_proof_and_in_signed_prefixes() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    assert!(
        refused_announcement(&bench.announce(1, "10.97.0.1", 2, 5)),
        "no such proof"
    );
    for foreign in ["10.122.0.1", "10.109.0.1", "8.8.8.8"] {
        assert!(
            refused_announcement(&bench.announce(1, foreign, 1, 5)),
            "{foreign}"
        );
    }
    let other_boot = Frame::Announce {
        address: ip("10.97.0.1"),
        leaf_hash: leaf(1),
        generation: 5,
        boot_id: boot(9),
    };
    assert!(refused_announcement(&bench.frame(1, other_boot)));
    let effects = bench.announce(1, "10.97.0.1", 1, 5);
    let installed = place(&effects, |e| matches!(e, Effect::SetRemote { .. }));
    let said = |e: &Effect| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Announced { .. },
                ..
            }
        )
    };
    assert!(
        installed < place(&effects, said),
        "confirmed only once it is installed"
    );
}

#[test]
fn a_proof_does_not_count_in_another_session() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    bench.live(2, HIGHER, true);
    assert!(refused_announcement(&bench.announce(2, "10.122.0.1", 1, 5)));
    bench.feed(Event::Disconnected { conn: ConnId(1) });
    bench.live(3, LOWER, true);
    assert!(refused_announcement(&bench.announce(3, "10.97.0.1", 1, 5)));
}

#[test]
fn generations_only_rise_across_sessions_and_withdrawals() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    bench.announce(1, "10.97.0.1", 1, 5);
    assert!(refused_announcement(&bench.announce(1, "10.97.0.1", 1, 4)));
    let (address, generation) = (ip("10.97.0.1"), 7);
    let effects = bench.frame(
        1,
        Frame::Withdraw {
            address,
            generation,
        },
    );
    let removed = place(&effects, |e| matches!(e, Effect::RemoveRemote { .. }));
    let said = |e: &Effect| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Withdrawn { .. },
                ..
            }
        )
    };
    assert!(removed < place(&effects, said));
    bench.feed(Event::Disconnected { conn: ConnId(1) });
    bench.live(2, LOWER, true);
    bench.proven(2, LOWER, "db", 2, false);
    assert!(refused_announcement(&bench.announce(2, "10.97.0.1", 2, 7)));
    assert!(!refused_announcement(&bench.announce(2, "10.97.0.1", 2, 8)));
}

#[test]
fn the_kernel_names_the_user_of_an_address_before_the_peer_can_believe_it() {
    let (_, effects) = held_on(false);
    assert_eq!(
        effects
            .iter()
            .filter(|e| matches!(e, Effect::SendProof { .. }))
            .count(),
        1
    );
    let set = place(
        &effects,
        |e| matches!(e, Effect::SetAnnounced { announced, .. } if announced.state == AnnouncedState::Sent),
    );
    let said = place(&effects, |e| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Announce { .. },
                ..
            }
        )
    });
    assert!(set < said);
}

#[test]
fn an_address_taken_back_rests_until_confirmed_and_five_seconds_more() {
    let mut bench = Bench::paired();
    let peer = bench.peer(HIGHER);
    let endpoint = EndpointId(1);
    let effects = bench.feed(Event::EndpointRemoved { endpoint });
    let shut = place(&effects, |e| {
        matches!(e, Effect::SetAnnounced { announced, .. }
            if announced.state == AnnouncedState::Withdrawing && announced.endpoint == endpoint)
    });
    let said = |e: &Effect| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Withdraw { .. },
                ..
            }
        )
    };
    assert!(shut < place(&effects, said));
    let generation = withdrawn_generation(&effects, "10.109.0.1");

    bench.workload(2, "10.109.0.1", "other");
    let address = ip("10.109.0.1");
    let announces = |effects: &[Effect]| {
        has(effects, |e| {
            matches!(
                e,
                Effect::Send {
                    frame: Frame::Announce { .. },
                    ..
                }
            )
        })
    };
    bench.hold(2, "10.122.0.1");
    assert!(
        !announces(&bench.pass_alive(1, SECOND * 20)),
        "not confirmed"
    );
    let view = bench.core.view();
    let of_peer = view.peers.iter().find(|p| p.number == peer).unwrap();
    assert_eq!(
        of_peer.announced,
        [(address, endpoint, AnnouncedState::Withdrawing)]
    );

    let effects = bench.frame(
        1,
        Frame::Withdrawn {
            address,
            generation,
        },
    );
    assert!(has(&effects, |e| matches!(
        e,
        Effect::RemoveAnnounced { .. }
    )));
    assert!(
        !announces(&effects) && !announces(&bench.pass(SECOND * 4)),
        "rests"
    );
    assert!(announces(&bench.pass(SECOND * 2)));
}

#[test]
fn a_lost_connection_does_not_free_an_address_but_the_sessions_end_does() {
    let mut bench = Bench::paired();
    let endpoint = EndpointId(1);
    bench.feed(Event::EndpointRemoved { endpoint });
    bench.feed(Event::Disconnected { conn: ConnId(1) });
    let effects = bench.pass(SECOND * 3_600);
    assert!(!has(&effects, |e| matches!(
        e,
        Effect::RemoveAnnounced { .. } | Effect::SweepEpoch { .. }
    )));
    let effects = bench.live(2, HIGHER, false);
    withdrawn_generation(&effects, "10.109.0.1");
    bench.feed(Event::Disconnected { conn: ConnId(2) });
    let effects = bench.pass(SECOND * 4 * 3_600);
    let cut = place(
        &effects,
        |e| matches!(e, Effect::SetSession { session, .. } if session.state == SessionState::Cut),
    );
    assert!(cut < place(&effects, |e| matches!(e, Effect::SweepEpoch { .. })));
}

#[test]
fn an_address_in_use_changes_nothing() {
    let mut bench = Bench::paired();
    let before = bench.core.snapshot();
    let effects = bench.feed(Event::EndpointAdded {
        endpoint: EndpointId(2),
        addresses: [ip("10.109.0.1")].into(),
        identity: Some(identity("web")),
    });
    assert!(matches!(
        effects[..],
        [Effect::Alarm(Alarm::AddressInUse { .. })]
    ));
    assert_eq!(before, bench.core.snapshot());
}

#[test]
fn a_live_peers_addresses_go_to_nobody_whose_certificate_is_not_newer() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    bench.proven(1, LOWER, "db", 1, false);
    bench.announce(1, "10.97.0.1", 1, 5);
    let thief = handfast_agent::core::PeerNode {
        prefixes: vec![prefix(LOWER)],
        ..peer_node(HIGHER)
    };
    let effects = bench.connected(2, thief, true);
    assert_eq!(closed(&effects), [(2, CloseReason::PrefixConflict)]);
}

// Resolve.

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
    let mut bench = Bench::new();
    bench.live(1, LOWER, true);
    let mut answered = 0;
    for _ in 0..1_000 {
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
    assert!(answered <= 260, "{answered}");
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

// Pairs.

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

// Holds.

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
fn an_endpoint_and_a_peer_may_hold_only_their_share() {
    let mut config = Config::new(1);
    config.limits.holds = 80;
    let mut bench = Bench::with(config);
    bench.workload(1, "10.109.0.1", "web");
    bench.workload(2, "10.109.0.2", "api");
    for host in 1..=10 {
        let effects = bench.hold(1, &format!("10.122.0.{host}"));
        assert!(discards(&effects).is_empty());
    }
    let over = [Discarded::TooMany];
    assert_eq!(discards(&bench.hold(1, "10.97.0.1")), over, "the endpoint");
    assert_eq!(discards(&bench.hold(2, "10.122.0.99")), over, "the peer");
    assert!(discards(&bench.hold(2, "10.97.0.1")).is_empty());
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

// Cut.

#[test]
fn revoking_an_identity_is_one_write_first_and_lifting_it_proves_anew() {
    for name in ["web", "db"] {
        let mut bench = Bench::paired();
        let effects = bench.feed(deny(1, &[name], &[], &[]));
        let cut = place(&effects, |e| {
            matches!(e, Effect::SetIdentity { revoked: true, .. })
        });
        assert!(
            cut < place(&effects, |e| matches!(e, Effect::RemovePair { .. })),
            "{name}"
        );
        let others = effects[..cut].iter().all(|e| matches!(e, Effect::Persist));
        assert!(others, "nothing comes before the cut");
        assert!(bench.pairs().is_empty());
        assert!(!released(&bench.hold(1, "10.122.0.1")));
        let effects = bench.feed(deny(2, &[], &[], &[]));
        assert!(has(&effects, |e| matches!(
            e,
            Effect::SetIdentity { revoked: false, .. }
        )));
        if name == "web" {
            assert_eq!(proofs(&effects).len(), 1);
        }
    }
}

#[test]
fn revoking_a_node_cuts_first_and_keeps_it_out() {
    for event in [deny(1, &[], &[HIGHER], &[]), deny(1, &[], &[], &[b"z"])] {
        let mut bench = Bench::paired();
        let effects = bench.feed(event);
        let cut = place(
            &effects,
            |e| matches!(e, Effect::SetSession { session, .. } if session.state == SessionState::Cut),
        );
        assert!(cut < place(&effects, |e| matches!(e, Effect::RemoveTunnel { .. })));
        assert!(closed(&effects).contains(&(1, CloseReason::Revoked)));
        let effects = bench.connected(2, peer_node(HIGHER), false);
        assert_eq!(closed(&effects), [(2, CloseReason::Revoked)]);
    }
}

#[test]
fn revoking_the_certificate_of_a_proof_ends_its_pairs() {
    for serial in [&[101][..], &[1][..]] {
        let mut bench = Bench::paired();
        let effects = bench.feed(deny(1, &[], &[], &[serial]));
        assert!(has(&effects, |e| matches!(e, Effect::RemovePair { .. })));
        assert!(bench.pairs().is_empty());
    }
}

#[test]
fn an_older_deny_list_is_not_taken_and_a_newer_one_is_passed_on() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let effects = bench.feed(deny(5, &["web"], &[], &[]));
    assert_eq!(sent(&effects, 1), [Frame::DenyList { bytes: vec![5] }]);
    let effects = bench.feed(deny(4, &[], &[], &[]));
    assert!(matches!(
        effects[..],
        [Effect::Alarm(Alarm::DenyListOlder { .. })]
    ));
    let effects = bench.live(2, HIGHER, false);
    let passed_on = sent(&effects, 2);
    assert!(
        passed_on.contains(&Frame::DenyList { bytes: vec![5] }),
        "to who has an older one"
    );
    let effects = bench.frame(2, Frame::DenyList { bytes: vec![9] });
    assert!(matches!(effects[..], [Effect::VerifyDenyList { .. }]));
}

#[test]
fn a_flood_of_deny_lists_is_a_violation() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let mut effects = Vec::new();
    for _ in 0..10 {
        effects.extend(bench.frame(1, Frame::DenyList { bytes: vec![9] }));
    }
    assert_eq!(closed(&effects), [(1, CloseReason::TooFast("deny-list"))]);
}

// Restart.

fn known(bench: &Bench, of: &Identity) -> Option<IdentityNumber> {
    let view = bench.core.view();
    let found = view
        .identities
        .iter()
        .find(|(_, known)| *known.identity == *of);
    found.map(|(number, _)| *number)
}

#[test]
fn numbers_epochs_and_generations_go_on_after_a_restart() {
    let old = Bench::paired();
    let stored = old.stored.clone().unwrap();
    let mut new = Bench::blank(Some(stored), 2);
    new.at = old.at + SECOND;
    let effects = new.workload(1, "10.109.0.1", "web");
    assert!(!has(&effects, |e| matches!(e, Effect::ClearTables)));
    for name in ["web", "db"] {
        assert_eq!(known(&new, &identity(name)), known(&old, &identity(name)));
    }
    assert_eq!(new.peer(HIGHER), old.peer(HIGHER));
    new.feed(policy(true, None));
    new.feed(Event::Settled);
    let effects = new.live(1, HIGHER, false);
    let entry = session(&effects, new.peer(HIGHER)).unwrap();
    assert_eq!(
        (entry.oldest, entry.current, entry.state),
        (1, 2, SessionState::Ready)
    );
    let before = old.core.snapshot().generation;
    assert!(announced_generation(&effects, "10.109.0.1") > before);
    assert!(
        !has(&effects, |e| matches!(e, Effect::SetAnnounced { .. })),
        "the old entry serves"
    );
}

#[test]
fn nobody_takes_over_before_the_restarted_agent_has_settled_and_has_policy() {
    let old = Bench::paired();
    for missing in ["endpoints", "policy", "svid"] {
        let mut new = Bench::blank(old.stored.clone(), 2);
        new.at = old.at + SECOND;
        new.feed(Event::EndpointAdded {
            endpoint: EndpointId(1),
            addresses: [ip("10.109.0.1")].into(),
            identity: Some(identity("web")),
        });
        if missing != "svid" {
            new.svid("web", 1, WALL + DAY);
        }
        if missing != "endpoints" {
            new.feed(Event::Settled);
        }
        if missing != "policy" {
            new.feed(policy(true, None));
        }
        let mut effects = new.live(1, HIGHER, false);
        effects.extend(new.frame(1, Frame::Ready));
        assert!(!sent(&effects, 1).contains(&Frame::Ready), "{missing}");
        assert!(
            !has(&effects, |e| matches!(e, Effect::SweepEpoch { .. })),
            "{missing}"
        );
    }
}

#[test]
fn what_vanished_while_the_agent_was_down_is_withdrawn() {
    let old = Bench::paired();
    let mut new = Bench::blank(old.stored.clone(), 2);
    new.at = old.at + SECOND;
    let effects = new.feed(Event::Settled);
    assert!(has(
        &effects,
        |e| matches!(e, Effect::SetAnnounced { announced, .. }
        if announced.state == AnnouncedState::Withdrawing && announced.endpoint == EndpointId(1))
    ));
    withdrawn_generation(&new.live(1, HIGHER, false), "10.109.0.1");
}

#[test]
fn a_snapshot_of_another_boot_is_void() {
    let mut stored = Bench::paired().stored.unwrap();
    stored.boot_id = boot(2);
    let mut bench = Bench::blank(Some(stored), 1);
    let effects = bench.feed(Event::Settled);
    assert_eq!(place(&effects, |e| matches!(e, Effect::ClearTables)), 0);
    assert!(bench.core.view().peers.is_empty());
}

#[test]
fn a_snapshot_survives_being_written_down() {
    let stored = Bench::paired().stored.unwrap();
    let text = serde_json::to_string(&stored).unwrap();
    assert_eq!(stored, serde_json::from_str(&text).unwrap());
}

#[test]
fn generations_rise_even_without_a_snapshot() {
    let (_, effects) = held_on(false);
    let before = announced_generation(&effects, "10.109.0.1");
    let mut new = Bench::new();
    new.at += SECOND;
    new.workload(1, "10.109.0.1", "web");
    new.hold(1, "10.122.0.1");
    let effects = new.live(1, HIGHER, false);
    assert!(announced_generation(&effects, "10.109.0.1") > before);
}

#[test]
fn an_identity_number_is_not_given_twice() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    let first = known(&bench, &identity("web")).unwrap();
    bench.feed(Event::EndpointRemoved {
        endpoint: EndpointId(1),
    });
    bench.feed(Event::IdentityGone(identity("web")));
    let effects = bench.pass(SECOND * 30);
    assert!(has(&effects, |e| *e
        == Effect::IdentityForgotten { number: first }));
    bench.workload(2, "10.109.0.1", "web");
    assert!(known(&bench, &identity("web")).unwrap() > first);
}
