//! A plain model of WireGuard: peers by their pair of keys, preshared keys that are set in place, and handshakes whose
//! keys carry packets for three minutes.
//!
//! A node that changes its static key has a second device beside the first for a while: what is *coming* is installed
//! and takes packets, and becomes the one *in use* when the core says so.

use std::time::Duration;

use handfast_agent::core::PeerNumber;
use ipnet::IpNet;

use super::kernel::Kernel;

/// A handshake's keys are renewed after this, and dead after that.
const REKEY: Duration = Duration::from_secs(120);
pub const DEAD: Duration = Duration::from_secs(180);
/// A handshake is due when what was sent has not been answered for so long.
pub const UNANSWERED: Duration = Duration::from_secs(15);
/// How long what is not in use any more still takes packets.
pub const GRACE: Duration = Duration::from_secs(10);

/// One WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub id: String,
    /// This node's key, and the other's.
    pub own: [u8; 32],
    pub key: [u8; 32],
    /// Allowed IPs.
    pub prefixes: Vec<IpNet>,
    /// Which peer entry: one that was removed and made anew has lost its keys and what it had staged.
    pub instance: u64,
    /// The connection whose exporter gave the preshared key.
    pub session: u64,
    /// Newest last.
    pub handshakes: Vec<Handshake>,
    /// Since when the other end does not know the newest, and so answers nothing.
    pub unanswered: Option<Duration>,
}

/// Keys that both ends have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub number: u64,
    /// The connection whose exporter gave the preshared key.
    pub session: u64,
    /// True time.
    pub since: Duration,
}

/// What a kernel has toward one peer.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    pub in_use: Option<Tunnel>,
    pub coming: Option<Tunnel>,
    pub leaving: Option<(Tunnel, Duration)>,
    /// The session that was installed last, in place or beside: that one's tunnel is to take over.
    pub newest: u64,
}

impl Tunnel {
    /// The keys that packets leave with, and whether they should be renewed.
    pub fn keys(&self, at: Duration) -> Option<(Handshake, bool)> {
        let newest = self.handshakes.last().copied();
        let alive = newest.filter(|newest| at < newest.since + DEAD);
        let unanswered = self
            .unanswered
            .is_some_and(|since| at >= since + UNANSWERED);
        alive.map(|newest| (newest, unanswered || at >= newest.since + REKEY))
    }

    /// Whether it can read what was encrypted with these keys.
    pub fn knows(&self, keys: Handshake, at: Duration) -> bool {
        self.handshakes.contains(&keys) && at < keys.since + DEAD
    }

    pub fn shake(&mut self, keys: Handshake) {
        if self.handshakes.len() == 2 {
            self.handshakes.remove(0);
        }
        self.handshakes.push(keys);
        self.unanswered = None;
    }

    /// The other end could not read what came under these keys.
    pub fn unread(&mut self, keys: Handshake, at: Duration) {
        if self.handshakes.last() == Some(&keys) {
            self.unanswered.get_or_insert(at);
        }
    }

    fn is_of(&self, own: [u8; 32], key: [u8; 32]) -> bool {
        self.own == own && self.key == key
    }
}

impl Tunnels {
    pub fn all(&self) -> impl Iterator<Item = &Tunnel> {
        let leaving = self.leaving.iter().map(|(tunnel, _)| tunnel);
        self.in_use.iter().chain(&self.coming).chain(leaving)
    }

    /// Without what has had its grace.
    pub fn standing(&self, at: Duration) -> impl Iterator<Item = &Tunnel> {
        let leaving = self.leaving.iter().filter(move |(_, until)| *until >= at);
        let leaving = leaving.map(|(tunnel, _)| tunnel);
        self.in_use.iter().chain(&self.coming).chain(leaving)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Tunnel> {
        let leaving = self.leaving.iter_mut().map(|(tunnel, _)| tunnel);
        let (in_use, coming) = (self.in_use.iter_mut(), self.coming.iter_mut());
        in_use.chain(coming).chain(leaving)
    }
}

impl Kernel {
    /// Beside the one in use if it has other keys; in place if it has the same.
    pub fn install_tunnel(&mut self, peer: PeerNumber, tunnel: Tunnel) {
        for (other, tunnels) in &mut self.tunnels {
            if *other == peer {
                continue;
            }
            // A key stands for one WireGuard peer, an address for one too: the newcomer takes them over.
            tunnels.in_use.take_if(|old| old.key == tunnel.key);
            tunnels.coming.take_if(|old| old.key == tunnel.key);
            tunnels.leaving.take_if(|(old, _)| old.key == tunnel.key);
            for old in tunnels.all_mut() {
                old.prefixes.retain(|p| !tunnel.prefixes.contains(p));
            }
        }
        let tunnels = self.tunnels.entry(peer).or_default();
        tunnels.newest = tunnel.session;
        let there = [&mut tunnels.in_use, &mut tunnels.coming];
        for old in there.into_iter().flatten() {
            if old.is_of(tunnel.own, tunnel.key) {
                old.session = tunnel.session;
                old.prefixes = tunnel.prefixes;
                return;
            }
        }
        tunnels.coming = Some(tunnel);
    }

    /// Packets leave by what the session has installed.
    pub fn activate_tunnel(&mut self, peer: PeerNumber, at: Duration) {
        let Some(tunnels) = self.tunnels.get_mut(&peer) else {
            return;
        };
        if let Some(coming) = tunnels.coming.take() {
            let former = match coming.session == tunnels.newest {
                true => tunnels.in_use.replace(coming),
                // Of a connection that was late: the one in use is the newest session's.
                false => Some(coming),
            };
            tunnels.leaving = former.map(|former| (former, at + GRACE));
        }
    }

    /// The peer entry for a pair of keys.
    pub fn tunnel(
        &self,
        own: [u8; 32],
        key: [u8; 32],
        at: Duration,
    ) -> Option<(PeerNumber, &Tunnel)> {
        self.tunnels.iter().find_map(|(peer, tunnels)| {
            let mut standing = tunnels.standing(at);
            let found = standing.find(|tunnel| tunnel.is_of(own, key))?;
            Some((*peer, found))
        })
    }

    pub fn tunnel_mut(&mut self, own: [u8; 32], key: [u8; 32]) -> Option<&mut Tunnel> {
        let all = self.tunnels.values_mut().flat_map(Tunnels::all_mut);
        all.into_iter().find(|tunnel| tunnel.is_of(own, key))
    }
}
