//! Peers that are to be heard under new keys before anybody counts on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use handfast_encrypt::PublicKey;
use tokio::time::Instant;

use super::super::RunError;
use super::super::tunnel_worker::Outcome;
use super::super::tunnels::{Place, Places, Slot};
use super::{LOOK_SOON, Work};
use crate::core::{ConnId, PeerNumber};

/// How long a peer may take to answer under its new key.
const ANSWER: Duration = Duration::from_secs(20);
/// How long until it is first called again; longer each time, up to the second.
const CALL_AGAIN: Duration = Duration::from_millis(400);
const CALL_AGAIN_AT_MOST: Duration = Duration::from_secs(2);
/// Who would be the first to speak through a first tunnel waits so long for the peer to have its end. A peer that had a
/// tunnel to this node before, and had not heard that it was gone, speaks first itself, and must not be talked over.
const PEER_READY: Duration = Duration::from_secs(3);

/// A peer that is to be heard under new keys before anybody is told that it can be reached. One of the two nodes speaks
/// first, since handshakes that cross undo each other (see [`Tunnel::shakes_hands`](handfast_encrypt::Tunnel)).
///
/// Of the first tunnel of two nodes only who speaks first waits for the answer, and is called for by
/// [`Order::Call`](super::super::tunnel_worker::Order) as soon as the other has installed it. Where a tunnel takes over
/// from another, both wait: who was called can send only when the caller's first packet has come.
pub(super) struct Call {
    conn: ConnId,
    pub(super) place: Place,
    /// This node speaks first; the other one is waited for.
    calls: bool,
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl Call {
    /// Through a first tunnel.
    pub(super) fn first(conn: ConnId, place: Place, calls: bool) -> Self {
        Self {
            next: Instant::now() + PEER_READY,
            ..Self::again(conn, place, calls)
        }
    }

    /// Through a tunnel that takes over from another; to be called at once.
    pub(super) fn again(conn: ConnId, place: Place, calls: bool) -> Self {
        let since = Instant::now();
        Self {
            conn,
            place,
            calls,
            since,
            next: since + CALL_AGAIN,
            pause: CALL_AGAIN,
        }
    }

    /// Longer each time: a call that comes before the answer to the last one undoes it.
    fn put_off(&mut self) {
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(CALL_AGAIN_AT_MOST);
    }
}

impl Work {
    /// Whether this node is the one to speak first under new keys. A node whose key is the same hosts the other's, and
    /// is the only one that knows on which port. Where both keys are new, one of the two does.
    pub(super) fn calls(&self, places: &Places, place: Place, own: PublicKey) -> bool {
        let key = place.key();
        if places.active == place {
            return own < key;
        }
        let before = self.device(places.active.slot);
        let ours_changed = before.is_ok_and(|device| device.public_key() != own);
        places.active.key() != key && (!ours_changed || own < key)
    }

    /// Waits for a peer's answer, and looks for it soon.
    pub(super) fn await_answer(&mut self, call: Call) {
        self.calling.retain(|other| other.place != call.place);
        self.calling.push(call);
        self.look_soon();
    }

    fn look_soon(&mut self) {
        self.pause = LOOK_SOON;
        self.look_at = self.look_at.min(Instant::now() + self.pause);
    }

    /// The peer has its end by now: what was said before was said in vain.
    pub(super) async fn call(&mut self, peer: PeerNumber) -> Result<(), RunError> {
        let Some(place) = self.keys.get(peer).map(|places| places.newest()) else {
            return Ok(());
        };
        let device = self.device(place.slot)?;
        let waits = |call: &&mut Call| call.place == place && call.calls;
        let Some(call) = self.calling.iter_mut().find(waits) else {
            return Ok(());
        };
        call.put_off();
        device.rouse(place.key()).await?;
        self.look_soon();
        Ok(())
    }

    /// Who has answered, and who is called again. Each device is asked once, whoever waits for it.
    pub(super) async fn listen(&mut self) {
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
                call.put_off();
                outcome = device.rouse(key).await.map_err(RunError::from);
            }
            match outcome {
                Ok(()) => self.calling.push(call),
                Err(error) => self.say(Outcome::NotInstalled(call.conn, error)).await,
            }
        }
    }
}
