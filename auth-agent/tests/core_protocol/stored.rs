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

#[test]
fn a_line_that_was_not_written_to_its_end_does_not_count() {
    let mut bench = Bench::paired();
    let (before, whole) = (bench.stored.clone(), bench.journal.len());
    bench.workload(2, "10.109.0.2", "front");
    let file = &bench.journal;
    let first = file[whole..]
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap();
    for end in [whole + 1, whole + first] {
        let read = Journal::read(&file[..end]).unwrap();
        assert!(read.torn);
        assert_eq!(Some(read.snapshot), before);
    }
    let read = Journal::read(&file[..whole + first + 1]).unwrap();
    assert!(!read.torn);
    assert_ne!(Some(read.snapshot), before);
}

#[test]
fn what_an_agent_wrote_that_knew_no_lines_is_read() {
    let stored = Bench::paired().stored.unwrap();
    let text = serde_json::to_vec(&stored).unwrap();
    assert_eq!(Journal::read(&text).unwrap().snapshot, stored);
}

#[test]
fn a_line_that_goes_with_another_file_is_refused_by_its_number() {
    let paired = Bench::paired();
    let begun = Journal::whole(&Bench::blank(None, 1).core.snapshot()).unwrap();
    let lines = paired.journal.split_inclusive(|byte| *byte == b'\n');
    let says = |line: &[u8], word: &str| String::from_utf8_lossy(line).contains(word);
    let late = lines
        .skip(1)
        .find(|line| says(line, "\"peers\"") && !says(line, "\"head\""));
    let late = late.unwrap();
    let error = Journal::read(&[&begun, late].concat()).unwrap_err();
    assert_eq!(error.line, 2);
    assert!(error.to_string().contains("peer"), "{error}");
}

#[test]
fn one_address_more_is_a_short_line_however_many_there_are() {
    let mut bench = Bench::paired();
    bench.announce(1, "10.122.0.2", 101, 1_000);
    let few = bench.last_line().len();
    for host in 3..200 {
        bench.announce(1, &format!("10.122.0.{host}"), 101, 1_000 + host);
    }
    assert!(bench.last_line().len() < few + 100);
    let whole = Journal::whole(&bench.core.snapshot()).unwrap().len();
    assert!(whole > 20 * few, "{whole} {few}");
}
