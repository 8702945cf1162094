//! What a disk that refuses the snapshot holds back, and what not.

use super::*;

/// What is left of a step that is not stored.
fn done(effects: &[Effect]) -> Vec<&Effect> {
    let effects = effects.iter();
    effects
        .filter(|e| **e != Effect::Persist && e.unless_stored().is_none())
        .collect()
}

fn permits(effect: &Effect) -> bool {
    match effect {
        Effect::SetSession { session, .. } => session.state != SessionState::Cut,
        Effect::SetAnnounced { announced, .. } => announced.state != AnnouncedState::Withdrawing,
        Effect::Send { frame, .. } => !matches!(frame, Frame::DenyList { .. }),
        effect => matches!(
            effect,
            Effect::SetRemote { .. }
                | Effect::SetPair { .. }
                | Effect::SetLocal { .. }
                | Effect::SetPrefix { .. }
                | Effect::SendProof { .. }
                | Effect::SendTunnelKey { .. }
                | Effect::InstallTunnel { .. }
                | Effect::Dial { .. }
        ),
    }
}

#[test]
fn nothing_is_permitted_and_nothing_said_that_is_not_stored() {
    let mut bench = Bench::new();
    let mut effects = bench.workload(1, "10.109.0.1", "web");
    effects.extend(bench.hold(1, "10.122.0.1"));
    effects.extend(bench.live(1, HIGHER, true));
    let requests = vec![[9; 32]];
    effects.extend(bench.frame(1, Frame::Grant { requests }));
    effects.extend(bench.frame(1, accepted(1)));
    effects.extend(bench.proven(1, HIGHER, "db", 101, false));
    effects.extend(bench.announce(1, "10.122.0.1", 101, 5));
    assert!(effects.iter().filter(|e| permits(e)).count() > 10);
    let done = done(&effects);
    assert!(!done.iter().any(|e| permits(e)), "{done:#?}");
}

#[test]
fn what_is_cut_is_cut_stored_or_not() {
    let mut bench = Bench::paired();
    let effects = bench.feed(deny(1, &["db"], &[HIGHER], &[]));
    let done = done(&effects);
    let cuts = |what: fn(&Effect) -> bool| done.iter().any(|e| what(e));
    assert!(cuts(|e| matches!(
        e,
        Effect::SetIdentity { revoked: true, .. }
    )));
    assert!(cuts(
        |e| matches!(e, Effect::SetSession { session, .. } if session.state == SessionState::Cut)
    ));
    assert!(cuts(|e| matches!(e, Effect::RemovePair { .. })));
    assert!(cuts(|e| matches!(e, Effect::RemoveTunnel { .. })));
    assert!(cuts(|e| matches!(e, Effect::Close { .. })));
}

#[test]
fn a_connection_on_which_something_could_not_be_said_is_given_up() {
    let (_, effects) = held_on(false);
    for effect in &effects {
        if let Effect::Send { conn, .. } | Effect::SendProof { conn, .. } = effect {
            let instead = effect.unless_stored();
            assert!(matches!(instead, Some(Event::Disconnected { conn: of }) if of == *conn));
        }
    }
}
