//! What of the maps is read back, for people and for keeping house.

use std::collections::BTreeMap;
use std::time::Duration;

use handfast_bpf::Reason;

use super::super::RunError;
use super::Gates;
use crate::core::{IdentityNumber, PeerNumber};

/// A pair as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(in crate::shell) struct RecordedPair {
    pub(in crate::shell) local: IdentityNumber,
    pub(in crate::shell) remote: IdentityNumber,
    pub(in crate::shell) peer: PeerNumber,
    pub(in crate::shell) epoch: u32,
    pub(in crate::shell) expires: Duration,
}

impl Gates {
    /// Packets that the tripwire has stopped.
    pub(in crate::shell) fn cleartext_drops(&self) -> Result<u64, RunError> {
        let reasons = [
            Reason::WireOut,
            Reason::WireIn,
            Reason::WireOutInside,
            Reason::WireInInside,
        ];
        let mut sum = 0;
        for reason in reasons {
            sum += self.tables().counter(reason)?;
        }
        Ok(sum)
    }

    /// Events that the gates could not tell.
    pub(in crate::shell) fn events_lost(&self) -> Result<u64, RunError> {
        Ok(self.tables().counter(Reason::EventLost)?)
    }

    /// Packets by reason, those that there were.
    pub(in crate::shell) fn counters(&self) -> Result<BTreeMap<String, u64>, RunError> {
        let counters = self.tables().counters()?;
        Ok(counters
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (format!("packets: {}", reason.name()), count))
            .collect())
    }

    /// The pairs that the gates let pass.
    pub(in crate::shell) fn pairs(&self) -> Result<Vec<RecordedPair>, RunError> {
        let pairs = self.tables().pairs()?;
        Ok(pairs
            .into_iter()
            .map(|(key, pair)| RecordedPair {
                local: IdentityNumber(key.local.0),
                remote: IdentityNumber(key.remote.0),
                peer: PeerNumber(key.peer.0),
                epoch: pair.epoch.0,
                expires: pair.expires,
            })
            .collect())
    }

    /// Forgets flows whose time is over and counts of what is no longer held.
    pub(in crate::shell) fn collect(&mut self, now: Duration) -> Result<(), RunError> {
        self.flows = self.tables().collect(now)?.left;
        Ok(self.tables().tidy_holds()?)
    }

    /// How many entries each map has room for.
    pub(in crate::shell) fn capacities(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.tables().capacities().into_iter()
    }

    /// The flows that were known when last looked at.
    pub(in crate::shell) fn flows(&self) -> usize {
        self.flows
    }

    /// Packets that wait for a decision, and their bytes, as the gates count them.
    pub(in crate::shell) fn held(&self) -> Result<(u64, u64), RunError> {
        let held = self.tables().held_total()?;
        Ok((held.packets, held.bytes))
    }
}
