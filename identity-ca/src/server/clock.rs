//! A clock that is set back. Agents take the CA's last word for the least that the time can be, so a word that was
//! ahead holds them there, and what is signed since then looks expired to them, until they hear another.

use std::sync::Arc;
use std::time::Duration;

use super::state::State;
use crate::authority::Moment;
use crate::now_ms;

/// How often it is looked.
const TICK: Duration = Duration::from_secs(1);
/// Steps that certificates do not feel: they are dated back by more.
const FELT_MS: i64 = 5_000;

/// Has every agent told when the time is earlier than it was, for as long as the server runs.
pub(super) async fn watch(state: Arc<State>) {
    let mut ahead = ahead_of_boot();
    loop {
        tokio::time::sleep(TICK).await;
        let now = ahead_of_boot();
        if now.saturating_add(FELT_MS) < ahead {
            tracing::warn!(
                seconds = ahead.abs_diff(now) / 1000,
                "this machine's clock was set back"
            );
            ahead = now;
            state.set_back.send_modify(|times| *times += 1);
        }
        ahead = ahead.max(now);
    }
}

/// How far the wall's clock is ahead of one that nobody sets (milliseconds).
fn ahead_of_boot() -> i64 {
    let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    ms(now_ms()).saturating_sub(ms(Moment::now().ms()))
}
