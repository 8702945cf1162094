//! How long a watch that broke waits before it begins anew: an API server that comes back is heard within seconds.

use std::time::Duration;

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// Twice as long each time, and by chance up to half of it less, so that not everybody comes back at once.
#[derive(Debug, Default)]
pub(super) struct Retry(u32);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST.saturating_mul(1 << self.0.min(8)).min(LONGEST);
        self.0 = self.0.saturating_add(1);
        Some(wait.mul_f64(rand::random_range(0.5..=1.0)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
