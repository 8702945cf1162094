//! From state to snapshot and back.

use std::net::IpAddr;
use std::sync::Arc;

use super::config::Local;
use super::effect::{AnnouncedEntry, RemoteEntry, SessionEntry, SessionState};
use super::endpoint::Rest;
use super::identity::Numbers;
use super::kept::Entry;
use super::peer::{Announcement, Ends, Footing, Peer, Said, Standing};
use super::planted::{Bug, planted};
use super::snapshot::{
    AnnouncedSnapshot, FootingSnapshot, PeerSnapshot, RemoteSnapshot, Removals, SessionSnapshot,
    Snapshot,
};
use super::types::{IdentityNumber, PeerNumber};
use super::{Core, Effect};

/// The snapshot's format.
const VERSION: u32 = 1;

impl Snapshot {
    /// True if it describes this kernel.
    pub(super) fn fits(&self, local: &Local) -> bool {
        self.version == VERSION && self.node == local.id && self.boot_id == local.boot_id
    }
}

impl Core {
    /// What the next agent of this boot must know.
    pub fn snapshot(&self) -> Snapshot {
        let rests = self.rests.iter();
        Snapshot {
            version: VERSION,
            node: self.local.id.clone(),
            boot_id: self.local.boot_id,
            next_identity: self.numbers.next(),
            next_peer: self.next_peer,
            generation: self.generation,
            identities: self.numbers.list(),
            peers: self.peers.values().map(stored).collect(),
            removals: self.removals.clone(),
            rests: rests
                .map(|(address, rest)| (*address, rest.until, rest.identity))
                .collect(),
        }
    }

    pub(super) fn restore(&mut self, snapshot: Snapshot) {
        self.numbers = Numbers::restore(snapshot.next_identity, &snapshot.identities);
        self.next_peer = snapshot.next_peer.max(1);
        self.generation = snapshot.generation;
        self.removals = snapshot.removals;
        for (address, until, identity) in snapshot.rests {
            let rest = Rest {
                until,
                identity,
                endpoint: None,
            };
            self.rests.insert(address, rest);
        }
        for saved in snapshot.peers {
            let peer = restored(Arc::unwrap_or_clone(saved));
            self.next_peer = self.next_peer.max(peer.number.0.saturating_add(1));
            for address in peer.remotes.keys() {
                self.holders.insert(*address, peer.number);
            }
            self.by_id.insert(peer.id.clone(), peer.number);
            self.touched.insert(peer.number);
            self.peers.insert(peer.number, peer);
        }
    }

    /// An agent may die between any two effects, after it has stored what they lead to. So the next one makes
    /// the kernel what the snapshot says, by the same order as ever: here what forbids.
    pub(super) fn cut_again(&mut self) {
        let peers: Vec<PeerNumber> = self.peers.keys().copied().collect();
        for number in &peers {
            self.write_cut(*number);
        }
        let revoked: Vec<IdentityNumber> = self
            .numbers
            .iter()
            .filter(|(_, known)| known.revoked)
            .map(|(number, _)| number)
            .collect();
        for number in revoked {
            self.emit_identity(number);
        }
        let removals = self.removals.clone();
        for pair in removals.pairs {
            self.emit(Effect::RemovePair { pair });
        }
        for address in removals.remotes {
            if !self.holders.contains_key(&address) {
                self.emit(Effect::RemoveRemote { address });
            }
        }
        self.write_all_announced(true);
    }

    /// The session is over: nothing of any epoch so far counts.
    fn write_cut(&mut self, number: PeerNumber) {
        let Some(peer) = self.peers.get(&number) else {
            return;
        };
        if peer.standing.is_none() && peer.last_epoch > 0 {
            let session = SessionEntry::cut(peer.last_epoch);
            self.emit(Effect::SetSession {
                peer: number,
                session,
            });
            self.emit(Effect::RemoveTunnel { peer: number });
        }
    }

    /// A step that cuts a session may begin the next one too. An agent that dies in it leaves the tunnel of the one that
    /// was cut, whose packets would be taken for those of the next.
    pub(super) fn remove_tunnels_again(&mut self) {
        for peer in self.removals.tunnels.clone() {
            let standing = self.peers.get(&peer).and_then(|peer| peer.standing);
            if let Some(Standing { entry: session, .. }) = standing {
                self.emit(Effect::SetSession { peer, session });
                self.emit(Effect::RemoveTunnel { peer });
            }
        }
    }

    /// And here what permits.
    pub(super) fn write_again(&mut self) {
        let good: Vec<IdentityNumber> = self
            .numbers
            .iter()
            .filter(|(_, known)| !known.revoked)
            .map(|(number, _)| number)
            .collect();
        for number in good {
            self.emit_identity(number);
        }
        let now = self.now;
        let mut effects = Vec::new();
        for peer in self.peers.values() {
            let Some(standing) = peer.standing else {
                continue;
            };
            for (address, remote) in peer.remotes.iter() {
                effects.push(Effect::SetRemote {
                    address: *address,
                    remote: *remote,
                });
            }
            let mut session = standing.entry;
            session.expires = session.expires.min(standing.ends.at(now));
            effects.push(Effect::SetSession {
                peer: peer.number,
                session,
            });
            // The last agent may have died before packets left by it. Otherwise the tunnel of a session whose epoch does
            // not count any more would go on for as long as the peer is away.
            if session.state == SessionState::Ready && session.oldest == session.current {
                effects.push(Effect::ActivateTunnel { peer: peer.number });
            }
        }
        self.write_all_announced(false);
        for effect in effects {
            self.emit(effect);
        }
    }

    fn write_all_announced(&mut self, withdrawing: bool) {
        let mut effects = Vec::new();
        for peer in self.peers.values() {
            for (address, announcement) in peer.announced.iter() {
                if announcement.withdrawing() == withdrawing {
                    effects.push(Effect::SetAnnounced {
                        address: *address,
                        peer: peer.number,
                        announced: announcement.entry,
                    });
                }
            }
        }
        for effect in effects {
            self.emit(effect);
        }
    }
}

impl Removals {
    pub(super) fn of(effects: &[Effect]) -> Self {
        let mut removals = Self::default();
        for effect in effects {
            match effect {
                Effect::RemovePair { pair } => {
                    removals.pairs.insert(*pair);
                }
                Effect::SetPair { pair, .. } => {
                    removals.pairs.remove(pair);
                }
                Effect::RemoveRemote { address } => {
                    removals.remotes.insert(*address);
                }
                Effect::RemoveTunnel { peer } => {
                    removals.tunnels.insert(*peer);
                }
                Effect::InstallTunnel { peer, .. } => {
                    removals.tunnels.remove(peer);
                }
                _ => {}
            }
        }
        removals
    }
}

/// Made anew only if the peer has been touched.
fn stored(peer: &Peer) -> Arc<PeerSnapshot> {
    let snapshot = || Arc::new(peer_snapshot(peer));
    let stored = peer.stored.get_or_init(snapshot);
    debug_assert_eq!(**stored, peer_snapshot(peer), "changed unnoticed");
    stored.clone()
}

fn peer_snapshot(peer: &Peer) -> PeerSnapshot {
    PeerSnapshot {
        number: peer.number,
        id: peer.id.clone(),
        name: peer.name.clone(),
        prefixes: peer.signed.clone(),
        assignment: peer.assignment,
        serial: peer.serial.clone(),
        tunnel_key: peer.tunnel_key,
        boot_ids: peer.boot_ids.clone(),
        last_epoch: peer.last_epoch,
        lineage: peer.lineage,
        session: peer.standing.map(|standing| SessionSnapshot {
            oldest: standing.entry.oldest,
            current: standing.entry.current,
            age: standing.ends.age,
            not_after: standing.ends.not_after,
            expires: standing.entry.expires,
            ready: standing.entry.state == SessionState::Ready,
        }),
        announced: peer.announced.list(),
        remotes: peer.remotes.list(),
        rests_on: peer.rests_on.list(),
        seen: peer.seen.list(),
        seen_floor: peer.seen_floor,
    }
}

impl Entry<IpAddr, Announcement> for AnnouncedSnapshot {
    fn of(address: &IpAddr, announcement: &Announcement) -> Self {
        Self {
            address: *address,
            endpoint: announcement.entry.endpoint,
            identity: announcement.identity,
            epoch: announcement.entry.epoch,
            generation: announcement.entry.generation,
            state: announcement.entry.state,
        }
    }
}

impl Entry<IpAddr, RemoteEntry> for RemoteSnapshot {
    fn of(address: &IpAddr, remote: &RemoteEntry) -> Self {
        Self {
            address: *address,
            identity: remote.identity,
            epoch: remote.epoch,
            generation: remote.generation,
        }
    }
}

impl Entry<Footing, u32> for FootingSnapshot {
    fn of(footing: &Footing, epoch: &u32) -> Self {
        Self {
            identity: footing.identity,
            serial: footing.serial.clone(),
            ours: footing.ours,
            epoch: *epoch,
        }
    }
}

impl Entry<IpAddr, u64> for (IpAddr, u64) {
    fn of(address: &IpAddr, generation: &u64) -> Self {
        (*address, *generation)
    }
}

fn restored(saved: PeerSnapshot) -> Peer {
    let number: PeerNumber = saved.number;
    let mut peer = Peer::new(number, saved.id, saved.name);
    peer.signed = saved.prefixes;
    peer.assignment = saved.assignment;
    peer.serial = saved.serial;
    peer.tunnel_key = saved.tunnel_key;
    peer.boot_ids = saved.boot_ids;
    if !planted(Bug::EpochIgnoredOnRestart) {
        peer.last_epoch = saved.last_epoch;
    }
    peer.lineage = saved.lineage;
    peer.standing = saved.session.map(|session| Standing {
        entry: SessionEntry {
            oldest: session.oldest,
            current: session.current,
            expires: session.expires,
            state: if session.ready {
                SessionState::Ready
            } else {
                SessionState::Pending
            },
        },
        ends: Ends {
            age: session.age,
            not_after: session.not_after,
        },
    });
    for saved in saved.announced.iter() {
        let entry = AnnouncedEntry {
            endpoint: saved.endpoint,
            epoch: saved.epoch,
            state: saved.state,
            generation: saved.generation,
        };
        let announcement = Announcement {
            entry,
            identity: saved.identity,
            said: Said::Nothing,
        };
        peer.announced.insert(saved.address, announcement);
    }
    for saved in saved.remotes.iter() {
        let remote = RemoteEntry {
            identity: saved.identity,
            peer: number,
            epoch: saved.epoch,
            generation: saved.generation,
        };
        peer.remotes.insert(saved.address, remote);
    }
    for saved in saved.rests_on.iter() {
        let footing = Footing {
            identity: saved.identity,
            serial: saved.serial.clone(),
            ours: saved.ours,
        };
        peer.rests_on.insert(footing, saved.epoch);
    }
    peer.inherited = peer.standing.is_some();
    peer.seen.extend(saved.seen.iter().copied());
    peer.seen_floor = saved.seen_floor;
    peer
}
