//! Revocation: one write first, everything else after it.

use handfast_agent::core::DenyList;

use super::*;

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
    assert_eq!(
        sent(&effects, 1),
        [Frame::DenyList {
            bytes: vec![5],
            more: false
        }]
    );
    let effects = bench.feed(deny(4, &[], &[], &[]));
    assert!(matches!(
        effects[..],
        [Effect::Alarm(Alarm::DenyListOlder { .. })]
    ));
    let effects = bench.live(2, HIGHER, false);
    let passed_on = sent(&effects, 2);
    assert!(
        passed_on.contains(&Frame::DenyList {
            bytes: vec![5],
            more: false
        }),
        "to who has an older one"
    );
    let effects = bench.frame(
        2,
        Frame::DenyList {
            bytes: vec![9],
            more: false,
        },
    );
    assert!(matches!(effects[..], [Effect::VerifyDenyList { .. }]));
}

#[test]
fn a_flood_of_deny_lists_is_a_violation() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let mut effects = Vec::new();
    for _ in 0..10 {
        effects.extend(bench.frame(
            1,
            Frame::DenyList {
                bytes: vec![9],
                more: false,
            },
        ));
    }
    assert_eq!(closed(&effects), [(1, CloseReason::TooFast("deny-list"))]);
}

#[test]
fn a_deny_list_larger_than_a_frame_is_passed_on_in_pieces_and_judged_whole() {
    let mut bench = Bench::new();
    bench.live(1, HIGHER, false);
    let signed: Vec<u8> = (0..150_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let list = DenyList {
        number: 3,
        signed: signed.clone(),
        ..DenyList::default()
    };
    let effects = bench.feed(Event::DenyList(list.into()));
    let pieces = sent(&effects, 1);
    assert_eq!(pieces.len(), 3);
    // What comes in pieces from a peer is one list again.
    bench.live(2, LOWER, false);
    let mut judged = Vec::new();
    for piece in pieces {
        let effects = bench.frame(2, piece.clone());
        judged.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::VerifyDenyList { signed, .. } => Some(signed),
            _ => None,
        }));
    }
    assert_eq!(judged, [signed]);
}

#[test]
fn a_deny_list_without_end_is_a_violation() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let piece = Frame::DenyList {
        bytes: vec![1; 60 * 1024],
        more: true,
    };
    let ended = (0..80).find(|_| !closed(&bench.frame(1, piece.clone())).is_empty());
    assert_eq!(ended, Some(68), "four mebibytes and no more");
}

#[test]
fn what_the_kernel_refused_is_not_confirmed_and_ends_the_connection() {
    let mut bench = Bench::paired();
    let peer = bench.peer(HIGHER);
    let effects = bench.frame(
        1,
        Frame::Withdraw {
            address: ip("10.122.0.1"),
            generation: u64::MAX,
        },
    );
    let removal = place(&effects, |e| matches!(e, Effect::RemoveRemote { .. }));
    let confirmation = place(&effects, |e| e.confirms() == Some(ConnId(1)));
    assert!(removal < confirmation);
    assert!(effects[removal].refused().is_some());
    let effects = bench.feed(Event::NotWritten { peer: Some(peer) });
    assert_eq!(closed(&effects), [(1, CloseReason::NotWritten)]);
}

#[test]
fn lifting_is_told_to_peers_before_the_proof_that_it_makes_good() {
    let mut bench = Bench::paired();
    bench.feed(deny(1, &["web"], &[], &[]));
    bench.frame(
        1,
        Frame::ProofRefused {
            leaf_hash: Some(leaf(1)),
            reason: "revoked".into(),
        },
    );
    let effects = bench.feed(deny(2, &[], &[], &[]));
    let told = place(&effects, |e| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::DenyList { .. },
                ..
            }
        )
    });
    assert!(told < place(&effects, |e| matches!(e, Effect::SendProof { .. })));
}
