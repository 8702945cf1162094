//! Believing a peer's announcements, and asking for them.
//!
//! A remote address has an identity only if its peer has proven that identity in this session, the address lies
//! in that peer's signed prefixes, and no other peer holds it. Generations must rise.

use std::net::IpAddr;
use std::time::Duration;

use super::effect::RemoteEntry;
use super::peer::Peer;
use super::planted::{Bug, planted};
use super::prefix::contains;
use super::types::{ConnId, EndpointId, IdentityNumber, PeerNumber};
use super::{Alarm, CloseReason, Core, Discarded, Effect};
use crate::wire::{BootId, Frame, LeafHash};

impl Core {
    pub(super) fn announce_received(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        leaf: LeafHash,
        generation: u64,
        boot_id: BootId,
    ) {
        match self.judge(number, address, leaf, generation, boot_id) {
            Ok(identity) => {
                self.install_remote(number, address, identity, generation);
                self.count("announcements-installed");
                self.emit(Effect::Send {
                    conn,
                    frame: Frame::Announced {
                        address,
                        generation,
                    },
                });
                self.consider_peer(number);
            }
            Err(reason) => {
                self.count("announcements-not-believed");
                let id = self.peer(number).map(|peer| peer.id.clone());
                self.emit(Effect::Send {
                    conn,
                    frame: Frame::AnnounceRefused {
                        address,
                        generation,
                        reason: reason.into(),
                    },
                });
                self.alarm(Alarm::RefusedFrom {
                    id: id.unwrap_or_default(),
                    what: format!("address {address}"),
                    reason: reason.to_owned(),
                });
                self.refused_something(number, conn);
            }
        }
    }

    /// What a peer makes us refuse costs us work and log lines: so much of it, and its connection ends.
    pub(super) fn refused_something(&mut self, number: PeerNumber, conn: ConnId) {
        let limit = self.config.limits.refusals_per_session;
        let Some(live) = self.session_mut(number).filter(|live| live.conn == conn) else {
            return;
        };
        live.refusals += 1;
        if live.refusals >= limit {
            self.violation(conn, CloseReason::TooManyRefused);
        }
    }

    fn judge(
        &self,
        number: PeerNumber,
        address: IpAddr,
        leaf: LeafHash,
        generation: u64,
        boot_id: BootId,
    ) -> Result<IdentityNumber, &'static str> {
        let peer = self.peer(number).ok_or("no session")?;
        let live = peer.live.as_ref().ok_or("no session")?;
        if boot_id != live.hello.boot_id {
            return Err("the boot ID is not this session's");
        }
        let proof = live
            .proven
            .get(&leaf)
            .ok_or("no such proof in this session")?;
        if proof.not_after <= self.now.wall {
            return Err("the proof has expired");
        }
        if self.is_revoked(proof.identity) {
            return Err("the identity is revoked");
        }
        let foreign = !contains(&live.node.prefixes, address) || self.is_own(address);
        if foreign && !planted(Bug::ForeignPrefixTrusted) {
            return Err(
                "the address lies outside of the node's signed prefixes; an address that outlives its node \
                 would need an assignment of its own",
            );
        }
        if self
            .holders
            .get(&address)
            .is_some_and(|holder| *holder != number)
        {
            return Err("another node holds the address");
        }
        // The same one again: said twice, or forgotten here when its proof ended. A withdrawal would have been higher.
        let known = peer.remotes.get(&address);
        let same = peer.seen.get(&address) == Some(&generation)
            && known.is_none_or(|remote| {
                remote.identity == proof.identity && remote.generation == generation
            });
        if generation <= peer.highest(address) && !same {
            return Err("the generation is not higher than the highest seen");
        }
        let known = peer.remotes.contains_key(&address);
        if !known && peer.remotes.len() >= self.config.limits.remotes_per_peer {
            return Err("too many addresses");
        }
        Ok(proof.identity)
    }

    fn install_remote(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        identity: IdentityNumber,
        generation: u64,
    ) {
        let before = self
            .peer(number)
            .and_then(|peer| peer.remotes.get(&address))
            .map(|remote| remote.identity);
        self.discard_unsure(number, address);
        if before.is_some_and(|before| before != identity) {
            self.discard_toward(number, address, Discarded::RemoteChanged);
        }
        self.discard_former(number, address, identity);
        let limit = self.config.limits.remotes_per_peer;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let remote = RemoteEntry {
            identity,
            peer: number,
            epoch: peer.last_epoch,
            generation,
        };
        peer.remotes.insert(address, remote);
        peer.saw(address, generation, limit);
        peer.asked.remove(&address);
        peer.negative.remove(&address);
        self.holders.insert(address, number);
        self.persist();
        self.emit(Effect::SetRemote { address, remote });
    }

    /// Forgets who an address is; packets that wait for it as that are dropped first.
    pub(super) fn remove_remote(&mut self, number: PeerNumber, address: IpAddr) {
        self.discard_toward(number, address, Discarded::RemoteChanged);
        let (now, limit) = (self.now.boot, self.config.limits.remotes_per_peer);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        if let Some(remote) = peer.remotes.remove(&address) {
            peer.forgets(address, remote.identity, now, limit);
            self.holders.remove(&address);
            self.persist();
            self.emit(Effect::RemoveRemote { address });
        }
    }

    pub(super) fn withdraw_received(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        generation: u64,
    ) {
        let limit = self.config.limits.remotes_per_peer;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let newer = peer
            .remotes
            .get(&address)
            .is_some_and(|remote| remote.generation > generation);
        if newer {
            return self.count("late-withdrawals");
        }
        let signed = contains(&peer.signed, address);
        if signed {
            // Whatever is announced next is higher.
            peer.saw(address, generation.saturating_add(1), limit);
            let known = peer.remotes.contains_key(&address);
            self.persist();
            self.remove_remote(number, address);
            if !known && !self.holders.contains_key(&address) {
                // Said again: perhaps the kernel refused to forget it the first time.
                self.emit(Effect::RemoveRemote { address });
            }
        } else {
            // Nothing is known of it here. A node whose prefixes have just changed may mean it well.
            self.count("withdrawals-of-others");
        }
        self.emit(Effect::Send {
            conn,
            frame: Frame::Withdrawn {
                address,
                generation,
            },
        });
        if !signed {
            self.refused_something(number, conn);
        }
    }

    /// Asks the peer who an address is, in the name of a local identity, if that has not just been asked.
    pub(super) fn resolve(&mut self, number: PeerNumber, address: IpAddr, endpoint: EndpointId) {
        let (now, hold) = (self.now.boot, self.config.times.hold);
        let rate = self.config.limits.resolves_per_second;
        let Some(identity) = self.identity_of(endpoint) else {
            return;
        };
        let asked = self
            .peer(number)
            .and_then(|peer| peer.asked.get(&address))
            .is_some_and(|at| *at + hold > now);
        let Some(leaf) = self.session(number).and_then(|live| live.leaf_of(identity)) else {
            return;
        };
        if asked {
            return;
        }
        let allowed = self
            .endpoints
            .get_mut(&endpoint)
            .is_some_and(|endpoint| endpoint.resolves.take(now, rate))
            && self
                .peer_mut(number)
                .is_some_and(|peer| peer.resolves_out.take(now, rate.saturating_mul(8)));
        if !allowed {
            return self.count("resolves-put-off");
        }
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        peer.asked.insert(address, now);
        if let Some(live) = &peer.live {
            let conn = live.conn;
            self.count("resolves-sent");
            self.emit(Effect::Send {
                conn,
                frame: Frame::Resolve {
                    address,
                    leaf_hash: leaf,
                },
            });
        }
    }

    /// Answered only where policy pairs the asker's proven identity with what is at the address.
    pub(super) fn resolve_received(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        leaf: LeafHash,
    ) {
        let (now, rate) = (self.now, self.config.limits.resolves_per_second);
        let Some(live) = self.session_mut(number) else {
            return;
        };
        if !live.resolves_in.take(now.boot, rate.saturating_mul(16)) {
            return self.count("resolves-too-fast");
        }
        let asker = live
            .proven
            .get(&leaf)
            .filter(|proven| proven.not_after > now.wall)
            .map(|proven| proven.identity);
        let endpoint = self.locals.get(&address).copied();
        let identity = endpoint.and_then(|endpoint| self.identity_of(endpoint));
        if endpoint.is_some() && identity.is_none() {
            // Who it is has yet to be said: a refusal would be remembered for longer than that takes.
            return self.count("resolves-early");
        }
        let local = identity.filter(|local| !self.is_revoked(*local));
        let paired = match (local, asker) {
            (Some(local), Some(asker)) if self.pairing(local, asker).wanted => Some(local),
            _ => None,
        };
        let Some(local) = paired else {
            self.count("resolves-refused");
            return self.emit(Effect::Send {
                conn,
                frame: Frame::ResolveRefused { address },
            });
        };
        if !self.mine.contains_key(&local) {
            // Its SVID is on the way, and with it comes the announcement: a refusal would be remembered for longer.
            if let Some(peer) = self.peer_mut(number) {
                peer.wanted.insert(local);
            }
            return self.count("resolves-early");
        }
        if let Some(peer) = self.peer_mut(number) {
            peer.wanted.insert(local);
        }
        self.announce_again(number, address);
        self.pursue(number, local);
    }

    pub(super) fn resolve_refused(&mut self, number: PeerNumber, address: IpAddr) {
        let until = self.now.boot + self.config.times.negative;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let asked = peer.asked.remove(&address).is_some();
        if !asked || peer.remotes.contains_key(&address) {
            return self.count("late-refusals");
        }
        peer.negative.insert(address, until);
        self.count("resolves-refused-to-us");
        self.emit(Effect::SetNegative {
            address,
            peer: number,
            until,
        });
        self.discard_toward(number, address, Discarded::ResolveRefused);
    }

    /// Takes refusals out of the kernel, unless somebody has been announced there since.
    pub(super) fn forget_negatives(&mut self, number: PeerNumber, addresses: Vec<IpAddr>) {
        for address in addresses {
            let known = self
                .peers
                .get_mut(&number)
                .is_some_and(|peer| peer.negative.remove(&address).is_some());
            if known && !self.holders.contains_key(&address) {
                self.emit(Effect::RemoveRemote { address });
            }
        }
    }

    /// A packet came from an address that its peer has not announced: it was dropped, and the peer is asked once.
    pub(super) fn unknown_source(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        endpoint: EndpointId,
    ) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        let askable = peer.live.is_some()
            && contains(&peer.signed, address)
            && !peer.remotes.contains_key(&address)
            && peer
                .negative
                .get(&address)
                .is_none_or(|until| *until <= self.now.boot);
        self.count("unknown-sources");
        if let Some(identity) = self.identity_of(endpoint).filter(|_| askable) {
            self.pursue(number, identity);
            self.resolve(number, address, endpoint);
        }
    }
}

impl Peer {
    /// Who an address was, for packets that were taken before and are heard of later.
    pub(super) fn forgets(
        &mut self,
        address: IpAddr,
        identity: IdentityNumber,
        now: Duration,
        limit: usize,
    ) {
        if self.forgot.len() < limit {
            self.forgot.insert(address, (identity, now));
        }
    }

    /// The generation that an announcement of the address must exceed.
    fn highest(&self, address: IpAddr) -> u64 {
        self.seen.get(&address).copied().unwrap_or(self.seen_floor)
    }

    /// Remembers a generation. Beyond the bound the lower half of those of addresses that are not announced goes, at
    /// once, since it costs a look at all; the highest of them becomes the floor for all that are not remembered.
    fn saw(&mut self, address: IpAddr, generation: u64, limit: usize) {
        let highest = self.seen.entry(address).or_insert(generation);
        *highest = generation.max(*highest);
        if self.seen.len() <= limit.saturating_mul(2) {
            return;
        }
        let remotes = &self.remotes;
        let mut gone: Vec<u64> = self
            .seen
            .iter()
            .filter(|(address, _)| !remotes.contains_key(*address))
            .map(|(_, generation)| *generation)
            .collect();
        gone.sort_unstable();
        let Some(floor) = gone.get(gone.len().saturating_sub(1) / 2).copied() else {
            return;
        };
        self.seen
            .retain(|address, generation| *generation > floor || remotes.contains_key(address));
        self.seen_floor = self.seen_floor.max(floor);
    }
}
