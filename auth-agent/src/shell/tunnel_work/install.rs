//! A session's installation: to which device it goes, and a second one where it takes one.

use std::sync::Arc;

use handfast_encrypt::{PublicKey, StaticKey, Tunnel};
use tokio::time::Instant;

use super::super::RunError;
use super::super::tunnel_worker::{Installation, Outcome, Standing};
use super::super::tunnels::{Place, Places, Slot};
use super::Work;
use super::calls::Call;
use crate::core::PeerNumber;

impl Work {
    /// True if it stands; false if that is not known before the peer has answered.
    pub(super) async fn install(&mut self, order: Installation) -> Result<bool, RunError> {
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
        let unheard = !known || self.calling.iter().any(|call| call.place == place);
        let takes_over = places.active != place;
        let calls = self.calls(&places, place, order.own_key);
        // Of a first tunnel who is called need not wait: packets may come to it when the caller lets them.
        if !unheard || !device.shakes_hands() || !(takes_over || calls) {
            return Ok(true);
        }
        if takes_over && calls {
            device.rouse(key).await?;
        }
        self.await_answer(match takes_over {
            true => Call::again(order.conn, place, calls),
            false => Call::first(order.conn, place, calls),
        });
        Ok(false)
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
    pub(in crate::shell) async fn open(
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
