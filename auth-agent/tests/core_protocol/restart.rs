//! Restart: what the kernel goes on with, and what nobody may inherit.

use super::*;

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
fn a_tunnel_of_a_session_that_was_cut_does_not_outlive_an_agent_that_died_of_the_cut() {
    let removed = |effects: &[Effect]| has(effects, |e| matches!(e, Effect::RemoveTunnel { .. }));
    let mut old = Bench::paired();
    let mut next = Bench::blank(old.stored.clone(), 2);
    assert!(!removed(&next.feed(Event::Settled)), "it stands");
    // The peer has rebooted: one step cuts the session and begins the next, and what that step does to the kernel is
    // lost with the agent.
    old.feed(Event::Disconnected { conn: ConnId(1) });
    old.connected(2, peer_node(HIGHER), true);
    assert!(removed(&old.frame(2, hello(HIGHER, 2))));
    let mut next = Bench::blank(old.stored.clone(), 2);
    let effects = next.feed(Event::Settled);
    let entry = session(&effects, old.peer(HIGHER)).unwrap();
    assert_eq!(
        (entry.oldest, entry.state),
        (2, SessionState::Pending),
        "nothing of the first epoch counts"
    );
    assert!(removed(&effects), "nor what came by its tunnel");
}

#[test]
fn a_session_that_took_over_has_its_tunnel_in_use_though_the_agent_died_before() {
    let activates = |e: &Effect| matches!(e, Effect::ActivateTunnel { .. });
    let mut old = Bench::paired();
    let number = old.peer(HIGHER);
    old.frame(1, Frame::Ready);
    let mut next = Bench::blank(old.stored.clone(), 2);
    let effects = next.feed(Event::Settled);
    assert!(has(&effects, activates), "whatever of the step was lost");
    old.feed(Event::Disconnected { conn: ConnId(1) });
    let effects = old.live(2, HIGHER, true);
    assert!(!has(&effects, activates));
    let mut next = Bench::blank(old.stored.clone(), 2);
    let effects = next.feed(Event::Settled);
    let entry = session(&effects, number).unwrap();
    assert_eq!((entry.oldest, entry.current), (1, 2));
    assert!(!has(&effects, activates), "the next has yet to take over");
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
