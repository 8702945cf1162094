//! The tunnel, as the agent's loop sees it: what the core wants of it, what the worker needs, and which way peers'
//! packets go.

use std::net::SocketAddr;

use handfast_encrypt::{Device, Health, Peer, PresharedKey, PublicKey};
use ipnet::IpNet;

use super::RunError;
use super::agent::Agent;
use super::tunnel_worker::Outcome;
use super::tunnels::Slot;
use crate::core::{ConnId, Event, PeerNumber};
use crate::proof::{NodeKey, tunnel_psk};

/// A tunnel that is wanted.
pub(super) struct TunnelTo {
    pub(super) peer: PeerNumber,
    pub(super) id: String,
    pub(super) own_key: PublicKey,
    pub(super) key: PublicKey,
    pub(super) endpoint: SocketAddr,
    pub(super) prefixes: Vec<IpNet>,
}

impl Agent {
    pub(super) fn install_tunnel(&self, conn: ConnId, to: TunnelTo) -> Result<(), RunError> {
        let open = self.net.get(conn).ok_or(RunError::SessionGone)?;
        let ours = NodeKey {
            node_id: &self.node.spiffe_id.to_string(),
            tunnel_key: to.own_key.as_bytes(),
        };
        let theirs = NodeKey {
            node_id: &to.id,
            tunnel_key: to.key.as_bytes(),
        };
        let secret = tunnel_psk(&open.exporter, ours, theirs)?;
        let peer = Peer {
            number: to.peer.0,
            public_key: to.key,
            preshared_key: PresharedKey::new(secret),
            endpoint: to.endpoint,
            prefixes: to.prefixes,
        };
        self.tunnels.install(conn, to.peer, peer, to.own_key)
    }

    /// What the worker has done, or needs.
    pub(super) async fn hear_tunnel(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Installed(conn) => self.feed(Event::TunnelInstalled { conn }).await,
            Outcome::NotInstalled(conn, error) => {
                self.alarm(format!("tunnel: {error}"));
                self.feed(Event::TunnelFailed { conn }).await;
            }
            Outcome::NotRemoved(peer, error) => {
                self.alarm(format!("tunnel of peer {peer} is not removed yet: {error}"));
            }
            Outcome::Moved => self.retry_routes().await,
            Outcome::Guard(device, done) => {
                // Whoever waited in vain takes the device away again.
                let _ = done.send(self.guard_tunnel(&device));
            }
            Outcome::Unguard(device, done) => {
                let _ = done.send(self.gates.detach_tunnel(device.index));
            }
            Outcome::Health(slot, health) => self.hear_health(slot, health).await,
            Outcome::Key(key, port) => {
                let key = *key.as_bytes();
                self.feed(Event::TunnelKey { key, port }).await;
            }
            Outcome::Stuck(peers) => self.renew_sessions(peers).await,
            Outcome::Trouble(error) => self.alarm(format!("tunnel: {error}")),
        }
    }

    fn guard_tunnel(&self, device: &Device) -> Result<(), RunError> {
        self.gates.attach_tunnel(device.index)
    }

    async fn hear_health(&mut self, slot: Slot, health: Health) {
        match health {
            Health::Good => {}
            Health::Lost { reason } => {
                self.tunnels_unrestored.remove(&slot);
                self.alarm(format!("tunnel lost: {reason}"));
            }
            Health::Replaced { device } => {
                self.tunnels_unrestored.insert(slot);
                self.alarm(format!("tunnel device {} was made anew", device.name));
                self.retry_tunnels().await;
            }
            Health::Mended { what } => self.alarm(format!("tunnel: {what}")),
        }
    }

    /// Until devices that were made anew work.
    pub(super) async fn retry_tunnels(&mut self) {
        for slot in self.tunnels_unrestored.clone() {
            match self.restore_tunnel(slot).await {
                Ok(()) => drop(self.tunnels_unrestored.remove(&slot)),
                Err(error) => self.alarm(format!("tunnel: {error}")),
            }
        }
    }

    /// Gates first: nothing passes a device that has none.
    async fn restore_tunnel(&mut self, slot: Slot) -> Result<(), RunError> {
        let Some(tunnel) = self.tunnels.standing().devices.remove(&slot) else {
            return Ok(());
        };
        self.guard_tunnel(&tunnel.device())?;
        tunnel.up().await?;
        self.apply_nodes().await
    }
}
