//! May this server sign? Only while it has an issuing CA in its time, and what it signs by is known to be what the store says.
//!
//! A server that is cut off from its store hears of no revocation, no deletion and no rotation. It goes on for a
//! stated time, so that a short outage is not noticed, and not for longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{Authorities, Authority, Kind, Standing};
use crate::Error;

/// How long a server signs by default after it last knew what the store says:
/// half of what is left of a workload's SVID (1 h) when its renewal is due.
pub const SIGN_WITHOUT_STORE: Duration = Duration::from_secs(15 * 60);

/// When the store was last known to say what this server signs by.
#[derive(Debug)]
pub(super) struct Lease {
    limit: Duration,
    confirmed_ms: AtomicU64,
}

/// A moment by a clock that neither jumps nor stops while the machine sleeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        let ms = since_boot.map_or(0, |since| since.as_millis());
        Self(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// Milliseconds since the machine was started.
    pub(crate) fn ms(self) -> u64 {
        self.0
    }
}

impl Lease {
    /// Of who has just read the store.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            confirmed_ms: AtomicU64::new(Moment::now().0),
        }
    }

    fn over(&self) -> Option<Duration> {
        let confirmed = self.confirmed_ms.load(Ordering::Acquire);
        let since = Duration::from_millis(Moment::now().0.saturating_sub(confirmed));
        (since > self.limit).then_some(since)
    }
}

impl Authority {
    /// From here on it signs only so long without knowing what the store says.
    pub(crate) fn limit_signing(&mut self, limit: Duration) {
        self.lease = Lease::new(limit);
    }

    /// The store was asked at that moment, and says what this server signs by.
    pub(crate) fn confirm(&self, asked: Moment) {
        self.lease.confirmed_ms.fetch_max(asked.0, Ordering::AcqRel);
    }

    /// May agents rely on this server? Not once it is removed, or cut off for
    /// so long that it may have missed what matters: others may do better.
    pub(crate) fn in_touch(&self) -> Result<(), Error> {
        let current = self.current();
        if current.issuing.is_none()
            && let Some(reason) = current.authorities.removed(&self.server)
        {
            return Err(Error::NotSigning(reason));
        }
        match self.lease.over() {
            None => Ok(()),
            Some(since) => Err(Error::NotSigning(format!(
                "this CA server has not reached its store for {} s, and signs for at most {} s without it (`--sign-without-store`): it may have missed a revocation; it goes on by itself when the store is back",
                since.as_secs(),
                self.lease.limit.as_secs()
            ))),
        }
    }

    /// Why this server signs nothing, if so.
    pub(crate) fn may_sign(&self) -> Result<(), Error> {
        self.in_touch()?;
        self.issuing()?
            .check_time(crate::now_ms() / 1000)
            .map_err(|error| match self.awaited() {
                Some(what) => Error::NotSigning(format!("{error}; {what}")),
                None => error,
            })
    }

    /// What has to be done for an issuing CA that was requested and is not there.
    pub(super) fn awaited(&self) -> Option<String> {
        let authorities = self.authorities();
        let mut requested = authorities.of(Kind::Issuing, Standing::Requested);
        requested.find(|record| record.server == self.server)?;
        Some(format!(
            "its successor waits for the root's key, which is not in this CA's folder: a running server that has it signs by itself; if it is kept offline: `handfast ca root request --out request.csr`, `handfast ca root sign request.csr --server {} --dir ROOT --out issuing.crt` where the key is, and `handfast ca root install issuing.crt`",
            self.server
        ))
    }
}

impl Authorities {
    /// Why a server is none any more, if so: all that it signed with was retired.
    pub(super) fn removed(&self, server: &str) -> Option<String> {
        let mut own = self
            .all()
            .iter()
            .filter(|record| record.server == server)
            .peekable();
        own.peek()?;
        own.all(|record| record.standing == Standing::Retired).then(|| {
            format!(
                "server {server} was removed from this CA (`handfast ca server remove`): its keys count for nothing any more; stop it, and make a new one with another name (`handfast ca init --store … --server NAME`)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_confirmed_late_counts_from_when_it_was_asked() {
        let lease = Lease::new(Duration::from_millis(40));
        assert_eq!(lease.over(), None);
        let asked = Moment::now();
        std::thread::sleep(Duration::from_millis(80));
        assert!(lease.over().is_some());
        lease.confirmed_ms.fetch_max(asked.0, Ordering::AcqRel);
        assert!(
            lease.over().is_some(),
            "the answer is as old as the question"
        );
        lease
            .confirmed_ms
            .fetch_max(Moment::now().0, Ordering::AcqRel);
        assert_eq!(lease.over(), None);
    }
}
