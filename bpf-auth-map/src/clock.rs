//! The clock of every time in the maps.

use std::time::Duration;

/// CLOCK_BOOTTIME: what `bpf_ktime_get_boot_ns` says.
pub fn boot_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Into::into)
}

/// As the maps have it. What lies beyond 584 years is cut off.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
