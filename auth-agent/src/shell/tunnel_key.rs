//! That each end of a session holds the tunnel key that it claims: tags made and checked.

use handfast_encrypt::PublicKey;
use zeroize::Zeroizing;

use super::agent::Agent;
use crate::core::{ConnId, Event};
use crate::proof::{NodeKey, check_tunnel_tag, tunnel_tag};
use crate::wire::Frame;

impl Agent {
    /// Shows the peer that the key in our Hello is ours. Without a connection, or for a key that cannot be anybody's,
    /// nothing is sent: the peer installs no tunnel.
    pub(super) fn send_tunnel_key(
        &mut self,
        conn: ConnId,
        id: &str,
        own_key: [u8; 32],
        peer_key: [u8; 32],
    ) {
        let ours = self.node.spiffe_id.to_string();
        let agreed = self.agree(own_key, peer_key);
        let (Some(open), Some(agreed)) = (self.net.get(conn), agreed) else {
            return;
        };
        let maker = NodeKey {
            node_id: &ours,
            tunnel_key: &own_key,
        };
        let other = NodeKey {
            node_id: id,
            tunnel_key: &peer_key,
        };
        match tunnel_tag(&open.exporter, &agreed, maker, other) {
            Ok(tag) => self.net.send(conn, &Frame::TunnelKey { tag }),
            Err(error) => tracing::warn!(%error, peer = id, "our tunnel key cannot be shown"),
        }
    }

    /// Whether the peer holds the key in its Hello.
    pub(super) fn check_tunnel_key(
        &self,
        conn: ConnId,
        id: &str,
        own_key: [u8; 32],
        peer_key: [u8; 32],
        tag: &[u8; 32],
    ) -> Option<Event> {
        let ours = self.node.spiffe_id.to_string();
        let open = self.net.get(conn)?;
        let maker = NodeKey {
            node_id: id,
            tunnel_key: &peer_key,
        };
        let other = NodeKey {
            node_id: &ours,
            tunnel_key: &own_key,
        };
        let agreed = self.agree(own_key, peer_key);
        let held = agreed.is_some_and(|agreed| {
            check_tunnel_tag(&open.exporter, &agreed, maker, other, tag).is_ok_and(|right| right)
        });
        Some(Event::TunnelKeyChecked { conn, held })
    }

    /// Nothing where our key is none of ours any more, or the other's none at all.
    fn agree(&self, own: [u8; 32], peer: [u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let tunnel = self.tunnels.with_key(&PublicKey::new(own))?;
        tunnel.agree(&PublicKey::new(peer))
    }
}
