//! Held packets: taken out of the hold device, kept in order, given back or dropped by the core's decision.
//!
//! How many may wait is counted in the kernel before a packet gets here, so nothing is bounded twice.

use std::collections::{HashMap, VecDeque};

use handfast_bpf::{Held, HoldDevice};

use super::RunError;
use crate::core::{Direction, EndpointId, HoldKey};

/// The hold device and what came out of it.
pub(super) struct Park {
    /// Absent once it was closed.
    device: Option<HoldDevice>,
    name: String,
    waiting: HashMap<HoldKey, VecDeque<Held>>,
}

impl Park {
    /// Makes the hold device, or takes over that of an earlier run.
    pub(super) fn open(name: &str) -> Result<Self, RunError> {
        Ok(Self {
            device: Some(HoldDevice::open(name)?),
            name: name.to_owned(),
            waiting: HashMap::new(),
        })
    }

    /// The hold device's index.
    pub(super) fn ifindex(&self) -> u32 {
        self.device.as_ref().map_or(0, HoldDevice::ifindex)
    }

    /// The next packet that a gate could not decide. Safe to cancel.
    pub(super) async fn receive(&mut self) -> Result<Held, RunError> {
        match &mut self.device {
            Some(device) => Ok(device.receive().await?),
            None => std::future::pending().await,
        }
    }

    /// Keeps a packet behind those of its key.
    pub(super) fn keep(&mut self, held: Held) -> HoldKey {
        let key = held.key();
        let key = HoldKey {
            endpoint: EndpointId(key.endpoint.0),
            direction: match key.direction {
                handfast_bpf::Direction::Ingress => Direction::Ingress,
                handfast_bpf::Direction::Egress => Direction::Egress,
            },
            remote: key.remote,
        };
        self.waiting.entry(key).or_default().push_back(held);
        key
    }

    /// Gives everything under a key back to the gate that it was taken from, in order.
    pub(super) fn release(&mut self, key: HoldKey) {
        let Some(device) = &self.device else { return };
        for held in self.waiting.remove(&key).into_iter().flatten() {
            if let Err(error) = device.give_back(&held) {
                tracing::warn!(%error, ?key, "a held packet was not given back");
                drop_counted(device, &held);
            }
        }
    }

    /// Drops everything under a key, and tells how many packets that was.
    pub(super) fn discard(&mut self, key: HoldKey) -> usize {
        let waiting = self.waiting.remove(&key).unwrap_or_default();
        if let Some(device) = &self.device {
            waiting.iter().for_each(|held| drop_counted(device, held));
        }
        waiting.len()
    }

    /// Drops everything.
    pub(super) fn discard_all(&mut self) {
        let keys: Vec<HoldKey> = self.waiting.keys().copied().collect();
        for key in keys {
            self.discard(key);
        }
    }

    /// Takes the device away.
    pub(super) fn close(&mut self) -> Result<(), RunError> {
        self.waiting.clear();
        self.device = None;
        Ok(HoldDevice::remove(&self.name)?)
    }
}

/// Through the device again, so that the kernel's count falls.
fn drop_counted(device: &HoldDevice, held: &Held) {
    if let Err(error) = device.discard(held) {
        tracing::warn!(%error, "a held packet was dropped, and is still counted as held");
    }
}
