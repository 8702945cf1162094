//! What people may see of the core: for `status`, `pair list`, `tunnel status`, `verify` and `explain`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Core;
use super::effect::{AnnouncedState, PairKey, SessionEntry};
use super::peer::Peer;
use super::types::{ConnId, EndpointId, HoldKey, Identity, IdentityNumber, PeerNumber};

/// Everything, at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Peers by number.
    pub peers: Vec<PeerView>,
    /// Endpoints by number.
    pub endpoints: Vec<EndpointView>,
    /// Identities by number.
    pub identities: BTreeMap<IdentityNumber, IdentityView>,
    /// Recorded pairs; after a restart those that have been proven again.
    pub pairs: Vec<PairView>,
    /// Keys with packets that wait.
    pub holds: Vec<HoldKey>,
    /// What happened how often, by name.
    pub counters: BTreeMap<&'static str, u64>,
    /// Number of the deny list in force.
    pub deny_number: u64,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// This node's number for it.
    pub number: PeerNumber,
    /// Its full SPIFFE ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Signed prefixes while there is a session, those of the CA's list otherwise.
    pub prefixes: Vec<IpNet>,
    /// How the connection stands.
    pub connection: ConnectionView,
    /// What the kernel knows.
    pub session: Option<SessionEntry>,
    /// Names the sessions that follow each other without a cut; 0 while none stands.
    pub lineage: u64,
    /// The session whose connection is live.
    pub live: Option<LiveView>,
    /// Local identities that the peer has accepted proofs of in this session.
    pub given: BTreeSet<IdentityNumber>,
    /// Its identities that were proven in this session.
    pub proven: BTreeSet<IdentityNumber>,
    /// Local addresses announced to it.
    pub announced: Vec<(IpAddr, EndpointId, AnnouncedState)>,
    /// Its addresses, as it announced them.
    pub remotes: Vec<(IpAddr, IdentityNumber)>,
    /// Addresses of its that it would not name.
    pub refused: Vec<IpAddr>,
    /// How often it broke the rules.
    pub violations: u64,
}

/// A live session.
#[derive(Clone, Debug)]
pub struct LiveView {
    /// Its connection.
    pub conn: ConnId,
    /// Its epoch on this node.
    pub epoch: u32,
    /// Boot clock.
    pub since: Duration,
    /// When a successor is due: boot clock.
    pub renew_at: Duration,
    /// Its hard expiry: boot clock.
    pub ends: Duration,
    /// Both sides have its tunnel.
    pub tunnel_ready: bool,
    /// Packets leave under its keys.
    pub activated: bool,
    /// Both sides have said that it carries everything.
    pub committed: bool,
    /// Our tunnel key in it.
    pub own_key: [u8; 32],
    /// The peer's.
    pub peer_key: [u8; 32],
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionView {
    /// Nothing asks for one.
    None,
    /// The next dial is due at this time of the boot clock.
    Waiting(Duration),
    /// Dialling, or no Hello yet.
    Connecting,
    /// Live: Hello both ways.
    Live,
}

impl ConnectionView {
    /// One word for listings.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Waiting(_) => "waiting",
            Self::Connecting => "connecting",
            Self::Live => "live",
        }
    }
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// Its number.
    pub endpoint: EndpointId,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Who it is.
    pub identity: Option<IdentityNumber>,
}

/// One identity.
#[derive(Clone, Debug)]
pub struct IdentityView {
    /// Who.
    pub identity: Arc<Identity>,
    /// Boot clock.
    pub valid_until: Duration,
    /// On the deny list.
    pub revoked: bool,
    /// This node has a proof SVID for it.
    pub local: bool,
}

/// One pair.
#[derive(Clone, Debug)]
pub struct PairView {
    /// Its key.
    pub pair: PairKey,
    /// Unix seconds.
    pub expires: u64,
    /// The session's epoch on this node.
    pub epoch: u32,
}

impl Core {
    /// Serial number of the newest proof of an identity that the peer's entries rest on; of this node's own if `ours`.
    pub fn proof_serial(
        &self,
        peer: PeerNumber,
        identity: IdentityNumber,
        ours: bool,
    ) -> Option<&[u8]> {
        let footings = self.peer(peer)?.rests_on.iter();
        footings
            .filter(|(footing, _)| footing.identity == identity && footing.ours == ours)
            .max_by_key(|(_, epoch)| **epoch)
            .map(|(footing, _)| footing.serial.as_slice())
    }

    /// Everything, for people.
    pub fn view(&self) -> View {
        let endpoints = self.endpoints.iter();
        View {
            peers: self
                .peers
                .values()
                .map(|peer| self.peer_view(peer))
                .collect(),
            endpoints: endpoints
                .map(|(number, endpoint)| EndpointView {
                    endpoint: *number,
                    addresses: endpoint.addresses.clone(),
                    identity: endpoint.identity,
                })
                .collect(),
            identities: self
                .numbers
                .iter()
                .map(|(number, known)| {
                    let view = IdentityView {
                        identity: known.identity.clone(),
                        valid_until: self.now.boot_at(known.not_after),
                        revoked: known.revoked,
                        local: self.mine.contains_key(&number),
                    };
                    (number, view)
                })
                .collect(),
            pairs: self
                .pairs
                .iter()
                .map(|(key, pair)| PairView {
                    pair: *key,
                    expires: pair.expires.saturating_sub(self.now.boot).as_secs() + self.now.wall,
                    epoch: pair.epoch,
                })
                .collect(),
            holds: self.holds.keys().copied().collect(),
            counters: self.counters.clone(),
            deny_number: self.deny.number,
        }
    }

    fn peer_view(&self, peer: &Peer) -> PeerView {
        let connecting = peer.dialling.is_some() || !peer.greetings.is_empty();
        let connection = match &peer.live {
            Some(_) => ConnectionView::Live,
            None if connecting => ConnectionView::Connecting,
            None if peer.needs_session() => ConnectionView::Waiting(peer.next_dial),
            None => ConnectionView::None,
        };
        let live = peer.live.iter();
        PeerView {
            number: peer.number,
            id: peer.id.clone(),
            name: peer.name.clone(),
            prefixes: peer.prefixes().to_vec(),
            connection,
            session: peer.standing.map(|standing| standing.entry),
            lineage: peer.lineage,
            live: peer.live.as_ref().map(|live| LiveView {
                conn: live.conn,
                epoch: live.epoch,
                since: live.since,
                renew_at: live.renew_at,
                ends: live.ends.at(self.now),
                tunnel_ready: live.tunnel_ready(),
                activated: live.activated,
                committed: live.committed,
                own_key: live.own_key,
                peer_key: live.hello.tunnel_key,
            }),
            given: live
                .clone()
                .flat_map(|live| &live.given)
                .filter(|(_, given)| given.accepted.is_some())
                .map(|(number, _)| *number)
                .collect(),
            proven: live
                .flat_map(|live| live.proven.values())
                .map(|proven| proven.identity)
                .collect(),
            announced: peer
                .announced
                .iter()
                .map(|(address, a)| (*address, a.entry.endpoint, a.entry.state))
                .collect(),
            remotes: peer
                .remotes
                .iter()
                .map(|(address, remote)| (*address, remote.identity))
                .collect(),
            refused: peer
                .negative
                .iter()
                .filter(|(_, until)| **until > self.now.boot)
                .map(|(address, _)| *address)
                .collect(),
            violations: peer.violations,
        }
    }
}
