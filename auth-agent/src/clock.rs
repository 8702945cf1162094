//! The two clocks that everything is judged by, read in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::core::Now;

/// CLOCK_BOOTTIME for the kernel's maps, and wall time for certificates, which never goes behind what the CA has
/// said plus the time since (PROTOCOL.md, Clocks).
#[derive(Debug)]
pub(crate) struct Clock {
    /// The CA's last word (unix seconds) and when it was heard.
    ca: Option<(u64, Duration)>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { ca: None }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Now {
        let boot = boot();
        let local = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let floor = self
            .ca
            .map_or(0, |(said, at)| said + boot.saturating_sub(at).as_secs());
        Now {
            boot,
            wall: local.max(floor),
        }
    }

    /// The CA has said what time it is.
    pub(crate) fn heard(&mut self, ca_time_ms: u64) {
        self.ca = Some((ca_time_ms / 1000, boot()));
    }
}

/// Time since the kernel booted, suspensions included.
pub(crate) fn boot() -> Duration {
    // The clock exists since Linux 2.6.39; where it does not, everything has expired.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}
