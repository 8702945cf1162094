//! New keys for this node's tunnel: a second device with a new static key where the kind has one, else in place.
//!
//! One change at a time: it waits until every peer is on one device, so that the other place is free.

use handfast_encrypt::{PublicKey, StaticKey};
use tokio::sync::oneshot;

use super::RunError;
use super::tunnel_work::{LINGER_MOVED, Work};
use super::tunnel_worker::{Outcome, Rotation};
use super::tunnels::{Place, Places, Slot};
use crate::core::PeerNumber;

impl Work {
    pub(super) async fn make_current(&mut self, slot: Slot) -> Result<(), RunError> {
        let device = self.device(slot)?;
        self.keys.set_current(slot)?;
        let (key, port) = (device.public_key(), device.port());
        self.published
            .send_modify(|standing| standing.current = device);
        self.say(Outcome::Key(key, port)).await;
        Ok(())
    }

    pub(super) async fn rotate(&mut self, reply: oneshot::Sender<Result<Rotation, RunError>>) {
        let busy = |why: &str| Err(RunError::Refused(format!("{why}; nothing was changed")));
        if self.wanted.is_some() {
            let _ = reply.send(busy("a change of keys waits already"));
            return;
        }
        let devices = self.published.borrow().devices.clone();
        if let [first, second] = devices.values().collect::<Vec<_>>()[..]
            && first.public_key() != second.public_key()
        {
            let _ = reply.send(busy(
                "the last change of keys is not over: peers have yet to follow (handfast tunnel status)",
            ));
            return;
        }
        self.wanted = Some(reply);
        if let Err(error) = self.gather().await {
            self.answer(Err(error));
        }
        self.close_empty().await;
    }

    /// Brings every peer to the current device, so that the other one is free. Its key is the same there, and the peer
    /// answers where it hears from: nothing has to be said.
    async fn gather(&mut self) -> Result<(), RunError> {
        let current = self.keys.current();
        let mut moved = false;
        for (peer, places) in self.keys.all().clone() {
            let (from, key) = (places.active, places.active.key());
            if from.slot == current {
                continue;
            }
            if let Some(former) = places.other {
                self.take_out(peer, former).await?;
            }
            let Some(installed) = self.device(from.slot)?.installed(key).await else {
                continue;
            };
            let active = Place::new(current, key);
            self.keys.set(peer, Places::only(from).toward(active))?;
            self.device(current)?.install(installed).await?;
            self.keys.set(peer, Places::moved(active, Some(from)))?;
            self.linger(peer, Some(from), LINGER_MOVED);
            moved = true;
        }
        if moved {
            self.publish();
            self.say(Outcome::Moved).await;
        }
        Ok(())
    }

    pub(super) async fn go_on_rotating(&mut self) {
        if self.wanted.is_none() {
            return;
        }
        let begun = self.begin_rotation().await;
        self.answer(begun);
    }

    async fn begin_rotation(&mut self) -> Result<Rotation, RunError> {
        let (current, other) = (self.keys.current(), self.keys.current().other());
        let first = self.device(current)?;
        if self.open(other, &first, StaticKey::Fresh).await? {
            self.make_current(other).await?;
            return Ok(Rotation::NewKey(self.device(other)?.public_key()));
        }
        let unable = first.rotate().await?;
        let unable = self.numbers(&unable);
        // A new session brings them new keys.
        if !unable.is_empty() {
            self.say(Outcome::Stuck(unable.clone())).await;
        }
        Ok(Rotation::InPlace(unable))
    }

    fn answer(&mut self, outcome: Result<Rotation, RunError>) {
        if let Some(reply) = self.wanted.take() {
            // Whoever asked may have gone.
            let _ = reply.send(outcome);
        }
    }

    pub(super) async fn look_for_stuck(&mut self) {
        let Ok(device) = self.device(self.keys.current()) else {
            return;
        };
        match device.stuck().await {
            Ok(stuck) if !stuck.is_empty() => {
                let stuck = self.numbers(&stuck);
                self.say(Outcome::Stuck(stuck)).await;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "how old the tunnel's keys are is not known"),
        }
    }

    fn numbers(&self, keys: &[PublicKey]) -> Vec<PeerNumber> {
        let peers = self.keys.all().iter();
        let named = peers.filter(|(_, places)| keys.contains(&places.active.key()));
        named.map(|(peer, _)| *peer).collect()
    }
}
