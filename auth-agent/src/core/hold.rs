//! Holds: which parked packets can be given back, which never will, and which have waited long enough.
//!
//! The shell keeps the packets; here is one entry a key. A key is released only when the maps let the gate
//! decide; whatever changes the meaning of the key's addresses in the meantime discards it.

use std::net::IpAddr;
use std::time::Duration;

use super::planted::{Bug, planted};
use super::types::{Direction, EndpointId, HoldKey, IdentityNumber, PeerNumber};
use super::{Alarm, Core, Discarded, Effect, PairKey};

/// Packets that wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub peer: Option<PeerNumber>,
    pub since: Duration,
    pub until: Duration,
}

/// A packet may have been taken that much before the core hears of it.
pub(super) const IN_FLIGHT: Duration = Duration::from_secs(1);

/// What is to become of a key now.
enum Outlook {
    Release,
    Discard(Discarded),
    Wait,
}

impl Core {
    pub(super) fn held(&mut self, key: HoldKey) {
        if !self.holds.contains_key(&key) && !self.add_hold(key) {
            return;
        }
        self.consider(key);
    }

    fn add_hold(&mut self, key: HoldKey) -> bool {
        let until = self.now.boot + self.config.times.hold;
        let peer = self.peer_of(key.remote).filter(|p| *p != PeerNumber::LOCAL);
        if key.direction == Direction::Ingress && !self.announces(peer, key) {
            // Sent to whoever had the address before: it must not wait for whoever has it next.
            self.discarded(key, Discarded::NotAnnounced);
            return false;
        }
        // One endpoint fills neither the whole nor what all have toward one peer.
        let (limit, share) = (self.config.limits.holds, self.config.limits.holds / 8);
        let of_endpoint = self.endpoints.get(&key.endpoint).map_or(0, |e| e.holds);
        let of_peer = peer
            .and_then(|peer| self.peer(peer))
            .map_or(0, |peer| peer.holds.len());
        if self.holds.len() >= limit || of_endpoint >= share / 2 || of_peer >= share {
            self.discarded(key, Discarded::TooMany);
            return false;
        }
        let since = self.now.boot;
        self.holds.insert(key, Hold { peer, since, until });
        self.hold_order.push_back((until, key));
        if let Some(endpoint) = self.endpoints.get_mut(&key.endpoint) {
            endpoint.holds += 1;
        }
        if let Some(peer) = peer.and_then(|peer| self.peer_mut(peer)) {
            peer.holds.insert(key);
        }
        true
    }

    /// Whether the far end can have meant this endpoint when it sent.
    fn announces(&self, peer: Option<PeerNumber>, key: HoldKey) -> bool {
        let Some(peer) = peer.and_then(|peer| self.peer(peer)) else {
            return true;
        };
        let endpoint = self.endpoints.get(&key.endpoint);
        let mut addresses = endpoint.iter().flat_map(|endpoint| &endpoint.addresses);
        addresses.any(|address| {
            let announced = peer.announced.get(address);
            address.is_ipv4() == key.remote.is_ipv4()
                && announced.is_some_and(|a| a.entry.endpoint == key.endpoint && !a.withdrawing())
        })
    }

    fn forget_hold(&mut self, key: HoldKey) -> bool {
        let Some(hold) = self.holds.remove(&key) else {
            return false;
        };
        if let Some(endpoint) = self.endpoints.get_mut(&key.endpoint) {
            endpoint.holds = endpoint.holds.saturating_sub(1);
        }
        if let Some(peer) = hold.peer.and_then(|peer| self.peer_mut(peer)) {
            peer.holds.remove(&key);
        }
        true
    }

    /// Decides on one key, and starts what it waits for.
    pub(super) fn consider(&mut self, key: HoldKey) {
        let Some(hold) = self.holds.get(&key).copied() else {
            return;
        };
        match self.outlook(key, hold.peer) {
            Outlook::Release => self.release(key),
            Outlook::Discard(reason) => self.discard(key, reason),
            Outlook::Wait => self.work_for(key, hold.peer),
        }
    }

    fn outlook(&self, key: HoldKey, peer: Option<PeerNumber>) -> Outlook {
        let Some(endpoint) = self.endpoints.get(&key.endpoint) else {
            return Outlook::Discard(Discarded::EndpointGone);
        };
        let Some(local) = endpoint.identity else {
            return Outlook::Discard(Discarded::NoIdentity);
        };
        let Some(peer) = peer else {
            return self.outlook_here(key, local);
        };
        let Some(remote_peer) = self.peer(peer) else {
            return Outlook::Discard(Discarded::NoPeer);
        };
        if self.deny.nodes.contains(&remote_peer.id) || self.is_revoked(local) {
            return Outlook::Discard(Discarded::Revoked);
        }
        let Some(remote) = remote_peer.remotes.get(&key.remote) else {
            let refused = remote_peer
                .negative
                .get(&key.remote)
                .is_some_and(|until| *until > self.now.boot);
            return if refused {
                Outlook::Discard(Discarded::ResolveRefused)
            } else {
                Outlook::Wait
            };
        };
        let remote = remote.identity;
        if self.is_revoked(remote) {
            return Outlook::Discard(Discarded::Revoked);
        }
        let announced = endpoint
            .addresses
            .iter()
            .filter(|address| address.is_ipv4() == key.remote.is_ipv4())
            .all(|address| self.confirmed_as(peer, *address, key.endpoint));
        let pair = PairKey {
            local,
            remote,
            peer,
        };
        let paired = self.has_pair(pair) || !self.pairing(local, remote).wanted;
        if self.passes(peer) && announced && paired && self.policy.is_some() {
            Outlook::Release
        } else {
            Outlook::Wait
        }
    }

    fn confirmed_as(&self, peer: PeerNumber, address: IpAddr, endpoint: EndpointId) -> bool {
        let named = self
            .peer(peer)
            .and_then(|peer| peer.announced.get(&address))
            .is_some_and(|announcement| announcement.entry.endpoint == endpoint);
        named && self.confirmed(peer, address)
    }

    /// Both ends on this node.
    fn outlook_here(&self, key: HoldKey, local: IdentityNumber) -> Outlook {
        let Some(other) = self.locals.get(&key.remote) else {
            return Outlook::Discard(Discarded::NoPeer);
        };
        let Some(remote) = self.identity_of(*other) else {
            return Outlook::Discard(Discarded::NoIdentity);
        };
        if self.is_revoked(local) || self.is_revoked(remote) {
            return Outlook::Discard(Discarded::Revoked);
        }
        let peer = PeerNumber::LOCAL;
        let pair = PairKey {
            local,
            remote,
            peer,
        };
        let wanted = self.pairing(local, remote).wanted;
        if self.policy.is_some() && (self.has_pair(pair) || !wanted) {
            Outlook::Release
        } else {
            Outlook::Wait
        }
    }

    /// What a waiting key needs: a session, our proof and announcement, the peer's answer.
    fn work_for(&mut self, key: HoldKey, peer: Option<PeerNumber>) {
        let (Some(number), Some(local)) = (peer, self.identity_of(key.endpoint)) else {
            return;
        };
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.wanted.insert(local);
        let known = peer.remotes.contains_key(&key.remote);
        if peer.live.is_none() {
            return self.maybe_dial(number);
        }
        self.pursue(number, local);
        if !known {
            self.resolve(number, key.remote, key.endpoint);
        }
    }

    /// Something has changed for a peer: decides on everything that waits for it.
    pub(super) fn consider_peer(&mut self, number: PeerNumber) {
        let keys: Vec<HoldKey> = self
            .peer(number)
            .map(|peer| peer.holds.iter().copied().collect())
            .unwrap_or_default();
        for key in keys {
            self.consider(key);
        }
    }

    pub(super) fn consider_all(&mut self) {
        let keys: Vec<HoldKey> = self.holds.keys().copied().collect();
        for key in keys {
            self.consider(key);
        }
    }

    /// However often: new packets come into the queue while it drains, and none goes round, since a gate drops
    /// what was given back and is undecided still.
    fn release(&mut self, key: HoldKey) {
        if self.forget_hold(key) {
            self.count("holds-released");
            self.releases.push(key);
        }
    }

    pub(super) fn discard(&mut self, key: HoldKey, reason: Discarded) {
        if self.forget_hold(key) {
            self.discarded(key, reason);
        }
    }

    fn discarded(&mut self, key: HoldKey, reason: Discarded) {
        self.count("holds-discarded");
        // A release decided in this step must not overtake the discard.
        self.releases.retain(|other| *other != key);
        self.emit(Effect::Discard { key, reason });
        if reason == Discarded::TooMany {
            self.count("holds-overflow");
        } else {
            self.alarm(Alarm::Dropped { key, reason });
        }
    }

    /// Discards every key that fits. Also those that this very step was going to release.
    pub(super) fn discard_where(
        &mut self,
        reason: Discarded,
        fits: impl Fn(&Self, &HoldKey, &Hold) -> bool,
    ) {
        let keys: Vec<HoldKey> = self
            .holds
            .iter()
            .filter(|(key, hold)| fits(self, key, hold))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.discard(key, reason);
        }
        let released: Vec<HoldKey> = self
            .releases
            .iter()
            .filter(|key| {
                let peer = self.peer_of(key.remote).filter(|p| *p != PeerNumber::LOCAL);
                let (since, until) = (Duration::ZERO, Duration::ZERO);
                fits(self, key, &Hold { peer, since, until })
            })
            .copied()
            .collect();
        for key in released {
            self.discarded(key, reason);
        }
    }

    /// Discards what waits for an address of this peer's.
    pub(super) fn discard_toward(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        reason: Discarded,
    ) {
        if planted(Bug::HeldPacketOutlivesItsAddress) {
            return;
        }
        self.discard_where(reason, |_, key, hold| {
            key.remote == address && hold.peer == Some(number)
        });
    }

    /// What was taken while the kernel may have had another holder for the address.
    pub(super) fn discard_unsure(&mut self, number: PeerNumber, address: IpAddr) {
        let Some((since, until)) = self.peer(number).and_then(|peer| peer.unsure) else {
            return;
        };
        let until = until.map_or(Duration::MAX, |until| until + IN_FLIGHT);
        self.discard_where(Discarded::RemoteChanged, |_, key, hold| {
            let taken = hold.since >= since && hold.since <= until;
            key.remote == address && hold.peer == Some(number) && taken
        });
    }

    /// The address has a new holder: what was taken while the former one was known, and heard of since, is not for it.
    /// Nor is anything that came from there: the new one sends nothing before it is announced, so that was said by the
    /// former one, and has waited in a tunnel since.
    pub(super) fn discard_former(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        identity: IdentityNumber,
    ) {
        let former = self
            .peer_mut(number)
            .and_then(|peer| peer.forgot.remove(&address));
        let Some((_, at)) = former.filter(|(former, _)| *former != identity) else {
            return;
        };
        self.discard_where(Discarded::RemoteChanged, |_, key, hold| {
            let theirs = key.direction == Direction::Ingress || hold.since <= at + IN_FLIGHT;
            key.remote == address && hold.peer == Some(number) && theirs
        });
    }

    pub(super) fn discard_peer(&mut self, number: PeerNumber, reason: Discarded) {
        if planted(Bug::HeldPacketOutlivesItsAddress) {
            return;
        }
        self.discard_where(reason, |_, _, hold| hold.peer == Some(number));
    }

    pub(super) fn expire_holds(&mut self) {
        while let Some((until, key)) = self.hold_order.front().copied() {
            // What is gone already needs no deadline.
            let stale = self.holds.get(&key).is_none_or(|hold| hold.until != until);
            if !stale && until > self.now.boot {
                return;
            }
            self.hold_order.pop_front();
            if !stale {
                self.discard(key, Discarded::Timeout);
            }
        }
    }
}
