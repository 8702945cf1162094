//! Held packets: taken out of the hold device, kept in order, given back or dropped by the core's decision.
//!
//! How many may wait is counted in the kernel before a packet gets here, so nothing is bounded twice. The counts
//! fall only when a packet goes through the device again: one that could not is kept until it can.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use handfast_bpf::{Held, HoldDevice};

use super::RunError;
use crate::core::{Direction, EndpointId, HoldKey};
use crate::metrics;

/// The hold device and what came out of it.
pub(super) struct Park {
    /// Absent once it was lost or closed.
    device: Option<HoldDevice>,
    name: String,
    waiting: HashMap<HoldKey, VecDeque<Waiting>>,
    /// Dropped, but the kernel could not be told yet.
    still_counted: Vec<Held>,
}

/// One packet that waits.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    held: Held,
}

impl Park {
    /// Makes the hold device, or takes over that of an earlier run.
    pub(super) fn open(name: &str) -> Result<Self, RunError> {
        Ok(Self {
            device: Some(HoldDevice::open(name)?),
            name: name.to_owned(),
            waiting: HashMap::new(),
            still_counted: Vec::new(),
        })
    }

    /// The hold device's index.
    pub(super) fn ifindex(&self) -> u32 {
        self.device.as_ref().map_or(0, HoldDevice::ifindex)
    }

    /// Whether the device is there. One that somebody deletes says nothing to its reader.
    pub(super) fn is_there(&self) -> bool {
        let index = nix::net::if_::if_nametoindex(self.name.as_str()).ok();
        index.is_some() && index == self.device.as_ref().map(HoldDevice::ifindex)
    }

    /// The next packet that a gate could not decide; never one while there is no device. Safe to cancel.
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
        self.waiting.entry(key).or_default().push_back(Waiting {
            since: Instant::now(),
            held,
        });
        key
    }

    /// Gives everything under a key back to the gate that it was taken from, in order.
    pub(super) fn release(&mut self, key: HoldKey) {
        let Some(device) = &self.device else { return };
        for Waiting { since, held } in self.waiting.remove(&key).into_iter().flatten() {
            metrics::hold_ended("released", since.elapsed());
            if let Err(error) = device.give_back(&held) {
                tracing::warn!(%error, ?key, "a held packet was not given back");
                self.still_counted.push(held);
            }
        }
    }

    /// Drops everything under a key, and tells how many packets that was.
    pub(super) fn discard(&mut self, key: HoldKey) -> usize {
        let waiting = self.waiting.remove(&key).unwrap_or_default();
        let count = waiting.len();
        self.give_up(waiting);
        count
    }

    /// Drops everything.
    pub(super) fn discard_all(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.give_up(waiting.into_values().flatten());
        self.retry();
    }

    /// Tries again to tell the kernel of what was dropped, and says how many packets are left.
    pub(super) fn retry(&mut self) -> usize {
        let again = std::mem::take(&mut self.still_counted);
        self.drop_counted(again);
        self.still_counted.len()
    }

    /// Forgets a device that does not work, and what came out of it: its counts are to be reset.
    pub(super) fn lose(&mut self) {
        self.waiting.clear();
        self.still_counted.clear();
        self.device = None;
    }

    /// A device again, after one was lost. It holds nothing until the gates know it.
    pub(super) fn reopen(&mut self) -> Result<(), RunError> {
        self.lose();
        self.device = Some(HoldDevice::open(&self.name)?);
        Ok(())
    }

    /// Takes the device away.
    pub(super) fn close(&mut self) -> Result<(), RunError> {
        self.lose();
        Ok(HoldDevice::remove(&self.name)?)
    }

    fn give_up(&mut self, packets: impl IntoIterator<Item = Waiting>) {
        let ended = |Waiting { since, held }| {
            metrics::hold_ended("dropped", since.elapsed());
            held
        };
        self.drop_counted(packets.into_iter().map(ended));
    }

    /// Through the device again, so that the kernel's count falls.
    fn drop_counted(&mut self, packets: impl IntoIterator<Item = Held>) {
        let Some(device) = &self.device else { return };
        for held in packets {
            if let Err(error) = device.discard(&held) {
                tracing::debug!(%error, "a held packet was dropped, and is still counted as held");
                self.still_counted.push(held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use handfast_layout::{HoldMeta, Hook};

    use super::*;

    /// Runs in a network namespace of its own, which ends with the thread.
    fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        let run = || {
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace: {errno}");
                return;
            }
            if !std::path::Path::new("/dev/net/tun").exists() {
                eprintln!("skipped: no /dev/net/tun");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
        };
        std::thread::spawn(run).join().unwrap();
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.unwrap().success(), "ip {arguments}");
    }

    fn held() -> Held {
        let mut bytes = vec![0; 10];
        let meta = HoldMeta {
            hook: Hook::ToTunnel,
            discard: false,
            endpoint: 7,
            ticket: 9,
        };
        bytes.extend(meta.to_bytes());
        bytes.extend([8, 0]);
        bytes.extend([
            0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        handfast_bpf::Frame::parse(&bytes).unwrap().keep()
    }

    #[test]
    fn what_the_kernel_could_not_be_told_is_told_later() {
        alone(|| async {
            let mut park = Park::open("hfpark0").unwrap();
            ip("link set hfpark0 down");
            let released = park.keep(held());
            park.release(released);
            let discarded = park.keep(held());
            assert_eq!(park.discard(discarded), 1);
            assert_eq!(park.retry(), 2, "the device is down");
            ip("link set hfpark0 up");
            assert_eq!(park.retry(), 0);
        });
    }

    #[test]
    fn a_device_that_is_lost_is_made_again() {
        alone(|| async {
            let mut park = Park::open("hfpark0").unwrap();
            let first = park.ifindex();
            assert!(park.is_there());
            let key = park.keep(held());
            ip("link del hfpark0");
            assert!(!park.is_there());
            park.lose();
            let quiet = tokio::time::timeout(Duration::from_millis(50), park.receive()).await;
            assert!(quiet.is_err(), "without a device there is nothing to hear");
            park.reopen().unwrap();
            assert!(park.is_there() && park.ifindex() != first);
            assert_eq!(park.discard(key), 0, "its counts begin anew");
        });
    }
}
