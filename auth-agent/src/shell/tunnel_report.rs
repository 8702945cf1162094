//! How tunnels stand, for people and programs; and their wish for new keys.

use std::time::{Duration, SystemTime};

use handfast_encrypt::{Backend, PeerStatus};
use serde_json::Value;
use tokio::sync::oneshot;

use super::RunError;
use super::agent::Agent;
use super::requests::to_value;
use super::tunnel_worker::Rotation;
use crate::admin::{Answer, PeerInfo, RotationInfo};
use crate::core::{Event, PeerNumber};

impl Agent {
    /// Every peer, its session and its tunnel.
    pub(super) async fn peers(&self) -> Result<Vec<PeerInfo>, RunError> {
        let statuses = self.tunnels.statuses().await;
        let standing = self.tunnels.standing();
        let (kind, now, view) = (self.tunnel_kind(), self.clock.now(), self.view());
        let peers = view.peers.iter().map(|peer| {
            let places = standing.peers.get(&peer.number);
            let device = |slot| Some(standing.devices.get(&slot)?.device().name);
            let slot = places.map(|places| places.active.slot);
            let status = slot.and_then(|slot| statuses.get(&slot));
            let wire = places.zip(status).and_then(|(places, status)| {
                let key = places.active.key();
                status.peers.iter().find(|wire| wire.public_key == key)
            });
            let answers = slot.is_none() || status.is_some();
            let count = |counted: fn(&PeerStatus) -> u64| answers.then(|| wire.map_or(0, counted));
            let bound = peer.live.as_ref().filter(|live| live.activated);
            PeerInfo {
                name: peer.name.clone(),
                spiffe_id: peer.id.clone(),
                state: peer.connection.word().into(),
                epoch: peer.session.map_or(0, |session| session.current),
                lineage: (peer.lineage != 0).then(|| format!("{:016x}", peer.lineage)),
                prefixes: peer.prefixes.iter().map(ToString::to_string).collect(),
                expires_in_s: peer
                    .session
                    .and_then(|session| session.expires.checked_sub(now.boot))
                    .map(|left| left.as_secs()),
                kind: kind.into(),
                device: slot.and_then(device),
                other_device: places
                    .and_then(|places| places.other)
                    .and_then(|other| device(other.slot)),
                tunnel_answers: answers,
                tunnel_endpoint: wire.and_then(|w| w.endpoint).map(|e| e.to_string()),
                own_key: status.map(|status| status.public_key.to_string()),
                peer_key: places.map(|places| places.active.key().to_string()),
                bound: wire.map(|wire| wire.preshared),
                keys_age_s: bound.map(|live| now.boot.saturating_sub(live.since).as_secs()),
                last_handshake_s: wire
                    .and_then(|w| w.last_handshake)
                    .and_then(|at| SystemTime::now().duration_since(at).ok())
                    .map(|since: Duration| since.as_secs()),
                received_bytes: count(|wire| wire.received_bytes),
                sent_bytes: count(|wire| wire.sent_bytes),
                refused_packets: wire.and_then(|wire| wire.refused_packets),
                device_errors: status
                    .map(|status| status.losses.received_errors + status.losses.sent_errors),
                device_drops: status
                    .map(|status| status.losses.received_dropped + status.losses.sent_dropped),
            }
        });
        Ok(peers.collect())
    }

    pub(super) fn tunnel_kind(&self) -> &'static str {
        match self.tunnels.current().device().backend {
            Backend::Kernel | Backend::Userspace => "wireguard",
            Backend::Ipsec => "ipsec",
        }
    }

    /// Begins to change this node's keys. The worker says when that has begun; meanwhile the loop goes on, which it
    /// needs for it.
    pub(super) fn rotate_keys(&self, asker: oneshot::Sender<Answer>) {
        let begun = match self.tunnels.rotate() {
            Ok(begun) => begun,
            Err(error) => return drop(asker.send(Answer::Error(error.to_string()))),
        };
        let view = self.view();
        let named: Vec<(PeerNumber, String)> = view
            .peers
            .iter()
            .filter(|peer| peer.session.is_some())
            .map(|peer| (peer.number, peer.name.clone()))
            .collect();
        let kind = self.tunnel_kind();
        tokio::spawn(async move {
            let answer = match begun.await {
                Ok(Ok(rotation)) => rotation_info(kind, &named, &rotation),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(RunError::Refused("the agent is stopping".into())),
            };
            // The asker may have left.
            let _ = asker.send(match answer {
                Ok(value) => Answer::Value(value),
                Err(error) => Answer::Error(error.to_string()),
            });
        });
    }

    /// Sessions for peers whose keys nothing else can change.
    pub(super) async fn renew_sessions(&mut self, peers: Vec<PeerNumber>) {
        for peer in peers {
            self.feed(Event::RenewSession { peer }).await;
        }
    }
}

fn rotation_info(
    kind: &str,
    peers: &[(PeerNumber, String)],
    rotation: &Rotation,
) -> Result<Value, RunError> {
    let (new_key, unable) = match rotation {
        Rotation::NewKey(key) => (Some(key.to_string()), None),
        Rotation::InPlace(unable) => (None, Some(unable)),
    };
    let renewed = |peer: &PeerNumber| unable.is_none_or(|unable| unable.contains(peer));
    to_value(RotationInfo {
        kind: kind.into(),
        new_key,
        peers: peers.iter().map(|(_, name)| name.clone()).collect(),
        by_new_session: peers
            .iter()
            .filter(|(peer, _)| renewed(peer))
            .map(|(_, name)| name.clone())
            .collect(),
    })
}
