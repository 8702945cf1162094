//! Questions about flows: who may ask how much, and whose answer counts.

use super::*;

fn ask(bench: &mut Bench, id: u64) -> Vec<Effect> {
    let (peer, question) = (bench.peer(HIGHER), vec![7]);
    bench.feed(Event::Ask { peer, id, question })
}

fn answered(effects: &[Effect]) -> bool {
    has(effects, |e| matches!(e, Effect::Answered { .. }))
}

#[test]
fn a_question_goes_to_a_live_peer_and_its_answer_counts_once() {
    let mut bench = Bench::new();
    assert!(sent(&ask(&mut bench, 1), 1).is_empty(), "no session");
    bench.live(1, HIGHER, true);
    let question = vec![7];
    let said = sent(&ask(&mut bench, 1), 1);
    assert_eq!(said, [Frame::Ask { id: 1, question }]);
    let answer = |id| Frame::Answer {
        id,
        answer: vec![8],
    };
    assert!(!answered(&bench.frame(1, answer(2))), "not asked");
    assert!(answered(&bench.frame(1, answer(1))));
    assert!(!answered(&bench.frame(1, answer(1))), "answered already");
    ask(&mut bench, 3);
    bench.pass(SECOND * 4);
    assert!(!answered(&bench.frame(1, answer(3))), "too late");
}

#[test]
fn questions_of_a_peer_are_few_and_change_nothing() {
    let mut bench = Bench::paired();
    let before = bench.core.snapshot();
    let mut asked = 0;
    for id in 0..200 {
        let question = vec![7];
        let effects = bench.frame(1, Frame::Ask { id, question });
        asked += effects.len();
        assert!(effects.iter().all(|e| matches!(e, Effect::Asked { .. })));
    }
    assert!((15..=25).contains(&asked), "{asked}");
    assert_eq!(before, bench.core.snapshot());
}

#[test]
fn an_answer_goes_back_on_the_connection_of_its_question_only() {
    let mut bench = Bench::new();
    bench.live(1, HIGHER, true);
    let given = |conn, answer| Event::AnswerGiven {
        conn: ConnId(conn),
        id: 5,
        answer,
    };
    let answer = vec![9];
    let effects = bench.feed(given(1, answer.clone()));
    assert_eq!(sent(&effects, 1), [Frame::Answer { id: 5, answer }]);
    assert!(bench.feed(given(2, vec![9])).is_empty());
    assert!(
        bench.feed(given(1, Vec::new())).is_empty(),
        "no frame has it"
    );
    assert!(bench.feed(given(1, vec![0; 9_000])).is_empty());
}

#[test]
fn so_many_questions_wait_and_no_more() {
    let mut bench = Bench::new();
    bench.live(1, HIGHER, true);
    let sent = (0..100).filter(|id| !sent(&ask(&mut bench, *id), 1).is_empty());
    assert_eq!(sent.count(), 64);
    bench.pass(SECOND * 4);
    assert!(!ask(&mut bench, 200).is_empty(), "those are given up");
}
