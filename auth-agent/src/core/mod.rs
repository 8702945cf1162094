//! The protocol between nodes as one state machine: sessions, proofs, announcements, pairs and holds.
//!
//! An [`Event`] goes in, [`Effect`]s come out. No socket, no clock, no randomness: the tokio shell and the
//! simulator drive the same code, and the same inputs give the same outputs. PROTOCOL.md has the rules; each
//! file here has those of its name.
//!
//! What was left open there and is decided here:
//! - *Who decides between two connections?* The node with the lexically lower ID, by withholding its Hello: the
//!   other one greets at once and takes a connection as live when the lower node's Hello arrives. So both see
//!   the same connections become live in the same order, whatever crosses on the way.
//! - *One live connection a peer.* A successor replaces its predecessor's connection at once; the predecessor's
//!   epoch stays valid in the kernel until both sides have said `Ready`, or until its own expiry.
//! - *Ready* is said when the tunnel stands on both sides and every address this node announced in older epochs
//!   is confirmed in the new one, refused, or withdrawn. An agent that lacks an SVID or policy waits with it:
//!   the old epoch serves meanwhile.
//! - *Generations* are max(last + 1, milliseconds of the boot clock), one row of numbers for all addresses, so
//!   that they rise even if a snapshot is lost, and so that a receiver may forget old withdrawals above a floor.
//! - *A withdrawal* goes over the newest session of each peer; one confirmation a peer is enough, since what it
//!   believes is one entry an address and a generation that is lower than the withdrawal's is refused.

mod announce;
mod ask;
mod config;
mod delta;
mod deny;
mod dial;
mod effect;
mod endpoint;
mod event;
mod frame;
mod grant;
mod greeting;
mod hold;
mod identity;
mod journal;
mod kept;
mod pair;
mod peer;
pub(crate) mod planted;
mod prefix;
mod proof;
mod reason;
mod remote;
mod restore;
mod rewrite;
mod session;
mod snapshot;
mod standing;
mod timer;
mod tunnel;
mod types;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use config::{Config, Limits, Local, Times};
pub use delta::{Delta, UnknownPeer};
pub use effect::{
    AnnouncedEntry, AnnouncedState, Effect, PairKey, RemoteEntry, SessionEntry, SessionState,
};
pub use event::{
    Connected, DenyList, Event, LocalIdentity, NodeInfo, PeerNode, Policy, RemoteProof,
};
pub use journal::{Journal, JournalError};
#[cfg(feature = "planted-bugs")]
pub use planted::{Bug, plant, planted};
pub use reason::{Alarm, CloseReason, Discarded};
pub use snapshot::{
    AnnouncedSnapshot, FootingSnapshot, IdentitySnapshot, PeerSnapshot, RemoteSnapshot, Removals,
    SessionSnapshot, Snapshot,
};
pub use types::{
    ConnId, Direction, EndpointId, HoldKey, Identity, IdentityNumber, Now, Pairing, PeerNumber,
    PolicyView,
};
pub use view::{ConnectionView, EndpointView, IdentityView, LiveView, PairView, PeerView, View};

use endpoint::{Endpoint, Mine, Rest};
use hold::Hold;
use identity::Numbers;
use pair::Pair;
use peer::Peer;
use rewrite::Rewrite;

/// The state machine of one node.
#[derive(Debug)]
pub struct Core {
    config: Config,
    local: Local,
    /// The key before `local.tunnel_key`: sessions that said it may go on for a while.
    former_tunnel_key: Option<[u8; 32]>,
    now: Now,
    numbers: Numbers,
    mine: BTreeMap<IdentityNumber, Mine>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Which endpoints are an identity.
    bearers: BTreeMap<IdentityNumber, BTreeSet<EndpointId>>,
    locals: BTreeMap<IpAddr, EndpointId>,
    rests: BTreeMap<IpAddr, Rest>,
    peers: BTreeMap<PeerNumber, Peer>,
    by_id: BTreeMap<String, PeerNumber>,
    next_peer: u32,
    conns: BTreeMap<ConnId, PeerNumber>,
    /// As the kernel has them.
    prefixes: BTreeMap<IpNet, PeerNumber>,
    /// Which peer holds a remote address.
    holders: BTreeMap<IpAddr, PeerNumber>,
    pairs: BTreeMap<PairKey, Pair>,
    holds: BTreeMap<HoldKey, Hold>,
    hold_order: VecDeque<(Duration, HoldKey)>,
    policy: Option<Policy>,
    deny: Arc<DenyList>,
    generation: u64,
    settled: bool,
    stopped: bool,
    begun: bool,
    fresh: bool,
    housekeeping_at: Duration,
    rewrite: Rewrite,
    counters: BTreeMap<&'static str, u64>,
    deadlines: BTreeSet<(Duration, PeerNumber)>,
    deadline_of: BTreeMap<PeerNumber, Duration>,
    touched: BTreeSet<PeerNumber>,
    effects: Vec<Effect>,
    releases: Vec<HoldKey>,
    dirty: bool,
    /// Of the step that was persisted last: an agent that dies in it leaves them undone.
    removals: Removals,
}

impl Core {
    /// A core that begins, or that goes on where an earlier agent of this boot stopped. A snapshot of another
    /// node or another boot is void.
    pub fn new(config: Config, local: Local, snapshot: Option<Snapshot>) -> Self {
        let snapshot = snapshot.filter(|snapshot| snapshot.fits(&local));
        let mut core = Self {
            config,
            local,
            former_tunnel_key: None,
            now: Now {
                boot: Duration::ZERO,
                wall: 0,
            },
            numbers: Numbers::new(),
            mine: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            bearers: BTreeMap::new(),
            locals: BTreeMap::new(),
            rests: BTreeMap::new(),
            peers: BTreeMap::new(),
            by_id: BTreeMap::new(),
            next_peer: 1,
            conns: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            holders: BTreeMap::new(),
            pairs: BTreeMap::new(),
            holds: BTreeMap::new(),
            hold_order: VecDeque::new(),
            policy: None,
            deny: Arc::new(DenyList::default()),
            generation: 0,
            settled: false,
            stopped: false,
            begun: false,
            fresh: snapshot.is_none(),
            housekeeping_at: Duration::ZERO,
            rewrite: Rewrite::default(),
            counters: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            touched: BTreeSet::new(),
            effects: Vec::new(),
            releases: Vec::new(),
            dirty: false,
            removals: Removals::default(),
        };
        if let Some(snapshot) = snapshot {
            core.restore(snapshot);
        }
        core
    }

    /// One step. `now` must not go back on the boot clock.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.handle_all(now, [event])
    }

    /// Several inputs as one step, in their order: what waits is taken in at once and stored once. The effects are
    /// those of one step too: [`Effect::Persist`] first, [`Effect::Release`] last.
    pub fn handle_all(&mut self, now: Now, events: impl IntoIterator<Item = Event>) -> Vec<Effect> {
        self.advance(now);
        if !self.begun {
            self.begin();
        }
        self.run_timers();
        for event in events {
            self.dispatch(event);
        }
        self.finish()
    }

    /// When, on the boot clock, a [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let peers = self.deadlines.first().map(|(at, _)| *at);
        let holds = self.hold_order.front().map(|(at, _)| *at);
        peers
            .into_iter()
            .chain(holds)
            .chain(self.rewrite.at)
            .chain(self.begun.then_some(self.housekeeping_at))
            .min()
    }

    /// This node's number for a peer, by its full SPIFFE ID.
    pub fn peer_number(&self, id: &str) -> Option<PeerNumber> {
        self.by_id.get(id).copied()
    }

    /// Whose connection it is.
    pub fn peer_of_connection(&self, conn: ConnId) -> Option<PeerNumber> {
        self.conns.get(&conn).copied()
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Nodes(nodes) => self.nodes(nodes),
            Event::EndpointAdded {
                endpoint,
                addresses,
                identity,
            } => self.endpoint_added(endpoint, addresses, identity),
            Event::EndpointRemoved { endpoint } => self.endpoint_removed(endpoint),
            Event::Settled => self.settle(),
            Event::IdentityReady(identity) => self.identity_ready(identity),
            Event::IdentityGone(identity) => self.identity_gone(&identity),
            Event::Policy(policy) => self.policy_changed(policy),
            Event::Connected(connected) => self.connected(connected),
            Event::DialFailed { peer } => self.dial_failed(peer),
            Event::GrantMade { conn, requests } => self.grant_made(conn, requests),
            Event::Frame { conn, frame } => self.frame(conn, frame),
            Event::Garbage { conn } => self.violation(conn, CloseReason::Garbage),
            Event::Disconnected { conn } => self.disconnected(conn),
            Event::ProofVerified { conn, proof } => self.proof_verdict(conn, Ok(proof)),
            Event::ProofInvalid {
                conn,
                leaf_hash,
                reason,
            } => self.proof_verdict(conn, Err((leaf_hash, reason))),
            Event::ProofFailed { conn, leaf_hash } => self.proof_failed(conn, leaf_hash),
            Event::TunnelKeyChecked { conn, held } => self.tunnel_key_checked(conn, held),
            Event::TunnelInstalled { conn } => self.tunnel_installed(conn),
            Event::TunnelFailed { conn } => self.tunnel_failed(conn),
            Event::TunnelKey { key, port } => self.tunnel_key_changed(key, port),
            Event::RenewSession { peer } => self.renew_session(peer),
            Event::Ask { peer, id, question } => self.ask(peer, id, question),
            Event::AnswerGiven { conn, id, answer } => self.answer_given(conn, id, answer),
            Event::Held(key) => self.held(key),
            Event::UnknownSource {
                peer,
                address,
                endpoint,
            } => self.unknown_source(peer, address, endpoint),
            Event::DenyList(list) => self.deny_list(list),
            Event::NotWritten { peer } => self.not_written(peer),
            Event::FlushPairs => self.flush_pairs(),
            Event::Stop => self.stop(),
            Event::Tick => {}
        }
    }

    /// The first effects ever: what no event brings, and what the kernel may lack of the snapshot.
    fn begin(&mut self) {
        self.begun = true;
        self.housekeeping_at = self.now.boot + timer::HOUSEKEEPING;
        if self.fresh {
            self.emit(Effect::ClearTables);
        }
        self.cut_again();
        self.remove_tunnels_again();
        self.write_local_session();
        let known: Vec<_> = self
            .numbers
            .iter()
            .map(|(number, known)| (number, known.identity.clone()))
            .collect();
        for (number, identity) in known {
            self.emit(Effect::Identity { number, identity });
        }
        self.write_prefixes();
        self.write_again();
    }

    /// Pairs within this node have a session that never ends.
    fn write_local_session(&mut self) {
        let session = SessionEntry {
            oldest: pair::LOCAL_EPOCH,
            current: pair::LOCAL_EPOCH,
            expires: Duration::MAX,
            state: SessionState::Ready,
        };
        self.emit(Effect::SetSession {
            peer: PeerNumber::LOCAL,
            session,
        });
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.update_deadlines();
        let mut effects = std::mem::take(&mut self.effects);
        if std::mem::take(&mut self.dirty) {
            self.removals = Removals::of(&effects);
            effects.insert(0, Effect::Persist);
        }
        let releases = std::mem::take(&mut self.releases);
        effects.extend(releases.into_iter().map(|key| Effect::Release { key }));
        effects
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn persist(&mut self) {
        self.dirty = true;
    }

    fn alarm(&mut self, alarm: Alarm) {
        self.emit(Effect::Alarm(alarm));
    }

    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_insert(0) += 1;
    }

    fn peer(&self, number: PeerNumber) -> Option<&Peer> {
        self.peers.get(&number)
    }

    /// Whoever changes a peer may have changed its timers, and what is to be stored of it.
    fn peer_mut(&mut self, number: PeerNumber) -> Option<&mut Peer> {
        self.touched.insert(number);
        let peer = self.peers.get_mut(&number)?;
        peer.stored.take();
        Some(peer)
    }

    fn next_generation(&mut self) -> u64 {
        let clock = u64::try_from(self.now.boot.as_millis()).unwrap_or(u64::MAX);
        self.generation = self.generation.saturating_add(1).max(clock);
        self.persist();
        self.generation
    }

    /// Is this node the one that decides between connections with the other?
    fn leads(&self, id: &str) -> bool {
        self.local.id.as_str() < id
    }
}
