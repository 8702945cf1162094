//! What goes: peers, their former keys, and devices without any.

use std::time::Duration;

use tokio::time::Instant;

use super::super::RunError;
use super::super::tunnel_worker::Outcome;
use super::super::tunnels::{Place, Places, Slot};
use super::{RETRY, Work};
use crate::core::PeerNumber;

impl Work {
    pub(in crate::shell) fn linger(
        &mut self,
        peer: PeerNumber,
        former: Option<Place>,
        time: Duration,
    ) {
        let due = Instant::now() + time;
        self.lingering
            .extend(former.map(|former| (due, peer, former)));
    }

    /// Keys whose time is over leave, and devices without any.
    pub(super) async fn let_go(&mut self) {
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
    pub(in crate::shell) async fn take_out(
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
    pub(in crate::shell) async fn close_empty(&mut self) {
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
    pub(super) async fn remove_leaving(&mut self) {
        while let Some(peer) = self.leaving.first().copied() {
            if let Err(error) = self.remove(peer).await {
                tracing::warn!(%peer, %error, "a tunnel is still not removed");
                return;
            }
        }
    }

    pub(super) async fn remove(&mut self, peer: PeerNumber) -> Result<(), RunError> {
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
}
