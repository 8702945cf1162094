//! What is done to tunnel devices, one order after the other.
//!
//! A session's installation goes to the device whose key its Hello said. Where that device has the peer already
//! under another key, the peer's key has changed: the new one is hosted on the second device, which is opened for it.
//! When both nodes are ready the peer's packets move there, and the former key leaves after a while. A device without
//! peers goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use handfast_encrypt::{PublicKey, StaticKey, Tunnel};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::RunError;
use super::tunnel_worker::{Installation, Order, Outcome, Rotation, Standing};
use super::tunnels::{Place, Places, Slot, TunnelKeys};
use crate::core::{ConnId, PeerNumber};

/// How often a removal that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// How often is looked whether a peer answers, or a key's time is over.
const LOOK: Duration = Duration::from_millis(50);
/// How long a peer's former key stays: for packets on the way, and for a peer that is slow to follow.
const LINGER: Duration = Duration::from_secs(5);
/// The same where only the device changes: shorter than WireGuard waits before it speaks by itself (10 s), since the
/// peer answers where it last heard from.
pub(super) const LINGER_MOVED: Duration = Duration::from_secs(2);
/// How long a peer may take to answer under its new key, and how long until it is first called again.
const ANSWER: Duration = Duration::from_secs(20);
const CALL_AGAIN: Duration = Duration::from_millis(400);
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
    lingering: Vec<(Instant, PeerNumber, Place)>,
    /// Waits for the second device to become free.
    pub(super) wanted: Option<oneshot::Sender<Result<Rotation, RunError>>>,
    pub(super) published: watch::Sender<Standing>,
    outcomes: mpsc::Sender<Outcome>,
}

/// A peer that is to be heard under new keys before anybody is told that it can be reached: on both nodes, since
/// the one that was called can send only when the caller's first packet has come.
struct Call {
    conn: ConnId,
    place: Place,
    /// This node speaks first; the other one is waited for.
    calls: bool,
    since: Instant,
    next: Instant,
    pause: Duration,
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
        let mut look = every(LOOK);
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
                _ = look.tick(), if !self.calling.is_empty() || !self.lingering.is_empty() => {
                    if !self.calling.is_empty() {
                        self.listen().await;
                    }
                    self.let_go().await;
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

    /// True if it stands; false if that is not known before the peer has answered.
    async fn install(&mut self, order: Installation) -> Result<bool, RunError> {
        let (number, key) = (order.number, order.peer.public_key);
        if let Some(holder) = self.keys.holder(key, number) {
            return Err(RunError::Refused(format!(
                "peer {number} has the tunnel key {key} of peer {holder}"
            )));
        }
        // Running keys of a session that was cut go before the same key comes again.
        if self.leaving.contains(&number) {
            self.remove(number).await?;
        }
        let place = Place::new(self.slot_for(number, key, order.own_key).await?, key);
        let device = self.device(place.slot)?;
        let before = self.keys.get(number);
        let known = before.is_some_and(|places| places.all().any(|there| there == place));
        let places = match before {
            Some(places) if places.active != place => places.toward(place),
            Some(places) => Places {
                coming: false,
                ..places
            },
            None => Places::only(place),
        };
        self.keys.set(number, places)?;
        self.lingering.retain(|(_, _, there)| *there != place);
        if let Err(error) = device.install(order.peer).await {
            // It may be in the device all the same.
            match before {
                None => drop(self.leaving.insert(number)),
                Some(_) if !known => self.lingering.push((Instant::now(), number, place)),
                Some(_) => {}
            }
            return Err(error.into());
        }
        // This one has yet to take over.
        self.behind.remove(&number);
        // The first tunnel to a peer may take its time: packets wait for it. One that takes over must not.
        if !known && places.active != place {
            let calls = self.calls(&places, key, order.own_key);
            if calls {
                device.rouse(key).await?;
            }
            let (conn, since) = (order.conn, Instant::now());
            self.calling.retain(|call| call.place != place);
            self.calling.push(Call {
                conn,
                place,
                calls,
                since,
                next: since + CALL_AGAIN,
                pause: CALL_AGAIN,
            });
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether this node is the one to speak first under new keys. A node whose key is the same hosts the other's, and
    /// is the only one that knows on which port. Where both keys change, one of the two does.
    fn calls(&self, places: &Places, key: PublicKey, own: PublicKey) -> bool {
        let before = self.device(places.active.slot);
        let ours_changed = before.is_ok_and(|device| device.public_key() != own);
        places.active.key() != key && (!ours_changed || own < key)
    }

    /// Where an installation goes; makes room there, and opens the second device where it takes one.
    async fn slot_for(
        &mut self,
        number: PeerNumber,
        key: PublicKey,
        own: PublicKey,
    ) -> Result<Slot, RunError> {
        let fits = |device: &Arc<dyn Tunnel>| device.public_key() == own;
        let Some(places) = self.keys.get(number) else {
            let order = [self.keys.current(), self.keys.current().other()];
            let mut slots = order.into_iter();
            let slot = slots.find(|slot| self.device(*slot).is_ok_and(|device| fits(&device)));
            return slot.ok_or_else(stale_key);
        };
        let there = places.all().find(|place| {
            place.key() == key && self.device(place.slot).is_ok_and(|device| fits(&device))
        });
        if let Some(place) = there {
            return Ok(place.slot);
        }
        let slot = places.active.slot.other();
        if let Some(former) = places.other {
            self.take_out(number, former).await?;
        }
        match self.device(slot) {
            Ok(device) if fits(&device) => return Ok(slot),
            Ok(_) => return Err(stale_key()),
            Err(_) => {}
        }
        let beside = self.device(places.active.slot)?;
        if !fits(&beside) {
            return Err(stale_key());
        }
        if self.open(slot, &beside, StaticKey::Same).await? {
            return Ok(slot);
        }
        // One device is all that this kind has.
        self.remove(number).await?;
        Ok(beside_slot(&self.published.borrow(), &beside).unwrap_or_default())
    }

    /// Opens the device beside one; false if this kind has none.
    pub(super) async fn open(
        &mut self,
        slot: Slot,
        beside: &Arc<dyn Tunnel>,
        key: StaticKey,
    ) -> Result<bool, RunError> {
        let Some(second) = beside.beside(key).await? else {
            return Ok(false);
        };
        let raised = async {
            self.wait_for(|done| Outcome::Guard(second.device(), done))
                .await?;
            Ok(second.up().await?)
        };
        if let Err(error) = raised.await {
            let guarded = second.device();
            second.detach().await?;
            let gone = self.wait_for(|done| Outcome::Unguard(guarded, done)).await;
            return gone.and(Err(error));
        }
        self.heed(slot, &second);
        self.published.send_modify(|standing| {
            standing.devices.insert(slot, second);
        });
        Ok(true)
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

    pub(super) fn linger(&mut self, peer: PeerNumber, former: Option<Place>, time: Duration) {
        let due = Instant::now() + time;
        self.lingering
            .extend(former.map(|former| (due, peer, former)));
    }

    /// Who has answered, and who is called again. Each device is asked once, whoever waits for it.
    async fn listen(&mut self) {
        let mut heard = BTreeMap::new();
        let devices = self.published.borrow().devices.clone();
        for (slot, device) in devices {
            let peers = device.status().await.map(|status| status.peers);
            let peers = peers.unwrap_or_default().into_iter();
            let answered = peers.filter(|peer| peer.last_handshake.is_some());
            heard.insert(slot, answered.map(|peer| peer.public_key).collect());
        }
        self.answer_calls(&heard).await;
    }

    async fn answer_calls(&mut self, heard: &BTreeMap<Slot, BTreeSet<PublicKey>>) {
        for mut call in std::mem::take(&mut self.calling) {
            let key = call.place.key();
            let Ok(device) = self.device(call.place.slot) else {
                continue;
            };
            let keys = heard.get(&call.place.slot);
            if keys.is_some_and(|keys| keys.contains(&key)) {
                self.say(Outcome::Installed(call.conn)).await;
                continue;
            }
            let mut outcome = Ok(());
            if call.since.elapsed() > ANSWER {
                outcome = Err(RunError::Refused(format!(
                    "the peer does not answer under its new tunnel key {key}"
                )));
            } else if call.calls && call.next <= Instant::now() {
                // Longer each time: a call that comes before the answer to the last one undoes it.
                call.pause *= 2;
                call.next = Instant::now() + call.pause;
                outcome = device.rouse(key).await.map_err(RunError::from);
            }
            match outcome {
                Ok(()) => self.calling.push(call),
                Err(error) => self.say(Outcome::NotInstalled(call.conn, error)).await,
            }
        }
    }

    /// Keys whose time is over leave, and devices without any.
    async fn let_go(&mut self) {
        let now = Instant::now();
        let over: Vec<_> = self
            .lingering
            .extract_if(.., |(due, ..)| *due <= now)
            .collect();
        if over.is_empty() {
            return;
        }
        for (_, peer, place) in over {
            if let Err(error) = self.take_out(peer, place).await {
                tracing::warn!(%peer, %error, "a former tunnel key is not removed yet");
                self.linger(peer, Some(place), RETRY);
            }
        }
        self.close_empty().await;
    }

    /// Takes a peer out of the place that is not the active one.
    pub(super) async fn take_out(
        &mut self,
        peer: PeerNumber,
        place: Place,
    ) -> Result<(), RunError> {
        self.calling.retain(|call| call.place != place);
        let Some(places) = self.keys.get(peer) else {
            return Ok(());
        };
        if places.other != Some(place) {
            return Ok(());
        }
        if let Ok(device) = self.device(place.slot) {
            device.remove(place.key()).await?;
        }
        let other = None;
        Ok(self.keys.set(peer, Places { other, ..places })?)
    }

    /// At rest there is one device. A rotation that waited for the second one goes on.
    pub(super) async fn close_empty(&mut self) {
        let devices = self.published.borrow().devices.clone();
        let (current, other) = (self.keys.current(), self.keys.current().other());
        let (Some(first), Some(second)) = (devices.get(&current), devices.get(&other)) else {
            return self.go_on_rotating().await;
        };
        let mut closing = (!self.keys.in_use(other)).then_some(other);
        // Everybody has moved to where a peer's key was hosted: that is the tunnel from now on.
        let same = first.public_key() == second.public_key();
        if same && closing.is_none() && !self.keys.in_use(current) {
            closing = Some(current);
        }
        let Some(slot) = closing else { return };
        if let Err(error) = self.close(slot).await {
            self.say(Outcome::Trouble(error)).await;
            return;
        }
        self.go_on_rotating().await;
    }

    async fn close(&mut self, slot: Slot) -> Result<(), RunError> {
        let device = self.device(slot)?;
        if slot == self.keys.current() {
            self.make_current(slot.other()).await?;
        }
        // The device first: gates that have gone before it would leave it open.
        let gone = device.device();
        device.detach().await?;
        self.published.send_modify(|standing| {
            standing.devices.remove(&slot);
        });
        self.wait_for(|done| Outcome::Unguard(gone, done)).await
    }

    /// Until one fails again, which the others would too, and orders wait.
    async fn remove_leaving(&mut self) {
        while let Some(peer) = self.leaving.first().copied() {
            if let Err(error) = self.remove(peer).await {
                tracing::warn!(%peer, %error, "a tunnel is still not removed");
                return;
            }
        }
    }

    async fn remove(&mut self, peer: PeerNumber) -> Result<(), RunError> {
        if let Some(places) = self.keys.get(peer) {
            for place in places.all() {
                self.calling.retain(|call| call.place != place);
                if let Ok(device) = self.device(place.slot) {
                    device.remove(place.key()).await?;
                }
            }
            self.keys.remove(peer)?;
        }
        self.behind.remove(&peer);
        self.lingering.retain(|(_, of, _)| *of != peer);
        self.leaving.remove(&peer);
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

fn beside_slot(standing: &Standing, device: &Arc<dyn Tunnel>) -> Option<Slot> {
    let mut devices = standing.devices.iter();
    devices
        .find(|(_, there)| Arc::ptr_eq(there, device))
        .map(|(slot, _)| *slot)
}

/// The session was opened under a key that this node has given up, or that it cannot host: the next one is right.
fn stale_key() -> RunError {
    RunError::Refused(
        "this node's tunnel key has changed since the session began; the next session has the new one"
            .into(),
    )
}
