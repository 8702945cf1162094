//! Announcements: an address is believed in its session, and never two identities at once.

use super::*;

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

/// What is announced at endpoint 1's address once its withdrawal is confirmed.
fn announced_after(bench: &mut Bench, effects: &[Effect], leaf_number: u8) -> bool {
    let (address, generation) = (
        ip("10.109.0.1"),
        withdrawn_generation(effects, "10.109.0.1"),
    );
    let requests = (100..110).map(|number| [number; 32]).collect();
    bench.frame(1, Frame::Grant { requests });
    bench.frame(1, accepted(leaf_number));
    let mut effects = bench.frame(
        1,
        Frame::Withdrawn {
            address,
            generation,
        },
    );
    effects.extend(bench.hold(1, "10.122.0.1"));
    has(&effects, |e| {
        matches!(
            e,
            Effect::Send {
                frame: Frame::Announce { .. },
                ..
            }
        )
    })
}

#[test]
fn the_same_workload_by_other_labels_needs_no_rest() {
    let mut bench = Bench::paired();
    let effects = bench.relabel(1, "10.109.0.1", "web", "one", 50);
    assert!(announced_after(&mut bench, &effects, 50));
}

#[test]
fn the_same_workload_by_another_name_rests() {
    let mut bench = Bench::paired();
    let effects = bench.relabel(1, "10.109.0.1", "other", "one", 50);
    assert!(!announced_after(&mut bench, &effects, 50));
}

#[test]
fn another_workload_of_the_same_name_by_other_labels_rests() {
    let mut bench = Bench::paired();
    let endpoint = EndpointId(1);
    let mut effects = bench.feed(Event::EndpointRemoved { endpoint });
    effects.extend(bench.relabel(2, "10.109.0.1", "web", "one", 50));
    assert!(!announced_after(&mut bench, &effects, 50));
}
