//! What is on this node: endpoints, their addresses and identities, and the proof SVIDs that are at hand.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::event::LocalIdentity;
use super::peer::Bucket;
use super::types::{EndpointId, Identity, IdentityNumber, PeerNumber};
use super::{Alarm, Core, Discarded, Effect};
use crate::wire::LeafHash;

/// One attached workload.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub addresses: BTreeSet<IpAddr>,
    pub identity: Option<IdentityNumber>,
    pub holds: usize,
    pub resolves: Bucket,
}

/// A proof SVID at hand.
#[derive(Clone, Debug)]
pub(super) struct Mine {
    pub leaf_hash: LeafHash,
    pub not_after: u64,
    pub serial: Vec<u8>,
}

/// An address between two identities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub until: Duration,
    /// Who had it, and may have it again at once; `None` if it was more than one.
    pub identity: Option<IdentityNumber>,
    /// Which endpoint that was: only its labels may be others at once. `None` after a restart, and if it was more
    /// than one.
    pub endpoint: Option<EndpointId>,
}

impl Core {
    pub(super) fn endpoint_added(
        &mut self,
        endpoint: EndpointId,
        addresses: BTreeSet<IpAddr>,
        identity: Option<Identity>,
    ) {
        for address in &addresses {
            if let Some(holder) = self
                .locals
                .get(address)
                .filter(|holder| **holder != endpoint)
            {
                let alarm = Alarm::AddressInUse {
                    address: *address,
                    endpoint,
                    holder: *holder,
                };
                return self.alarm(alarm);
            }
        }
        if !self.endpoints.contains_key(&endpoint)
            && self.endpoints.len() >= self.config.limits.endpoints
        {
            return self.alarm(Alarm::Full("endpoints"));
        }
        let identity = identity.and_then(|identity| self.number_of(&identity));
        self.leave_behind(endpoint, &addresses, identity);
        for address in &addresses {
            if !self.is_own(*address) {
                self.alarm(Alarm::AddressOutsidePrefixes {
                    address: *address,
                    endpoint,
                });
            }
            self.locals.insert(*address, endpoint);
        }
        let kept = self.endpoints.remove(&endpoint);
        let new = Endpoint {
            addresses,
            identity,
            holds: kept.as_ref().map_or(0, |kept| kept.holds),
            resolves: kept.map(|kept| kept.resolves).unwrap_or_default(),
        };
        let entries: Vec<IpAddr> = new.addresses.iter().copied().collect();
        self.endpoints.insert(endpoint, new);
        for address in entries {
            let entry = self.local_entry(address, endpoint);
            self.emit(entry);
        }
        if let Some(identity) = identity {
            self.bearers.entry(identity).or_default().insert(endpoint);
            self.appeared(identity);
        }
    }

    /// One entry of `locals`.
    pub(super) fn local_entry(&self, address: IpAddr, endpoint: EndpointId) -> Effect {
        let identity = self.identity_of(endpoint);
        Effect::SetLocal {
            address,
            endpoint,
            identity: identity.unwrap_or(IdentityNumber::UNKNOWN),
        }
    }

    /// Takes away what an endpoint had and does not have any more.
    fn leave_behind(
        &mut self,
        endpoint: EndpointId,
        addresses: &BTreeSet<IpAddr>,
        identity: Option<IdentityNumber>,
    ) {
        let Some(old) = self.endpoints.get(&endpoint).cloned() else {
            // A restart: announced by an earlier agent, as somebody else.
            return self.withdraw_strangers(endpoint, addresses, identity);
        };
        let renamed = old.identity != identity;
        for address in &old.addresses {
            if renamed || !addresses.contains(address) {
                self.withdraw(*address, endpoint);
            }
            if !addresses.contains(address) {
                self.locals.remove(address);
                self.emit(Effect::RemoveLocal { address: *address });
            }
        }
        if let Some(before) = old.identity.filter(|_| renamed) {
            self.discard_where(Discarded::EndpointGone, |_, key, _| {
                key.endpoint == endpoint
            });
            self.bears_no_more(before, endpoint);
        }
    }

    fn withdraw_strangers(
        &mut self,
        endpoint: EndpointId,
        addresses: &BTreeSet<IpAddr>,
        identity: Option<IdentityNumber>,
    ) {
        let strangers: BTreeSet<IpAddr> = self
            .peers
            .values()
            .flat_map(|peer| peer.announced.iter())
            .filter(|(address, announcement)| {
                announcement.entry.endpoint == endpoint
                    && (Some(announcement.identity) != identity || !addresses.contains(*address))
            })
            .map(|(address, _)| *address)
            .collect();
        for address in strangers {
            self.withdraw(address, endpoint);
        }
    }

    fn bears_no_more(&mut self, identity: IdentityNumber, endpoint: EndpointId) {
        if let Some(bearers) = self.bearers.get_mut(&identity) {
            bearers.remove(&endpoint);
            if bearers.is_empty() {
                self.bearers.remove(&identity);
            }
        }
    }

    pub(super) fn endpoint_removed(&mut self, endpoint: EndpointId) {
        self.discard_where(Discarded::EndpointGone, |_, key, _| {
            key.endpoint == endpoint
        });
        let Some(old) = self.endpoints.remove(&endpoint) else {
            return;
        };
        for address in &old.addresses {
            self.locals.remove(address);
            self.emit(Effect::RemoveLocal { address: *address });
            self.withdraw(*address, endpoint);
        }
        if let Some(identity) = old.identity {
            self.bears_no_more(identity, endpoint);
        }
    }

    /// Every endpoint that survived is here: what is announced for others is taken back.
    pub(super) fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let gone: BTreeSet<(IpAddr, EndpointId)> = self
            .peers
            .values()
            .flat_map(|peer| peer.announced.iter())
            .map(|(address, announcement)| (*address, announcement.entry.endpoint))
            .filter(|(address, endpoint)| self.locals.get(address) != Some(endpoint))
            .collect();
        for (address, endpoint) in gone {
            self.withdraw(address, endpoint);
        }
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            self.pursue_all(number);
            self.maybe_dial(number);
        }
    }

    pub(super) fn identity_ready(&mut self, ready: LocalIdentity) {
        if self.deny.serials.contains(&ready.serial) {
            return self.count("svids-not-taken");
        }
        // One that has expired is kept, and not shown: the clock may be wrong, and be put right.
        let Some(number) = self.number_of(&ready.identity) else {
            return;
        };
        let mine = Mine {
            leaf_hash: ready.leaf_hash,
            not_after: ready.not_after,
            serial: ready.serial,
        };
        self.mine.insert(number, mine);
        self.write_identity(number);
        self.appeared(number);
    }

    pub(super) fn identity_gone(&mut self, identity: &Identity) {
        if let Some(number) = self.numbers.find(identity) {
            self.lose_svid(number);
        }
    }

    /// The proof SVID cannot be used any more: nothing may rely on it.
    pub(super) fn lose_svid(&mut self, number: IdentityNumber) {
        if self.mine.remove(&number).is_none() {
            return;
        }
        self.write_identity(number);
        self.take_back(number);
    }

    /// Pairs, proofs and announcements of a local identity go.
    pub(super) fn take_back(&mut self, number: IdentityNumber) {
        self.remove_pairs(|key| {
            key.local == number || (key.peer == PeerNumber::LOCAL && key.remote == number)
        });
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for peer in peers {
            if let Some(live) = self.session_mut(peer) {
                live.given.remove(&number);
            }
        }
        let bearers = self.bearers.get(&number).cloned().unwrap_or_default();
        for endpoint in bearers {
            let addresses = self.endpoints.get(&endpoint).map(|e| e.addresses.clone());
            for address in addresses.unwrap_or_default() {
                self.withdraw(address, endpoint);
            }
        }
    }

    /// An identity on this node has come, or its SVID has: pairs it with what is known.
    pub(super) fn appeared(&mut self, local: IdentityNumber) {
        if !self.bearers.contains_key(&local) {
            return;
        }
        self.record_local(local);
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in peers {
            let Some(live) = self.session(number) else {
                continue;
            };
            let remotes: BTreeSet<IdentityNumber> =
                live.proven.values().map(|proven| proven.identity).collect();
            let wanted = remotes
                .iter()
                .any(|remote| self.pairing(local, *remote).wanted);
            if let Some(peer) = self.peer_mut(number).filter(|_| wanted) {
                peer.wanted.insert(local);
            }
            if self
                .peer(number)
                .is_some_and(|peer| peer.wanted.contains(&local))
            {
                self.pursue(number, local);
            }
        }
        self.consider_all();
    }

    /// The number of an identity, given now if it has none.
    pub(super) fn number_of(&mut self, identity: &Identity) -> Option<IdentityNumber> {
        if let Some(number) = self.numbers.find(identity) {
            return Some(number);
        }
        let revoked = self.deny.identities.contains(&identity.spiffe_id);
        let room = self.numbers.len() < self.config.limits.identities;
        let Some((number, identity)) = room.then(|| self.numbers.add(identity, revoked)).flatten()
        else {
            self.count("identities-full");
            self.alarm(Alarm::Full("identities"));
            return None;
        };
        self.persist();
        self.emit(Effect::Identity { number, identity });
        if revoked {
            self.emit_identity(number);
        }
        Some(number)
    }

    /// Writes until when an identity counts: the latest end of any proof of it, here or at a peer.
    pub(super) fn write_identity(&mut self, number: IdentityNumber) {
        let now = self.now;
        let here = self.mine.get(&number).map(|mine| mine.not_after);
        let there = self.peers.values().filter_map(|peer| {
            let live = peer.live.as_ref()?;
            live.proof_of(number, now).map(|proven| proven.not_after)
        });
        let not_after = there.chain(here).max();
        let Some(known) = self.numbers.get_mut(number) else {
            return;
        };
        // Proofs of older sessions still count until their epoch is swept.
        known.not_after = match not_after {
            Some(not_after) => known.not_after.max(not_after),
            None => now.wall.min(known.not_after),
        };
        self.persist();
        self.emit_identity(number);
    }

    /// Writes an identity as it is known.
    pub(super) fn emit_identity(&mut self, number: IdentityNumber) {
        let now = self.now;
        let Some(known) = self.numbers.get(number) else {
            return;
        };
        let (not_after, revoked) = (known.not_after, known.revoked);
        self.emit(Effect::SetIdentity {
            number,
            valid_until: now.boot_at(not_after),
            revoked,
        });
    }

    pub(super) fn is_revoked(&self, number: IdentityNumber) -> bool {
        self.numbers.get(number).is_some_and(|known| known.revoked)
    }

    pub(super) fn identity_of(&self, endpoint: EndpointId) -> Option<IdentityNumber> {
        self.endpoints.get(&endpoint)?.identity
    }

    /// An identity's SPIFFE ID, for people.
    pub(super) fn name_of(&self, number: IdentityNumber) -> String {
        self.numbers
            .get(number)
            .map(|known| known.identity.spiffe_id.clone())
            .unwrap_or_default()
    }
}
