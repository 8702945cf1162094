//! Who speaks first through a new tunnel, and who is ready when.

use super::*;

/// Above this node's own key: this node speaks first.
const HIGHER: u8 = 111;

fn deafened() -> Lab {
    let lab = Lab::new(Fake::default());
    *lab.log.deaf.lock().unwrap() = true;
    lab
}

impl Lab {
    fn answers(&self) {
        *self.log.deaf.lock().unwrap() = false;
    }

    async fn says_nothing(&mut self) {
        let heard = timeout(Duration::from_millis(200), self.heard.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}

#[tokio::test]
async fn who_speaks_first_through_a_first_tunnel_is_ready_when_it_was_answered() {
    let mut lab = deafened();
    lab.install(1, 1, HIGHER);
    lab.says_nothing().await;
    assert_eq!(lab.take(), ["0+111"], "the peer may not have its end yet");
    lab.worker.call(PeerNumber(1)).unwrap();
    lab.says_nothing().await;
    assert_eq!(lab.take(), ["0!111"]);
    lab.answers();
    lab.installed(1).await;
}

#[tokio::test]
async fn a_peer_whose_readiness_is_not_heard_is_called_all_the_same() {
    let lab = deafened();
    lab.install(1, 1, HIGHER);
    let called = async {
        while !lab.take().contains(&"0!111".to_owned()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), called).await.unwrap();
}

#[tokio::test]
async fn who_is_called_through_a_first_tunnel_is_ready_at_once() {
    let mut lab = deafened();
    lab.install(1, 1, 11);
    lab.installed(1).await;
    lab.worker.call(PeerNumber(1)).unwrap();
    lab.says_nothing().await;
    assert_eq!(lab.take(), ["0+11"]);
}

#[tokio::test]
async fn where_devices_shake_no_hands_nobody_calls() {
    let mut lab = Lab::new(Fake {
        alone: true,
        ..Fake::default()
    });
    *lab.log.deaf.lock().unwrap() = true;
    lab.install(1, 1, HIGHER);
    lab.installed(1).await;
}

#[tokio::test]
async fn a_session_that_follows_before_the_answer_waits_for_it_in_the_place_of_the_first() {
    let mut lab = deafened();
    lab.install(1, 1, HIGHER);
    lab.install(2, 1, HIGHER);
    lab.says_nothing().await;
    lab.answers();
    lab.installed(2).await;
    lab.install(3, 1, HIGHER);
    lab.installed(3).await;
    lab.says_nothing().await;
}
