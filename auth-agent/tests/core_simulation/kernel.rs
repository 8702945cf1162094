//! A plain model of one node's kernel: the maps, the two gates at the tunnel, and WireGuard's peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_agent::core::{
    AnnouncedEntry, AnnouncedState, Effect, EndpointId, Identity, IdentityNumber, PairKey,
    PeerNumber, RemoteEntry, SessionEntry, SessionState,
};
use ipnet::IpNet;

use super::node::Rules;
use super::tunnels::Tunnels;

/// What outlives the agent.
#[derive(Clone, Default)]
pub struct Kernel {
    /// Endpoints whose interfaces have their programs.
    pub attached: BTreeSet<EndpointId>,
    pub prefixes: BTreeMap<IpNet, PeerNumber>,
    pub locals: BTreeMap<IpAddr, (EndpointId, IdentityNumber)>,
    pub sessions: BTreeMap<PeerNumber, SessionEntry>,
    pub remotes: BTreeMap<IpAddr, RemoteEntry>,
    pub negative: BTreeMap<IpAddr, Duration>,
    pub announced: BTreeMap<(IpAddr, PeerNumber), AnnouncedEntry>,
    pub identities: BTreeMap<IdentityNumber, (Duration, bool)>,
    pub names: BTreeMap<IdentityNumber, Arc<Identity>>,
    pub pairs: BTreeMap<PairKey, (Duration, u32)>,
    pub tunnels: BTreeMap<PeerNumber, Tunnels>,
    /// What the policy map was compiled from.
    pub rules: Option<Arc<Rules>>,
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Hold(&'static str),
    Drop(&'static str),
}

use Verdict::{Drop, Hold, Pass};

impl Verdict {
    /// A packet that was given back and is still undecided is not held again.
    pub fn once(self, again: bool) -> Self {
        match self {
            Hold(_) if again => Drop("hold again"),
            verdict => verdict,
        }
    }
}

impl Kernel {
    /// Carries out what concerns the maps; true if the effect did.
    pub fn apply(&mut self, effect: &Effect) -> bool {
        match effect {
            Effect::ClearTables => {
                *self = Self {
                    attached: std::mem::take(&mut self.attached),
                    tunnels: std::mem::take(&mut self.tunnels),
                    rules: self.rules.take(),
                    ..Self::default()
                };
            }
            Effect::SetPrefix { prefix, peer } => {
                self.prefixes.insert(*prefix, *peer);
            }
            Effect::RemovePrefix { prefix } => {
                self.prefixes.remove(prefix);
            }
            Effect::SetLocal {
                address,
                endpoint,
                identity,
            } => {
                self.locals.insert(*address, (*endpoint, *identity));
            }
            Effect::RemoveLocal { address } => {
                self.locals.remove(address);
            }
            Effect::SetSession { peer, session } => {
                self.sessions.insert(*peer, *session);
            }
            Effect::RemoveSession { peer } => {
                self.sessions.remove(peer);
            }
            Effect::SetRemote { address, remote } => {
                self.negative.remove(address);
                self.remotes.insert(*address, *remote);
            }
            Effect::SetNegative { address, until, .. } => {
                self.remotes.remove(address);
                self.negative.insert(*address, *until);
            }
            Effect::RemoveRemote { address } => {
                self.negative.remove(address);
                self.remotes.remove(address);
            }
            Effect::SetAnnounced {
                address,
                peer,
                announced,
            } => {
                self.announced.insert((*address, *peer), *announced);
            }
            Effect::RemoveAnnounced { address, peer } => {
                self.announced.remove(&(*address, *peer));
            }
            Effect::SetIdentity {
                number,
                valid_until,
                revoked,
            } => {
                self.identities.insert(*number, (*valid_until, *revoked));
            }
            Effect::Identity { number, identity } => {
                self.names.insert(*number, identity.clone());
            }
            Effect::SetPair {
                pair,
                expires,
                epoch,
            } => {
                self.pairs.insert(*pair, (*expires, *epoch));
            }
            Effect::RemovePair { pair } => {
                self.pairs.remove(pair);
            }
            Effect::SweepEpoch { peer, below } => self.sweep(*peer, *below),
            Effect::RemoveTunnel { peer } => {
                self.tunnels.remove(peer);
            }
            _ => return false,
        }
        true
    }

    fn sweep(&mut self, peer: PeerNumber, below: u32) {
        self.remotes
            .retain(|_, remote| remote.peer != peer || remote.epoch >= below);
        self.announced
            .retain(|(_, to), entry| *to != peer || entry.epoch >= below);
        self.pairs
            .retain(|key, (_, epoch)| key.peer != peer || *epoch >= below);
    }

    pub fn peer_of(&self, address: IpAddr) -> Option<PeerNumber> {
        self.prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, peer)| *peer)
    }

    pub fn epoch_valid(&self, peer: PeerNumber, epoch: u32) -> bool {
        self.sessions
            .get(&peer)
            .is_some_and(|session| (session.oldest..=session.current).contains(&epoch))
    }

    /// Whether an epoch is one that the session has not come to yet.
    fn ahead(&self, peer: PeerNumber, epoch: u32) -> bool {
        let session = self.sessions.get(&peer);
        session.is_some_and(|session| epoch > session.current)
    }

    pub fn session_ready(&self, peer: PeerNumber, now: Duration) -> bool {
        self.sessions
            .get(&peer)
            .is_some_and(|s| s.state == SessionState::Ready && s.expires > now)
    }

    /// Who this kernel takes a remote address of a peer for.
    pub fn believes(&self, peer: PeerNumber, address: IpAddr) -> Option<IdentityNumber> {
        self.remotes
            .get(&address)
            .filter(|remote| remote.peer == peer && self.epoch_valid(peer, remote.epoch))
            .map(|remote| remote.identity)
    }

    /// The same by name.
    pub fn takes_for(&self, peer: PeerNumber, address: IpAddr) -> Option<&Arc<Identity>> {
        self.names.get(&self.believes(peer, address)?)
    }

    /// Which endpoint may use a local address toward a peer.
    pub fn user_of(&self, peer: PeerNumber, address: IpAddr) -> Option<EndpointId> {
        let entry = self.announced.get(&(address, peer))?;
        let session = self.sessions.get(&peer);
        let open = entry.state == AnnouncedState::Confirmed
            && session.is_some_and(|session| entry.epoch >= session.oldest);
        let (endpoint, _) = self.locals.get(&address)?;
        let there = *endpoint == entry.endpoint && self.attached.contains(endpoint);
        (open && there).then_some(*endpoint)
    }

    pub fn counts(&self, identity: IdentityNumber, now: Duration) -> bool {
        self.identities
            .get(&identity)
            .is_some_and(|(until, revoked)| !revoked && *until > now)
    }

    pub fn paired(&self, key: PairKey, now: Duration) -> bool {
        self.pairs
            .get(&key)
            .is_some_and(|(expires, epoch)| *expires > now && self.epoch_valid(key.peer, *epoch))
            && self.counts(key.local, now)
            && self.counts(key.remote, now)
    }

    /// Policy, then the pair.
    fn decide(&self, key: PairKey, now: Duration) -> Verdict {
        let names = self.names.get(&key.local).zip(self.names.get(&key.remote));
        match (&self.rules, names) {
            (None, _) => Hold("no policy"),
            (Some(rules), Some((one, two))) if !rules.allow(one, two) => Drop("policy"),
            _ if self.paired(key, now) => Pass,
            _ => Hold("pair"),
        }
    }

    /// Egress of the tunnel.
    pub fn to_tunnel(&self, source: IpAddr, destination: IpAddr, now: Duration) -> Verdict {
        let Some((endpoint, local)) = self.locals.get(&source).copied() else {
            return Drop("source");
        };
        if !self.attached.contains(&endpoint) {
            return Drop("not attached");
        }
        let Some(peer) = self.peer_of(destination) else {
            return Drop("unmanaged");
        };
        let refused = self.negative.get(&destination);
        if refused.is_some_and(|until| *until > now) {
            return Drop("negative");
        }
        if !self.session_ready(peer, now) {
            return Hold("session");
        }
        let Some(remote) = self.believes(peer, destination) else {
            return Hold("remote");
        };
        if self.user_of(peer, source).is_none() {
            return Hold("announced");
        }
        let key = PairKey {
            local,
            remote,
            peer,
        };
        self.decide(key, now)
    }

    /// Ingress of the tunnel, from a peer.
    pub fn at_ingress(
        &self,
        peer: PeerNumber,
        source: IpAddr,
        destination: IpAddr,
        now: Duration,
    ) -> Verdict {
        match self.sessions.get(&peer) {
            Some(session) if session.expires <= now => return Drop("session"),
            Some(session) if session.state == SessionState::Ready => {}
            // The peer's packets may overtake its word that its tunnel stands.
            Some(session) if session.state == SessionState::Pending => return Hold("session"),
            _ => return Drop("session"),
        }
        let remote = match self.remotes.get(&source).filter(|r| r.peer == peer) {
            None => return Drop("unknown source"),
            Some(remote) if self.epoch_valid(peer, remote.epoch) => remote.identity,
            Some(remote) if self.ahead(peer, remote.epoch) => return Hold("session"),
            Some(_) => return Drop("stale source"),
        };
        let Some((endpoint, local)) = self.locals.get(&destination).copied() else {
            return Drop("destination");
        };
        match self.announced.get(&(destination, peer)) {
            Some(entry) if entry.endpoint != endpoint => return Drop("announced other"),
            Some(entry) if entry.state == AnnouncedState::Sent => return Hold("announced"),
            Some(_) if self.user_of(peer, destination).is_some() => {}
            _ => return Drop("not announced"),
        }
        let key = PairKey {
            local,
            remote,
            peer,
        };
        self.decide(key, now)
    }
}
