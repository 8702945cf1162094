//! The rules of sessions, one by one: PROTOCOL.md, "Sessions" and "Tunnel keys".
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod core_bench;

use core_bench::*;
use handfast_agent::core::{
    Alarm, CloseReason, ConnId, Effect, Event, PeerNode, PeerNumber, SessionState,
};
use handfast_agent::wire::{Frame, Hello, OLDEST_VERSION, TunnelKind, VERSION};

#[test]
fn no_session_is_opened_before_something_asks_for_one() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    assert_eq!(dials(&bench.pass(SECOND * 100)), 0);
    assert_eq!(dials(&bench.hold(1, "10.122.0.1")), 1);
    assert_eq!(dials(&bench.hold(1, "10.122.0.2")), 0, "one is under way");
}

#[test]
fn the_higher_node_greets_at_once_and_the_lower_when_it_has_decided() {
    let mut bench = Bench::new();
    let effects = bench.connected(1, peer_node(LOWER), false);
    assert!(matches!(sent(&effects, 1)[..], [Frame::Hello(_)]));
    let effects = bench.connected(2, peer_node(HIGHER), false);
    assert!(sent(&effects, 2).is_empty());
    let effects = bench.frame(2, hello(HIGHER, 1));
    assert!(matches!(sent(&effects, 2)[0], Frame::Hello(_)));
}

#[test]
fn a_session_is_live_only_after_hello_both_ways() {
    let mut bench = Bench::new();
    let effects = bench.connected(1, peer_node(LOWER), true);
    assert!(session(&effects, bench.peer(LOWER)).is_none());
    let effects = bench.frame(1, hello(LOWER, 1));
    let entry = session(&effects, bench.peer(LOWER)).unwrap();
    assert_eq!((entry.oldest, entry.current), (1, 1));
    assert_eq!(entry.state, SessionState::Pending);
}

#[test]
fn of_two_dials_at_once_the_lower_nodes_goes_on() {
    let mut bench = Bench::new();
    bench.connected(1, peer_node(HIGHER), false);
    let effects = bench.connected(2, peer_node(HIGHER), true);
    assert_eq!(closed(&effects), [(1, CloseReason::Duplicate)]);
    // The higher node leaves the choice to the other.
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), true);
    assert!(closed(&bench.connected(2, peer_node(LOWER), false)).is_empty());
}

#[test]
fn a_dial_that_is_swallowed_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.workload(1, "10.109.0.1", "web");
    assert_eq!(dials(&bench.hold(1, "10.122.0.1")), 1, "ours is under way");
    let effects = bench.greet(1, HIGHER, false);
    assert!(
        session(&effects, bench.peer(HIGHER)).is_some(),
        "theirs is taken"
    );
}

#[test]
fn a_live_session_is_not_killed_by_a_dial_that_crossed_it() {
    let mut bench = Bench::new();
    bench.greet(1, HIGHER, true);
    let effects = bench.greet(2, HIGHER, false);
    assert!(closed(&effects).is_empty(), "the peer has not chosen yet");
    assert!(sent(&effects, 2).is_empty());
    let effects = bench.frame(1, Frame::Ping);
    assert_eq!(closed(&effects), [(2, CloseReason::Duplicate)]);
}

#[test]
fn a_dial_that_crossed_takes_over_if_the_first_connection_is_lost() {
    let mut bench = Bench::new();
    bench.greet(1, HIGHER, true);
    bench.greet(2, HIGHER, false);
    let effects = bench.feed(Event::Disconnected { conn: ConnId(1) });
    assert!(matches!(sent(&effects, 2)[0], Frame::Hello(_)));
    assert_eq!(session(&effects, bench.peer(HIGHER)).unwrap().current, 2);
}

#[test]
fn a_hello_that_names_another_node_is_a_violation() {
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), false);
    let effects = bench.frame(1, hello(HIGHER, 1));
    assert_eq!(closed(&effects), [(1, CloseReason::NodeIdMismatch)]);
    assert!(has(&effects, |e| matches!(
        e,
        Effect::Alarm(Alarm::Violation { .. })
    )));
    let violations: Vec<u64> = bench
        .core
        .view()
        .peers
        .iter()
        .map(|p| p.violations)
        .collect();
    assert_eq!(violations.iter().sum::<u64>(), 1);
}

#[test]
fn a_second_hello_is_a_violation() {
    let mut bench = Bench::new();
    bench.greet(1, LOWER, false);
    let effects = bench.frame(1, hello(LOWER, 1));
    assert_eq!(closed(&effects), [(1, CloseReason::OutOfState("hello"))]);
}

#[test]
fn frames_before_hello_are_violations() {
    let address = ip("10.97.0.1");
    let generation = 1;
    let early = [
        Frame::Ping,
        Frame::Ready,
        Frame::TunnelReady,
        Frame::Grant {
            requests: vec![[0; 32]],
        },
        Frame::Proof {
            authenticator: vec![1],
            request: None,
        },
        accepted(1),
        Frame::Announce {
            address,
            leaf_hash: leaf(1),
            generation,
            boot_id: boot(1),
        },
        Frame::Withdraw {
            address,
            generation,
        },
        Frame::Resolve {
            address,
            leaf_hash: leaf(1),
        },
        Frame::DenyList {
            bytes: vec![1],
            more: false,
        },
    ];
    for frame in early {
        let mut bench = Bench::new();
        bench.connected(1, peer_node(LOWER), true);
        let name = frame.name();
        let effects = bench.frame(1, frame);
        assert_eq!(closed(&effects), [(1, CloseReason::OutOfState(name))]);
    }
}

#[test]
fn bytes_that_are_no_frame_are_a_violation() {
    let mut bench = Bench::new();
    bench.greet(1, LOWER, false);
    let effects = bench.feed(Event::Garbage { conn: ConnId(1) });
    assert_eq!(closed(&effects), [(1, CloseReason::Garbage)]);
}

#[test]
fn tunnel_ready_and_ready_are_said_once() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let effects = bench.frame(1, Frame::TunnelReady);
    assert_eq!(
        closed(&effects),
        [(1, CloseReason::OutOfState("tunnel-ready"))]
    );
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    bench.frame(1, Frame::Ready);
    let effects = bench.frame(1, Frame::Ready);
    assert_eq!(closed(&effects), [(1, CloseReason::OutOfState("ready"))]);
}

#[test]
fn ready_before_the_tunnel_stands_is_a_violation() {
    let mut bench = Bench::new();
    bench.greet(1, LOWER, false);
    let effects = bench.frame(1, Frame::Ready);
    assert_eq!(closed(&effects), [(1, CloseReason::OutOfState("ready"))]);
}

#[test]
fn without_a_hello_the_connection_ends_after_ten_seconds() {
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), false);
    assert!(closed(&bench.pass(SECOND * 9)).is_empty());
    assert_eq!(
        closed(&bench.pass(SECOND * 2)),
        [(1, CloseReason::HelloTimeout)]
    );
}

#[test]
fn a_silent_peer_is_pinged_and_then_given_up_while_its_session_stands() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let effects = bench.pass(SECOND * 35);
    assert!(sent(&effects, 1).contains(&Frame::Ping));
    assert_eq!(closed(&effects), [(1, CloseReason::Silent)]);
    assert!(
        session(&effects, bench.peer(LOWER)).is_none(),
        "the kernel goes on"
    );
    assert!(dials(&effects) >= 1, "and the agent dials");
}

#[test]
fn a_connection_to_ourselves_is_closed() {
    let mut bench = Bench::new();
    let effects = bench.connected(1, peer_node("m"), true);
    assert_eq!(
        closed(&effects),
        [(1, CloseReason::OurselvesOnTheOtherSide)]
    );
}

#[test]
fn prefixes_of_ours_or_of_another_session_are_refused_unless_assigned_later() {
    let claim = |of: &str, assignment| PeerNode {
        prefixes: vec![prefix(of)],
        assignment,
        ..peer_node(LOWER)
    };
    let mut bench = Bench::new();
    let effects = bench.connected(1, claim("m", 9), false);
    assert_eq!(closed(&effects), [(1, CloseReason::PrefixConflict)]);
    bench.live(2, HIGHER, false);
    let effects = bench.connected(3, claim(HIGHER, 1), false);
    assert_eq!(closed(&effects), [(3, CloseReason::PrefixConflict)]);
    bench.connected(4, claim(HIGHER, 2), false);
    let mut effects = bench.frame(4, hello(LOWER, 1));
    effects.extend(bench.show_key(4));
    let loser = bench.peer(HIGHER);
    let cut = place(
        &effects,
        |e| matches!(e, Effect::SetSession { peer, session } if *peer == loser && session.state == SessionState::Cut),
    );
    let tunnel = place(&effects, |e| matches!(e, Effect::InstallTunnel { .. }));
    assert!(
        cut < tunnel,
        "the old holder is cut before allowed IPs change"
    );
}

#[test]
fn packets_pass_only_when_the_tunnel_stands_on_both_sides() {
    let mut bench = Bench::new();
    bench.greet(1, LOWER, false);
    bench.show_key(1);
    let peer = bench.peer(LOWER);
    let effects = bench.feed(Event::TunnelInstalled { conn: ConnId(1) });
    assert!(sent(&effects, 1).contains(&Frame::TunnelReady));
    assert!(session(&effects, peer).is_none());
    assert!(is_ready(session(&bench.frame(1, Frame::TunnelReady), peer)));
}

#[test]
fn a_tunnel_that_fails_is_tried_again_after_five_seconds() {
    let mut bench = Bench::new();
    bench.greet(1, LOWER, false);
    bench.show_key(1);
    let effects = bench.feed(Event::TunnelFailed { conn: ConnId(1) });
    assert!(has(&effects, |e| matches!(
        e,
        Effect::Alarm(Alarm::TunnelFailed { .. })
    )));
    let install = |e: &Effect| matches!(e, Effect::InstallTunnel { .. });
    assert!(!has(&bench.pass(SECOND * 4), install));
    assert!(has(&bench.pass(SECOND * 2), install));
}

#[test]
fn a_session_ends_at_four_hours_or_with_the_earlier_svid() {
    let mut bench = Bench::new();
    let effects = bench.greet(1, LOWER, false);
    let entry = session(&effects, bench.peer(LOWER)).unwrap();
    assert_eq!(entry.expires, bench.at + SECOND * 4 * 3_600);
    let mut bench = Bench::new();
    let short = PeerNode {
        not_after: WALL + 600,
        ..peer_node(LOWER)
    };
    bench.connected(1, short, false);
    let effects = bench.frame(1, hello(LOWER, 1));
    let entry = session(&effects, bench.peer(LOWER)).unwrap();
    assert_eq!(entry.expires, bench.at + SECOND * 600);
    let effects = bench.pass_alive(1, SECOND * 605);
    let peer = bench.peer(LOWER);
    let cut = place(
        &effects,
        |e| matches!(e, Effect::SetSession { peer: of, session } if *of == peer && session.state == SessionState::Cut),
    );
    assert!(cut < place(&effects, |e| matches!(e, Effect::RemoveTunnel { .. })));
    assert!(closed(&effects).contains(&(1, CloseReason::Expired)));
}

#[test]
fn a_wall_clock_that_jumps_forward_shortens_what_certificates_limit_and_nothing_else() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let (peer, mut now) = (bench.peer(LOWER), bench.now());
    now.wall += DAY - 60;
    let effects = bench.core.handle(now, Event::Tick);
    assert_eq!(
        session(&effects, peer).unwrap().expires,
        bench.at + SECOND * 60
    );
}

#[test]
fn a_successor_is_a_new_epoch_and_the_old_one_counts_until_both_are_ready() {
    let mut bench = Bench::paired();
    let peer = bench.peer(HIGHER);
    bench.frame(1, Frame::Ready);
    let before = bench.core.view().peers[1].session.unwrap();
    let effects = bench.feed(Event::Disconnected { conn: ConnId(1) });
    assert!(
        session(&effects, peer).is_none(),
        "a lost connection ends no session"
    );
    let effects = bench.live(2, HIGHER, false);
    let entry = session(&effects, peer).unwrap();
    assert_eq!((entry.oldest, entry.current), (1, 2));
    assert_eq!(
        (entry.state, entry.expires),
        (SessionState::Ready, before.expires)
    );
    assert!(
        !sent(&effects, 2).contains(&Frame::Ready),
        "the address is not confirmed in it"
    );
    bench.proven(2, HIGHER, "db", 3, true);
    bench.announce(2, "10.122.0.1", 3, 6);
    bench.frame(2, Frame::Ready);
    bench.frame(2, accepted(1));
    let generation = announced_generation(&effects, "10.109.0.1");
    let effects = bench.frame(2, confirmed("10.109.0.1", generation));
    assert!(sent(&effects, 2).contains(&Frame::Ready));
    let entry = session(&effects, peer).unwrap();
    assert_eq!((entry.oldest, entry.current), (2, 2));
    let moved = place(&effects, |e| matches!(e, Effect::SetSession { .. }));
    assert!(
        moved
            < place(&effects, |e| matches!(
                e,
                Effect::SweepEpoch { below: 2, .. }
            ))
    );
    assert_eq!(bench.pairs()[0].epoch, 2);
}

#[test]
fn a_successor_is_dialled_after_half_an_hour() {
    let mut bench = Bench::new();
    bench.live(1, HIGHER, false);
    assert_eq!(dials(&bench.pass_alive(1, SECOND * 29 * 60)), 0);
    assert!(dials(&bench.pass_alive(1, SECOND * 90)) >= 1);
    let effects = bench.greet(2, HIGHER, true);
    assert_eq!(closed(&effects), [(1, CloseReason::Superseded)]);
}

#[test]
fn a_changed_boot_id_starts_cold() {
    let mut bench = Bench::paired();
    let peer = bench.peer(HIGHER);
    bench.feed(Event::Disconnected { conn: ConnId(1) });
    bench.connected(2, peer_node(HIGHER), false);
    let effects = bench.frame(2, hello(HIGHER, 2));
    let cut = place(
        &effects,
        |e| matches!(e, Effect::SetSession { session, .. } if session.state == SessionState::Cut),
    );
    let swept = place(&effects, |e| {
        matches!(e, Effect::SweepEpoch { below: 2, .. })
    });
    assert!(cut < swept);
    let entry = session(&effects, peer).unwrap();
    assert_eq!(
        (entry.oldest, entry.current, entry.state),
        (2, 2, SessionState::Pending)
    );
    assert!(bench.pairs().is_empty());
}

#[test]
fn two_boot_ids_taking_turns_raise_an_alarm() {
    let mut bench = Bench::new();
    let turns = |e: &Effect| matches!(e, Effect::Alarm(Alarm::BootIdsTakeTurns { .. }));
    for (conn, number, alarm) in [(1, 1, false), (2, 2, false), (3, 1, true)] {
        bench.connected(conn, peer_node(LOWER), false);
        assert_eq!(has(&bench.frame(conn, hello(LOWER, number)), turns), alarm);
    }
}

/// The peer's Hello, with something else in it.
fn hello_with(name: &str, change: impl FnOnce(&mut Hello)) -> Frame {
    let Frame::Hello(mut hello) = hello(name, 1) else {
        unreachable!()
    };
    change(&mut hello);
    Frame::Hello(hello)
}

#[test]
fn a_changed_tunnel_key_goes_beside_the_old_one_until_the_successor_takes_over() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    bench.connected(2, peer_node(LOWER), false);
    let changed = hello_with(LOWER, |hello| hello.tunnel_key = [8; 32]);
    let effects = bench.frame(2, changed);
    let entry = session(&effects, bench.peer(LOWER)).unwrap();
    assert_eq!((entry.oldest, entry.state), (1, SessionState::Ready));
    let installs =
        |e: &Effect| matches!(e, Effect::InstallTunnel { peer_key, .. } if *peer_key == [8; 32]);
    assert!(!has(&effects, installs), "it is only claimed");
    let activates = |e: &Effect| matches!(e, Effect::ActivateTunnel { .. });
    assert!(has(&bench.show_key(2), installs));
    let effects = bench.feed(Event::TunnelInstalled { conn: ConnId(2) });
    assert!(!has(&effects, activates));
    let effects = bench.frame(2, Frame::TunnelReady);
    assert!(!has(&effects, activates), "the session before still counts");
    let effects = bench.frame(2, Frame::Ready);
    let moved = place(
        &effects,
        |e| matches!(e, Effect::SetSession { session, .. } if session.oldest == 2),
    );
    assert!(moved < place(&effects, activates));
}

#[test]
fn a_peer_is_called_through_its_tunnel_when_both_ends_are_there_or_being_made() {
    let calls = |e: &Effect| matches!(e, Effect::CallPeer { .. });
    let installs = |e: &Effect| matches!(e, Effect::InstallTunnel { .. });
    let claimed = || {
        let mut bench = Bench::new();
        bench.connected(1, peer_node(LOWER), false);
        bench.frame(1, hello(LOWER, 1));
        bench
    };
    let mut ours_first = claimed();
    assert!(!has(&ours_first.show_key(1), calls));
    assert!(has(&ours_first.frame(1, Frame::TunnelReady), calls));
    let mut theirs_first = claimed();
    assert!(!has(&theirs_first.frame(1, Frame::TunnelReady), calls));
    let effects = theirs_first.show_key(1);
    assert!(place(&effects, installs) < place(&effects, calls));
}

#[test]
fn the_tunnel_of_a_first_session_is_in_use_before_packets_may_pass() {
    let mut bench = Bench::new();
    let effects = bench.live(1, LOWER, false);
    let ready = |e: &Effect| matches!(e, Effect::SetSession { session, .. } if session.state == SessionState::Ready);
    let activates = |e: &Effect| matches!(e, Effect::ActivateTunnel { .. });
    assert!(place(&effects, activates) < place(&effects, ready));
    assert!(
        !has(&bench.frame(1, Frame::Ready), activates),
        "once a session"
    );
}

#[test]
fn another_tunnel_key_of_ours_is_said_to_every_peer_by_a_successor() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    bench.live(2, HIGHER, false);
    let event = || Event::TunnelKey {
        key: [9; 32],
        port: 51873,
    };
    let mut effects = bench.feed(event());
    effects.extend(bench.pass(SECOND));
    assert_eq!(dials(&effects), 2);
    assert!(bench.feed(event()).is_empty(), "it is known");
    let effects = bench.connected(3, peer_node(LOWER), true);
    let said = sent(&effects, 3);
    let ours = |f: &Frame| matches!(f, Frame::Hello(h) if h.tunnel_key == [9; 32] && h.tunnel_port == 51873);
    assert!(said.iter().any(ours));
    let effects = bench.frame(3, hello(LOWER, 1));
    let installed =
        |e: &Effect| matches!(e, Effect::InstallTunnel { own_key, .. } if *own_key == [9; 32]);
    assert!(has(&effects, installed));
}

#[test]
fn a_session_that_says_a_former_key_of_ours_is_renewed_at_once() {
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), true);
    bench.feed(Event::TunnelKey {
        key: [9; 32],
        port: 51873,
    });
    let mut effects = bench.frame(1, hello(LOWER, 1));
    let former =
        |e: &Effect| matches!(e, Effect::SendTunnelKey { own_key, .. } if *own_key == [1; 32]);
    assert!(has(&effects, former), "the Hello had been sent");
    effects = bench.pass(SECOND);
    assert_eq!(dials(&effects), 1);
}

#[test]
fn a_peer_that_claims_a_former_key_of_ours_is_refused() {
    let mut bench = Bench::new();
    bench.feed(Event::TunnelKey {
        key: [9; 32],
        port: 51873,
    });
    for (conn, key) in [(1, [1; 32]), (2, [9; 32])] {
        bench.connected(conn, peer_node(LOWER), false);
        let effects = bench.frame(conn, hello_with(LOWER, |hello| hello.tunnel_key = key));
        assert_eq!(closed(&effects), [(conn, CloseReason::TunnelKeyTaken)]);
    }
}

#[test]
fn a_successor_can_be_asked_for() {
    let mut bench = Bench::new();
    let peer = PeerNumber(1);
    assert!(
        bench.feed(Event::RenewSession { peer }).is_empty(),
        "there is no session"
    );
    bench.live(1, LOWER, false);
    let peer = bench.peer(LOWER);
    assert_eq!(dials(&bench.feed(Event::RenewSession { peer })), 1);
    assert_eq!(
        dials(&bench.feed(Event::RenewSession { peer })),
        0,
        "one is under way"
    );
}

/// What a peer is told, and a person here, when there can be no session; and how often it is tried.
fn turned_away(change: impl Fn(&mut Hello)) -> (CloseReason, String) {
    for name in [LOWER, HIGHER] {
        let mut bench = Bench::new();
        bench.connected(1, peer_node(name), false);
        let effects = bench.frame(1, hello_with(name, &change));
        let (_, reason) = closed(&effects)[0];
        let said = sent(&effects, 1);
        let Some(Frame::Goodbye { reason: words }) = said.last() else {
            panic!("{said:?}");
        };
        assert_eq!(words.as_str(), reason.to_string());
        assert!(!reason.is_violation());
        let told = |e: &Effect| matches!(e, Effect::Alarm(Alarm::NoSession { .. }));
        assert!(has(&effects, told));
        assert!(session(&effects, bench.peer(name)).is_none());
        if name == HIGHER {
            return (reason, words.as_str().to_owned());
        }
    }
    unreachable!()
}

#[test]
fn another_kind_of_tunnel_is_refused_by_name_on_both_sides() {
    let (reason, words) = turned_away(|hello| hello.tunnel_kind = TunnelKind::Ipsec);
    let (ours, theirs) = (TunnelKind::WireGuard, TunnelKind::Ipsec);
    assert_eq!(reason, CloseReason::TunnelKind { ours, theirs });
    assert!(
        words.contains("WireGuard") && words.contains("IPsec"),
        "{words}"
    );
    turned_away(|hello| hello.tunnel_kind = TunnelKind::Other(3));
    // The other side of it.
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), true);
    let reason = words.as_str().into();
    let effects = bench.frame(1, Frame::Goodbye { reason });
    let told =
        |e: &Effect| matches!(e, Effect::Alarm(Alarm::Refused { reason, .. }) if *reason == words);
    assert!(has(&effects, told));
}

#[test]
fn versions_without_one_in_common_are_refused_by_name_and_neighbours_are_not() {
    let (reason, words) = turned_away(|hello| {
        hello.version = VERSION + 2;
        hello.oldest_version = VERSION + 1;
    });
    let (theirs, oldest) = (VERSION + 2, VERSION + 1);
    assert_eq!(reason, CloseReason::Version { theirs, oldest });
    assert!(words.contains("version"), "{words}");
    turned_away(|hello| hello.version = OLDEST_VERSION - 1);
    let mut bench = Bench::new();
    bench.connected(1, peer_node(LOWER), false);
    let newer = hello_with(LOWER, |hello| {
        hello.version = VERSION + 1;
        hello.oldest_version = VERSION;
    });
    let effects = bench.frame(1, newer);
    assert!(session(&effects, bench.peer(LOWER)).is_some());
}

/// A node that dials the higher one whenever it has no session with it.
fn dialling(seed: u64) -> Bench {
    let mut bench = Bench::blank(None, seed);
    bench.feed(Event::Settled);
    bench.feed(Event::Nodes(vec![handfast_agent::core::NodeInfo {
        id: node_id(HIGHER),
        name: HIGHER.to_owned(),
        addresses: vec!["192.0.2.9:7250".parse().unwrap()],
        prefixes: vec![prefix(HIGHER)],
    }]));
    bench.workload(1, "10.109.0.1", "web");
    bench.live(1, HIGHER, false);
    bench.feed(Event::Disconnected { conn: ConnId(1) });
    bench
}

/// How long it waits before it dials, in milliseconds.
fn wait_for_dial(bench: &mut Bench) -> u128 {
    let from = bench.at;
    while dials(&bench.pass(SECOND / 100)) == 0 {}
    (bench.at - from).as_millis()
}

#[test]
fn dials_that_fail_back_off_with_jitter_from_the_seed() {
    let waits = |seed: u64| -> Vec<u128> {
        let mut bench = dialling(seed);
        let peer = bench.peer(HIGHER);
        let mut waits = Vec::new();
        for _ in 0..12 {
            waits.push(wait_for_dial(&mut bench));
            bench.feed(Event::DialFailed { peer });
        }
        waits
    };
    let one = waits(1);
    assert!(
        one[0] <= 110 && one[11] >= 15_000 && one[11] <= 30_010,
        "{one:?}"
    );
    assert_eq!(one, waits(1), "the same seed gives the same history");
    assert_ne!(one, waits(2));
}

#[test]
fn a_peer_that_ends_each_session_at_once_is_dialled_less_often_until_one_lasts() {
    let mut bench = dialling(1);
    let mut waits = Vec::new();
    for conn in 2..12 {
        waits.push(wait_for_dial(&mut bench));
        bench.live(conn, HIGHER, true);
        bench.feed(Event::Disconnected { conn: ConnId(conn) });
    }
    assert!(waits[0] <= 110, "{waits:?}");
    assert!(
        waits[5..].iter().all(|wait| (800..=1_610).contains(wait)),
        "no more than one in about a second, and no less: {waits:?}"
    );
    wait_for_dial(&mut bench);
    bench.live(12, HIGHER, true);
    bench.pass_alive(12, SECOND * 11);
    bench.feed(Event::Disconnected { conn: ConnId(12) });
    assert!(wait_for_dial(&mut bench) <= 110, "it has lasted");
}

#[test]
fn a_peer_may_have_only_so_many_connections() {
    let mut bench = Bench::new();
    for conn in 1..=4 {
        assert!(closed(&bench.connected(conn, peer_node(LOWER), false)).is_empty());
    }
    let effects = bench.connected(5, peer_node(LOWER), false);
    assert_eq!(closed(&effects), [(5, CloseReason::TooMany)]);
}

#[test]
fn a_peer_that_connects_again_and_again_is_let_in_so_many_times_a_second() {
    let mut bench = Bench::new();
    let mut let_in = 0;
    for conn in 1..=100 {
        if closed(&bench.connected(conn, peer_node(LOWER), false)).is_empty() {
            let_in += 1;
            bench.feed(Event::Disconnected { conn: ConnId(conn) });
        }
        bench.pass(SECOND / 100);
    }
    assert!((4..=8).contains(&let_in), "{let_in}");
    let effects = bench.connected(101, peer_node(HIGHER), false);
    assert!(closed(&effects).is_empty(), "others are not kept out");
}

#[test]
fn goodbye_ends_the_connection_and_not_the_session() {
    let mut bench = Bench::new();
    bench.live(1, LOWER, false);
    let effects = bench.frame(
        1,
        Frame::Goodbye {
            reason: "stops".into(),
        },
    );
    assert_eq!(closed(&effects), [(1, CloseReason::Goodbye)]);
    assert!(session(&effects, bench.peer(LOWER)).is_none());
}

#[test]
fn an_agent_that_stops_says_goodbye_and_leaves_the_kernel_alone() {
    let mut bench = Bench::paired();
    let effects = bench.feed(Event::Stop);
    assert!(matches!(sent(&effects, 1)[..], [Frame::Goodbye { .. }]));
    assert!(!has(&effects, |e| matches!(
        e,
        Effect::SetSession { .. } | Effect::RemovePair { .. } | Effect::RemoveTunnel { .. }
    )));
    assert_eq!(dials(&bench.pass(SECOND * 60)), 0);
}
