//! Announcing this node's addresses to peers, and taking them back.
//!
//! The kernel's `announced` entry names the one endpoint that may use an address toward a peer. It is written
//! before the peer can believe it, opens when the peer has confirmed, and keeps naming the old endpoint until
//! the peer has confirmed the withdrawal or the session has ended: nobody else speaks with that address before.

use std::net::IpAddr;
use std::time::Duration;

use super::effect::{AnnouncedEntry, AnnouncedState};
use super::endpoint::Rest;
use super::peer::{Announcement, Said};
use super::planted::{Bug, planted};
use super::types::{ConnId, EndpointId, IdentityNumber, PeerNumber};
use super::{Alarm, CloseReason, Core, Discarded, Effect};
use crate::wire::{Frame, LeafHash};

impl Core {
    /// Everything that is wanted at a peer, as far as it goes now.
    pub(super) fn pursue_all(&mut self, number: PeerNumber) {
        let wanted: Vec<IdentityNumber> = match self.peer(number) {
            Some(peer) if peer.live.is_some() => peer.wanted.iter().copied().collect(),
            _ => return,
        };
        for identity in wanted {
            self.pursue(number, identity);
        }
        self.withdraw_again(number);
        self.check_ready(number);
    }

    /// Proves one identity to a peer and announces its addresses, as far as it goes now.
    pub(super) fn pursue(&mut self, number: PeerNumber, identity: IdentityNumber) {
        if self.is_revoked(identity) {
            return;
        }
        self.show(number, identity);
        let Some(leaf) = self.session(number).and_then(|live| live.leaf_of(identity)) else {
            return;
        };
        let bearers: Vec<EndpointId> = self
            .bearers
            .get(&identity)
            .map(|bearers| bearers.iter().copied().collect())
            .unwrap_or_default();
        for endpoint in bearers {
            let addresses: Vec<IpAddr> = self
                .endpoints
                .get(&endpoint)
                .map(|endpoint| endpoint.addresses.iter().copied().collect())
                .unwrap_or_default();
            for address in addresses {
                self.announce(number, address, endpoint, identity, leaf);
            }
        }
    }

    fn announce(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        endpoint: EndpointId,
        identity: IdentityNumber,
        leaf: LeafHash,
    ) {
        let (now, retry) = (self.now.boot, self.config.times.retry);
        if !self.is_own(address) {
            return;
        }
        let rests = self.rests_until(address, endpoint, identity);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let Some(live) = &peer.live else {
            return;
        };
        let (conn, epoch) = (live.conn, live.epoch);
        match peer.announced.get(&address) {
            Some(earlier) if !earlier.is_of(endpoint, identity) || earlier.withdrawing() => return,
            Some(earlier) => match earlier.said {
                Said::Nothing => {}
                Said::Refused { retry_at } if now >= retry_at => {}
                Said::Refused { retry_at } => return peer.retry(retry_at),
                Said::Waiting { since, .. } if now < since + retry => {
                    return peer.retry(since + retry);
                }
                Said::Waiting { generation, .. } => {
                    return self.say_again(number, address, conn, leaf, generation);
                }
                Said::Confirmed => return,
            },
            None => {
                if let Some(until) = rests {
                    return peer.retry(until);
                }
            }
        }
        let generation = self.next_generation();
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let since = now;
        let said = Said::Waiting { generation, since };
        peer.retry(since + retry);
        match peer.announced.get_mut(&address) {
            // Confirmed in an older epoch, which counts until this one is confirmed.
            Some(earlier) if earlier.entry.state == AnnouncedState::Confirmed => {
                earlier.said = said;
            }
            _ => {
                let entry = AnnouncedEntry {
                    endpoint,
                    epoch,
                    state: AnnouncedState::Sent,
                    generation,
                };
                let announcement = Announcement {
                    entry,
                    identity,
                    said,
                };
                peer.announced.insert(address, announcement);
                self.write_announced(number, address);
            }
        }
        self.say_announce(conn, address, leaf, generation);
    }

    /// An announcement without an answer is said again as it was: the peer takes the same one twice.
    fn say_again(
        &mut self,
        number: PeerNumber,
        address: IpAddr,
        conn: ConnId,
        leaf: LeafHash,
        generation: u64,
    ) {
        let (since, retry) = (self.now.boot, self.config.times.retry);
        if let Some(peer) = self.peer_mut(number) {
            peer.retry(since + retry);
            if let Some(announcement) = peer.announced.get_mut(&address) {
                announcement.said = Said::Waiting { generation, since };
            }
        }
        self.count("announcements-unanswered");
        self.say_announce(conn, address, leaf, generation);
    }

    fn say_announce(&mut self, conn: ConnId, address: IpAddr, leaf: LeafHash, generation: u64) {
        let boot_id = self.local.boot_id;
        self.count("announcements-sent");
        self.emit(Effect::Send {
            conn,
            frame: Frame::Announce {
                address,
                leaf_hash: leaf,
                generation,
                boot_id,
            },
        });
    }

    /// The peer may have forgotten addresses with a proof that ended before it had this one.
    pub(super) fn announce_all_again(&mut self, number: PeerNumber, identity: IdentityNumber) {
        let announced = self
            .peer(number)
            .into_iter()
            .flat_map(|p| p.announced.iter());
        let addresses: Vec<IpAddr> = announced
            .filter(|(_, of)| of.identity == identity && of.said == Said::Confirmed)
            .map(|(address, _)| *address)
            .collect();
        for address in addresses {
            self.announce_again(number, address);
        }
    }

    /// The peer asks for what it has been told already.
    pub(super) fn announce_again(&mut self, number: PeerNumber, address: IpAddr) {
        let Some(peer) = self.peer(number) else {
            return;
        };
        let (Some(announcement), Some(live)) = (peer.announced.get(&address), &peer.live) else {
            return;
        };
        let leaf = live.leaf_of(announcement.identity);
        let generation = match announcement.said {
            Said::Confirmed => announcement.entry.generation,
            Said::Waiting { generation, .. } => generation,
            Said::Nothing | Said::Refused { .. } => return,
        };
        let conn = live.conn;
        if let Some(leaf) = leaf.filter(|_| !announcement.withdrawing()) {
            self.say_announce(conn, address, leaf, generation);
        }
    }

    fn write_announced(&mut self, number: PeerNumber, address: IpAddr) {
        let Some(announcement) = self.peer(number).and_then(|p| p.announced.get(&address)) else {
            return;
        };
        let announced = announcement.entry;
        self.persist();
        self.emit(Effect::SetAnnounced {
            address,
            peer: number,
            announced,
        });
    }

    pub(super) fn announced(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        generation: u64,
    ) {
        let highest = self.generation;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let epoch = peer.last_epoch;
        let announcement = peer.announced.get_mut(&address);
        match announcement.filter(|a| a.awaits(generation) && !a.withdrawing()) {
            Some(announcement) => {
                announcement.said = Said::Confirmed;
                announcement.entry.state = AnnouncedState::Confirmed;
                announcement.entry.epoch = epoch;
                announcement.entry.generation = generation;
                self.write_announced(number, address);
                self.check_ready(number);
                self.consider_peer(number);
            }
            // Late: said before a withdrawal, or said twice.
            None if generation <= highest => self.count("late-confirmations"),
            None => self.violation(conn, CloseReason::NeverSaid("announced")),
        }
    }

    pub(super) fn announce_refused(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        generation: u64,
        reason: &str,
    ) {
        let (highest, retry_at) = (self.generation, self.now.boot + self.config.times.retry);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let id = peer.id.clone();
        let announcement = peer.announced.get_mut(&address);
        match announcement.filter(|a| a.awaits(generation) && !a.withdrawing()) {
            Some(announcement) => {
                announcement.said = Said::Refused { retry_at };
                let endpoint = announcement.entry.endpoint;
                peer.retry(retry_at);
                self.count("announcements-refused");
                self.alarm(Alarm::Refused {
                    id,
                    what: format!("address {address}"),
                    reason: reason.to_owned(),
                });
                self.discard_where(Discarded::AnnounceRefused, |_, key, hold| {
                    hold.peer == Some(number) && key.endpoint == endpoint
                });
                self.check_ready(number);
            }
            None if generation <= highest => self.count("late-refusals"),
            None => self.violation(conn, CloseReason::NeverSaid("announce-refused")),
        }
    }

    /// Takes an endpoint's address back from every peer. What is held of it goes first.
    pub(super) fn withdraw(&mut self, address: IpAddr, endpoint: EndpointId) {
        self.discard_where(Discarded::EndpointGone, |_, key, _| {
            key.endpoint == endpoint && key.remote.is_ipv4() == address.is_ipv4()
        });
        let peers: Vec<PeerNumber> = self
            .peers
            .values()
            .filter(|peer| {
                peer.announced
                    .get(&address)
                    .is_some_and(|a| a.entry.endpoint == endpoint && !a.withdrawing())
            })
            .map(|peer| peer.number)
            .collect();
        for number in peers {
            let generation = self.next_generation();
            let Some(peer) = self.peer_mut(number) else {
                continue;
            };
            let epoch = peer.last_epoch;
            if let Some(announcement) = peer.announced.get_mut(&address) {
                announcement.entry.state = AnnouncedState::Withdrawing;
                announcement.entry.generation = generation;
                announcement.entry.epoch = epoch;
                announcement.said = Said::Nothing;
            }
            self.write_announced(number, address);
            self.send_withdraw(number, address);
            if planted(Bug::WithdrawalAckSkipped) {
                self.forget_announced(number, address);
            }
            self.maybe_dial(number);
        }
    }

    /// Withdrawals without an answer are said again.
    fn withdraw_again(&mut self, number: PeerNumber) {
        let (now, retry) = (self.now.boot, self.config.times.retry);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let mut late = Vec::new();
        let mut next: Option<Duration> = None;
        for (address, announcement) in peer.announced.iter_mut() {
            let Said::Waiting { since, .. } = announcement.said else {
                continue;
            };
            if !announcement.withdrawing() {
                continue;
            }
            let due = since + retry;
            if due <= now {
                announcement.said = Said::Nothing;
                late.push(*address);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        if let Some(next) = next {
            peer.retry(next);
        }
        for address in late {
            self.count("withdrawals-unanswered");
            self.send_withdraw(number, address);
        }
    }

    /// Says a withdrawal, once a session unless it is not answered.
    pub(super) fn send_withdraw(&mut self, number: PeerNumber, address: IpAddr) {
        let (since, retry) = (self.now.boot, self.config.times.retry);
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        let Some(live) = &peer.live else {
            return;
        };
        let conn = live.conn;
        if let Some(announcement) = peer.announced.get_mut(&address)
            && announcement.withdrawing()
            && announcement.said == Said::Nothing
        {
            let generation = announcement.entry.generation;
            announcement.said = Said::Waiting { generation, since };
            peer.retry(since + retry);
            self.emit(Effect::Send {
                conn,
                frame: Frame::Withdraw {
                    address,
                    generation,
                },
            });
        }
    }

    pub(super) fn withdrawn(
        &mut self,
        number: PeerNumber,
        conn: ConnId,
        address: IpAddr,
        generation: u64,
    ) {
        let highest = self.generation;
        let Some(peer) = self.peer_mut(number) else {
            return;
        };
        match peer.announced.get(&address).copied() {
            Some(announcement) if announcement.withdrawing() && announcement.awaits(generation) => {
                self.forget_announced(number, address);
                self.pursue_all(number);
                self.check_ready(number);
            }
            _ if generation <= highest => self.count("late-withdrawals"),
            _ => self.violation(conn, CloseReason::NeverSaid("withdrawn")),
        }
    }

    /// The peer believes nothing of the address any more.
    fn forget_announced(&mut self, number: PeerNumber, address: IpAddr) {
        let gone = self
            .peer_mut(number)
            .and_then(|p| p.announced.remove(&address));
        if let Some(announcement) = gone {
            self.persist();
            self.emit(Effect::RemoveAnnounced {
                address,
                peer: number,
            });
            self.rest(address, announcement);
        }
    }

    /// No other identity is announced at the address for a while: packets are in flight.
    pub(super) fn rest(&mut self, address: IpAddr, gone: Announcement) {
        let until = self.now.boot + self.config.times.rest;
        let (mut identity, mut endpoint) = (Some(gone.identity), Some(gone.entry.endpoint));
        let earlier = self.rests.get(&address);
        if let Some(earlier) = earlier.filter(|rest| rest.until > self.now.boot) {
            // Two different identities went in a row: then nobody may be next before the rest is over.
            let same = earlier.identity == identity
                || self.relabelled(earlier, gone.entry.endpoint, gone.identity);
            identity = identity.filter(|_| same);
            endpoint = endpoint.filter(|_| same && earlier.endpoint == endpoint);
        }
        let rest = Rest {
            until,
            identity,
            endpoint,
        };
        self.rests.insert(address, rest);
        self.persist();
    }

    /// Until when an endpoint must wait for an address that others had.
    fn rests_until(
        &self,
        address: IpAddr,
        endpoint: EndpointId,
        identity: IdentityNumber,
    ) -> Option<Duration> {
        let rest = self.rests.get(&address)?;
        let free = rest.until <= self.now.boot
            || rest.identity == Some(identity)
            || self.relabelled(rest, endpoint, identity);
        (!free).then_some(rest.until)
    }

    /// The same workload by another set of labels: what is in flight from it, or to it, is nobody else's.
    fn relabelled(&self, rest: &Rest, endpoint: EndpointId, identity: IdentityNumber) -> bool {
        let name = |number| self.numbers.get(number).map(|of| &of.identity.spiffe_id);
        rest.endpoint == Some(endpoint)
            && rest
                .identity
                .and_then(name)
                .is_some_and(|former| Some(former) == name(identity))
    }
}
