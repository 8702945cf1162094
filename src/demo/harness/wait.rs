//! Waiting that ends when the user wants out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait, now and later, end with an error.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails once somebody has asked to stop.
pub fn check_interrupt() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, but not through an interrupt.
pub fn pause(length: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + length;
    loop {
        check_interrupt()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// How long to wait where a real machine gets `limit`. Inside an emulator the variable HANDFAST_SLOWNESS says how
/// many times slower everything is.
pub fn patience(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        let told = std::env::var("HANDFAST_SLOWNESS").ok();
        let told = told.and_then(|times| times.parse().ok());
        told.unwrap_or(1).clamp(1, 100)
    });
    limit.saturating_mul(*times)
}

/// Asks until there is an answer; `what` names what is awaited in the error.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let limit = patience(limit);
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        pause(Duration::from_millis(15))?;
    }
}
