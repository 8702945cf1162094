//! What is done to tunnel devices, one order after the other.
//!
//! A session's installation goes to the device whose key its Hello said. Where that device has the peer already
//! under another key, the peer's key has changed: the new one is hosted on the second device, which is opened for it.
//! When both nodes are ready the peer's packets move there, and the former key leaves after a while. A device without
//! peers goes.

mod calls;
mod install;
mod leave;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use handfast_encrypt::Tunnel;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::RunError;
use super::tunnel_worker::{Order, Outcome, Rotation, Standing};
use super::tunnels::{Place, Places, Slot, TunnelKeys};
use crate::core::PeerNumber;
use calls::Call;

/// How often a removal that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// How often is looked whether a peer answers, or a key's time is over: soon at first, since packets wait for it.
const LOOK_SOON: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(50);
/// How long a peer's former key stays: for packets on the way, and for a peer that is slow to follow.
const LINGER: Duration = Duration::from_secs(5);
/// The same where only the device changes: shorter than WireGuard waits before it speaks by itself (10 s), since the
/// peer answers where it last heard from.
pub(super) const LINGER_MOVED: Duration = Duration::from_secs(2);
/// How long the agent's loop may take to put gates on a device.
const GATES: Duration = Duration::from_secs(10);
/// How often is asked which peers only a new session can give new keys.
const STUCK: Duration = Duration::from_secs(60);

pub(super) struct Work {
    pub(super) keys: TunnelKeys,
    /// To be removed, and not removed yet.
    leaving: BTreeSet<PeerNumber>,
    /// Peers whose newest session has taken over, and whose packets do not go by it yet.
    behind: BTreeSet<PeerNumber>,
    calling: Vec<Call>,
    /// When to look next, and how long after that again.
    look_at: Instant,
    pause: Duration,
    lingering: Vec<(Instant, PeerNumber, Place)>,
    /// Waits for the second device to become free.
    pub(super) wanted: Option<oneshot::Sender<Result<Rotation, RunError>>>,
    pub(super) published: watch::Sender<Standing>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Work {
    pub(super) fn new(
        keys: TunnelKeys,
        standing: &BTreeSet<PeerNumber>,
        published: watch::Sender<Standing>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let leaving = keys.all().keys().filter(|peer| !standing.contains(peer));
        Self {
            leaving: leaving.copied().collect(),
            keys,
            behind: BTreeSet::new(),
            calling: Vec::new(),
            look_at: Instant::now(),
            pause: LOOK,
            lingering: Vec::new(),
            wanted: None,
            published,
            outcomes,
        }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        for (slot, device) in self.published.borrow().devices.clone() {
            self.heed(slot, &device);
        }
        let mut again = every(RETRY);
        let mut stuck = every(STUCK);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.carry_out(order).await,
                    None => return,
                },
                _ = again.tick() => {
                    self.activate_behind().await;
                    self.remove_leaving().await;
                    self.close_empty().await;
                }
                () = sleep_until(self.look_at), if !self.calling.is_empty() || !self.lingering.is_empty() => {
                    let begun = Instant::now();
                    if !self.calling.is_empty() {
                        self.listen().await;
                    }
                    self.let_go().await;
                    // A device with many peers is not read all the time.
                    self.pause = (self.pause * 2).min(LOOK).max(begun.elapsed() * 4);
                    self.look_at = Instant::now() + self.pause;
                }
                _ = stuck.tick() => self.look_for_stuck().await,
            }
            self.publish();
            if self.outcomes.is_closed() {
                return;
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Install(order) => {
                let conn = order.conn;
                match self.install(*order).await {
                    Ok(true) => self.say(Outcome::Installed(conn)).await,
                    // The answer to a call decides.
                    Ok(false) => {}
                    Err(error) => self.say(Outcome::NotInstalled(conn, error)).await,
                }
            }
            Order::Call(peer) => {
                if let Err(error) = self.call(peer).await {
                    self.say(Outcome::Trouble(error)).await;
                }
            }
            Order::Activate(peer) => {
                self.behind.insert(peer);
                self.activate_behind().await;
            }
            Order::Remove(peer) => {
                self.leaving.insert(peer);
                if let Err(error) = self.remove(peer).await {
                    self.say(Outcome::NotRemoved(peer, error)).await;
                }
            }
            Order::Rotate(reply) => self.rotate(reply).await,
        }
    }

    /// Until each has worked: the peer gives up what it received with before.
    async fn activate_behind(&mut self) {
        for peer in self.behind.clone() {
            match self.activate(peer).await {
                Ok(()) => drop(self.behind.remove(&peer)),
                Err(error) => self.say(Outcome::Trouble(error)).await,
            }
        }
    }

    async fn activate(&mut self, peer: PeerNumber) -> Result<(), RunError> {
        let Some(places) = self.keys.get(peer) else {
            return Ok(());
        };
        let active = places.newest();
        self.device(active.slot)?.activate(active.key()).await?;
        let former = places.all().find(|place| *place != active);
        if former.is_none() {
            return Ok(());
        }
        self.keys.set(peer, Places::moved(active, former))?;
        self.linger(peer, former, LINGER);
        self.publish();
        self.say(Outcome::Moved).await;
        Ok(())
    }

    pub(super) fn device(&self, slot: Slot) -> Result<Arc<dyn Tunnel>, RunError> {
        let standing = self.published.borrow();
        let device = standing.devices.get(&slot).cloned();
        device.ok_or_else(|| RunError::Refused("that tunnel device is not there".into()))
    }

    pub(super) fn publish(&self) {
        self.published.send_if_modified(|standing| {
            let changed = standing.peers != *self.keys.all();
            standing.peers.clone_from(self.keys.all());
            changed
        });
    }

    /// Has the loop hear what happens to a device.
    fn heed(&self, slot: Slot, device: &Arc<dyn Tunnel>) {
        let mut health = device.watch();
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            while health.changed().await.is_ok() {
                let now = health.borrow_and_update().clone();
                if outcomes.send(Outcome::Health(slot, now)).await.is_err() {
                    return;
                }
            }
        });
    }

    pub(super) async fn say(&self, outcome: Outcome) {
        // A loop that hears nothing any more is at its end, and so is this.
        let _ = self.outcomes.send(outcome).await;
    }

    async fn wait_for(
        &self,
        wish: impl FnOnce(super::tunnel_worker::Done) -> Outcome,
    ) -> Result<(), RunError> {
        let (done, answer) = oneshot::channel();
        self.say(wish(done)).await;
        let late = || RunError::Refused("the gates of a tunnel device were not set in time".into());
        timeout(GATES, answer)
            .await
            .map_err(|_| late())?
            .map_err(|_| late())?
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
