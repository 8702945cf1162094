//! What the kernel refuses to write: what is told to whom, and when it is written again.

use std::time::Duration;

use super::*;

fn own() -> Event {
    let peer = Some(PeerNumber::LOCAL);
    Event::NotWritten { peer }
}

const FIRST: Duration = Duration::from_millis(100);

fn rewrites(effects: &[Effect]) -> bool {
    let wrote = |what: fn(&Effect) -> bool| has(effects, what);
    wrote(|e| matches!(e, Effect::SetIdentity { .. }))
        && wrote(|e| matches!(e, Effect::SetLocal { .. }))
        && wrote(|e| matches!(e, Effect::SetPrefix { .. }))
        && wrote(|e| matches!(e, Effect::SetSession { .. }))
        && wrote(|e| matches!(e, Effect::SetAnnounced { .. }))
        && wrote(|e| matches!(e, Effect::SetRemote { .. }))
}

#[test]
fn what_is_this_nodes_own_is_written_again_soon_and_then_less_often() {
    let mut bench = Bench::paired();
    let effects = bench.feed(own());
    assert!(closed(&effects).is_empty(), "nobody else is concerned");
    assert!(!rewrites(&bench.pass(FIRST / 2)));
    assert!(rewrites(&bench.pass(FIRST)));
    // It is refused again, and again.
    let mut wait = FIRST;
    for _ in 0..6 {
        wait = (wait * 2).min(SECOND * 5);
        bench.feed(own());
        assert!(!rewrites(&bench.pass(wait - FIRST / 2)), "{wait:?}");
        assert!(rewrites(&bench.pass(FIRST / 2)), "{wait:?}");
    }
    assert!(!rewrites(&bench.pass(SECOND * 30)), "it has been taken");
    bench.feed(own());
    assert!(rewrites(&bench.pass(FIRST)), "a new matter");
}

#[test]
fn a_cut_that_was_refused_is_written_again_before_anything_that_permits() {
    let mut bench = Bench::paired();
    bench.feed(deny(1, &["db"], &[], &[]));
    bench.feed(own());
    let effects = bench.pass(FIRST);
    let cut = place(&effects, |e| {
        matches!(e, Effect::SetIdentity { revoked: true, .. })
    });
    let permits = |e: &Effect| {
        matches!(
            e,
            Effect::SetIdentity { revoked: false, .. }
                | Effect::SetRemote { .. }
                | Effect::SetPair { .. }
        )
    };
    assert!(cut < place(&effects, permits));
}

#[test]
fn the_cut_of_a_node_that_was_refused_is_written_again() {
    let mut bench = Bench::paired();
    let peer = bench.peer(HIGHER);
    bench.feed(deny(1, &[], &[HIGHER], &[]));
    bench.feed(Event::NotWritten { peer: Some(peer) });
    let effects = bench.pass(FIRST);
    let entry = session(&effects, peer).unwrap();
    assert_eq!(entry.state, SessionState::Cut);
}

#[test]
fn every_write_that_the_kernel_may_refuse_says_whose_it_is() {
    let mut bench = Bench::new();
    let mut effects = bench.workload(1, "10.109.0.1", "web");
    effects.extend(bench.hold(1, "10.122.0.1"));
    effects.extend(bench.live(1, HIGHER, true));
    effects.extend(bench.proven(1, HIGHER, "db", 101, false));
    effects.extend(bench.announce(1, "10.122.0.1", 101, 5));
    let peer = bench.peer(HIGHER);
    for effect in &effects {
        let whose = match effect {
            Effect::SetIdentity { .. } | Effect::SetLocal { .. } | Effect::SetPrefix { .. } => {
                PeerNumber::LOCAL
            }
            Effect::SetSession { peer, .. } => *peer,
            Effect::SetRemote { .. } | Effect::SetAnnounced { .. } => peer,
            _ => continue,
        };
        let refused = effect.refused();
        let named = matches!(refused, Some(Event::NotWritten { peer: Some(of) }) if of == whose);
        assert!(named, "{effect:?}: {refused:?}");
    }
}
