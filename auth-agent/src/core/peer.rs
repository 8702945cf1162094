//! What is remembered of one peer. The rules that change it stand in the files named after them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;

use super::config::Times;
use super::effect::{AnnouncedEntry, AnnouncedState, RemoteEntry, SessionEntry};
use super::event::{NodeInfo, PeerNode};
use super::kept::Kept;
use super::snapshot::{AnnouncedSnapshot, FootingSnapshot, PeerSnapshot, RemoteSnapshot};
use super::types::{ConnId, EndpointId, HoldKey, IdentityNumber, Now, PeerNumber};
use crate::wire::{BootId, Frame, Hello, LeafHash};

/// One other node.
#[derive(Debug)]
pub(super) struct Peer {
    pub number: PeerNumber,
    pub id: String,
    pub name: String,
    /// As the CA lists it.
    pub hint: Option<NodeInfo>,
    /// As its certificate said in the session that stands.
    pub signed: Vec<IpNet>,
    pub assignment: u64,
    pub serial: Vec<u8>,
    /// The one that it has shown to hold.
    pub tunnel_key: Option<[u8; 32]>,
    /// Newest last.
    pub boot_ids: Vec<BootId>,
    pub last_epoch: u32,
    /// Names the sessions that follow each other without a cut between; 0 while none stands.
    pub lineage: u64,
    /// What stands in the kernel; outlives its connection.
    pub standing: Option<Standing>,
    pub live: Option<Session>,
    pub greetings: BTreeMap<ConnId, Greeting>,
    pub dialling: Option<Duration>,
    pub failures: u32,
    pub next_dial: Duration,
    /// Something was put off until then.
    pub retry_at: Option<Duration>,
    /// Local identities to be proven and announced to it.
    pub wanted: BTreeSet<IdentityNumber>,
    pub announced: Kept<IpAddr, Announcement, AnnouncedSnapshot>,
    pub remotes: Kept<IpAddr, RemoteEntry, RemoteSnapshot>,
    /// Proofs that entries of the epochs which count rest on, and the newest of those epochs.
    pub rests_on: Kept<Footing, u32, FootingSnapshot>,
    /// Entries of an earlier agent may count that are not known here one by one: until the next sweep.
    pub inherited: bool,
    pub seen: Kept<IpAddr, u64, (IpAddr, u64)>,
    pub seen_floor: u64,
    /// Who its addresses were that were forgotten a moment ago, and when.
    pub forgot: BTreeMap<IpAddr, (IdentityNumber, Duration)>,
    pub negative: BTreeMap<IpAddr, Duration>,
    pub asked: BTreeMap<IpAddr, Duration>,
    pub resolves_out: Bucket,
    pub holds: BTreeSet<HoldKey>,
    pub violations: u64,
    /// Connections of its own dialling that were let in.
    pub let_in: Bucket,
    /// Since when, and until when if that is over, the kernel may take the peer's addresses for others than the core
    /// does: from a write that it refused until all was written again.
    pub unsure: Option<(Duration, Option<Duration>)>,
    /// As it was stored last, if it has not been touched since.
    pub stored: OnceLock<Arc<PeerSnapshot>>,
}

/// A session as the kernel has it, and when each of its reasons to end comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub entry: SessionEntry,
    pub ends: Ends,
}

/// When something ends: by age on the boot clock, or by a certificate in wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub age: Duration,
    pub not_after: u64,
}

impl Ends {
    pub(super) fn at(self, now: Now) -> Duration {
        self.age.min(now.boot_at(self.not_after))
    }

    pub(super) fn earliest(self, other: Self) -> Self {
        Self {
            age: self.age.min(other.age),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

/// A connection before Hello both ways.
#[derive(Debug)]
pub(super) struct Greeting {
    pub dialled: bool,
    pub node: PeerNode,
    pub address: IpAddr,
    pub local_not_after: u64,
    /// Our tunnel key, as our Hello says it here.
    pub own_key: [u8; 32],
    pub since: Duration,
    pub hello: Option<Hello>,
    pub grants: Grants,
}

/// Contexts for client authenticators: granted to us (client) or by us (server).
#[derive(Debug, Default)]
pub(super) struct Grants {
    pub contexts: VecDeque<[u8; 32]>,
    /// Server: the shell has been asked for that many more.
    pub making: usize,
}

/// The live connection of a peer.
#[derive(Debug)]
pub(super) struct Session {
    pub conn: ConnId,
    pub dialled: bool,
    pub epoch: u32,
    pub node: PeerNode,
    pub hello: Hello,
    pub endpoint: SocketAddr,
    pub since: Duration,
    pub ends: Ends,
    pub renew_at: Duration,
    pub heard: Duration,
    pub pinged: Duration,
    /// A frame after Hello has come: the peer knows that the session is live.
    pub demonstrated: bool,
    pub tunnel: Tunnel,
    /// Our tunnel key, as our Hello said it.
    pub own_key: [u8; 32],
    pub key_shown: bool,
    pub peer_tunnel: bool,
    pub ready_sent: bool,
    pub ready_heard: bool,
    pub committed: bool,
    /// Packets leave under its keys.
    pub activated: bool,
    /// Its proofs make no pairs any more; a successor is on its way.
    pub flushed: bool,
    pub grants: Grants,
    pub given: BTreeMap<IdentityNumber, Given>,
    pub given_order: VecDeque<(IdentityNumber, LeafHash)>,
    pub proven: BTreeMap<LeafHash, Proven>,
    /// Proofs handed to the shell, and verdicts that have come back.
    pub proofs_begun: u64,
    pub proofs_ended: u64,
    /// Frames that came after a proof whose verdict is still out.
    pub waiting: VecDeque<(u64, Frame)>,
    pub deny_number: u64,
    /// The pieces of a list that have come so far.
    pub deny_list_in: Vec<u8>,
    /// Proofs, announcements and withdrawals of the peer's that were refused.
    pub refusals: u32,
    pub resolves_in: Bucket,
    pub deny_lists_in: Bucket,
    /// Questions that wait for the peer's answer, and since when.
    pub asks: BTreeMap<u64, Duration>,
    pub questions_in: Bucket,
}

/// This node's side of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tunnel {
    /// The peer has yet to show that it holds the key.
    Claimed,
    Installing,
    Failed {
        retry_at: Duration,
    },
    Installed,
}

impl Session {
    pub(super) fn tunnel_ready(&self) -> bool {
        self.tunnel == Tunnel::Installed && self.peer_tunnel
    }

    /// An unexpired proof of the peer's for this identity: its end, and when it was shown.
    pub(super) fn proof_of(&self, identity: IdentityNumber, now: Now) -> Option<&Proven> {
        self.proven
            .values()
            .filter(|proven| proven.identity == identity && proven.not_after > now.wall)
            .max_by_key(|proven| proven.not_after)
    }

    /// The leaf hash under which the peer knows, or will know, this identity of ours.
    pub(super) fn leaf_of(&self, identity: IdentityNumber) -> Option<LeafHash> {
        let given = self.given.get(&identity)?;
        given.sent.or(given.accepted).map(|shown| shown.leaf_hash)
    }
}

/// A local identity toward one session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    pub sent: Option<Shown>,
    pub accepted: Option<Shown>,
    pub retry_at: Option<Duration>,
}

/// One local proof SVID, shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub leaf_hash: LeafHash,
    pub not_after: u64,
    pub at: Duration,
}

/// A proof that entries of the kernel rest on: all that must be known of it to take them away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Footing {
    pub identity: IdentityNumber,
    pub serial: Vec<u8>,
    /// Given by this node, not by the peer.
    pub ours: bool,
}

/// One proof of the peer's.
#[derive(Clone, Debug)]
pub(super) struct Proven {
    pub identity: IdentityNumber,
    pub not_after: u64,
    pub serial: Vec<u8>,
    pub at: Duration,
    /// How often it has been shown since.
    pub repeats: u32,
}

/// A local address toward the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announcement {
    /// As the kernel has it.
    pub entry: AnnouncedEntry,
    pub identity: IdentityNumber,
    /// What has been said about it in the live session.
    pub said: Said,
}

/// How far an announcement or a withdrawal has come in the live session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Waiting { generation: u64, since: Duration },
    Confirmed,
    Refused { retry_at: Duration },
}

impl Announcement {
    pub(super) fn withdrawing(&self) -> bool {
        self.entry.state == AnnouncedState::Withdrawing
    }

    /// The peer owes an answer to this one.
    pub(super) fn awaits(&self, answered: u64) -> bool {
        matches!(self.said, Said::Waiting { generation, .. } if generation == answered)
    }

    pub(super) fn is_of(&self, endpoint: EndpointId, identity: IdentityNumber) -> bool {
        self.entry.endpoint == endpoint && self.identity == identity
    }
}

/// A token bucket with a burst of one second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    spent_us: u64,
    at: Duration,
}

impl Bucket {
    /// Takes one token if there is one. Each costs a share of a second; a second's worth may be spent at once.
    pub(super) fn take(&mut self, now: Duration, per_second: u32) -> bool {
        let cost = 1_000_000 / u64::from(per_second.max(1));
        let passed = now.saturating_sub(self.at).as_micros();
        self.spent_us = self
            .spent_us
            .saturating_sub(u64::try_from(passed).unwrap_or(u64::MAX));
        self.at = now;
        let free = self.spent_us.saturating_add(cost) <= 1_000_000;
        if free {
            self.spent_us = self.spent_us.saturating_add(cost);
        }
        free
    }
}

impl Peer {
    pub(super) fn new(number: PeerNumber, id: String, name: String) -> Self {
        Self {
            number,
            id,
            name,
            hint: None,
            signed: Vec::new(),
            assignment: 0,
            serial: Vec::new(),
            tunnel_key: None,
            boot_ids: Vec::new(),
            last_epoch: 0,
            lineage: 0,
            standing: None,
            live: None,
            greetings: BTreeMap::new(),
            dialling: None,
            failures: 0,
            next_dial: Duration::ZERO,
            retry_at: None,
            wanted: BTreeSet::new(),
            announced: Kept::default(),
            remotes: Kept::default(),
            rests_on: Kept::default(),
            inherited: false,
            seen: Kept::default(),
            seen_floor: 0,
            forgot: BTreeMap::new(),
            negative: BTreeMap::new(),
            asked: BTreeMap::new(),
            resolves_out: Bucket::default(),
            holds: BTreeSet::new(),
            violations: 0,
            let_in: Bucket::default(),
            unsure: None,
            stored: OnceLock::new(),
        }
    }

    /// Where its prefixes lie: signed while a session stands, the CA's list otherwise.
    pub(super) fn prefixes(&self) -> &[IpNet] {
        match (&self.standing, &self.live, &self.hint) {
            (None, None, Some(hint)) => &hint.prefixes,
            (None, None, None) => &[],
            _ => &self.signed,
        }
    }

    /// True while something needs a connection.
    pub(super) fn needs_session(&self) -> bool {
        self.standing.is_some() || !self.holds.is_empty()
    }

    /// True where nothing is lost by forgetting it.
    pub(super) fn is_idle(&self) -> bool {
        self.hint.is_none()
            && self.standing.is_none()
            && self.live.is_none()
            && self.greetings.is_empty()
            && self.dialling.is_none()
            && self.holds.is_empty()
    }

    /// Puts something off, at most until then.
    pub(super) fn retry(&mut self, at: Duration) {
        self.retry_at = Some(self.retry_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// When its timers must be looked at next.
    pub(super) fn deadline(&self, now: Now, times: &Times) -> Option<Duration> {
        let greetings = self
            .greetings
            .values()
            .map(|greeting| greeting.since + times.hello);
        let dialling = self.dialling.map(|since| since + times.dial * 2);
        let connecting = self.dialling.is_some() || !self.greetings.is_empty();
        let dial = (self.live.is_none() && !connecting && self.needs_session())
            .then_some(self.next_dial.max(now.boot));
        let standing = self.standing.as_ref().map(|s| s.ends.at(now));
        let live = self.live.iter().flat_map(|live| {
            let tunnel = match live.tunnel {
                Tunnel::Failed { retry_at } => Some(retry_at),
                _ => None,
            };
            let renew = (!connecting).then_some(live.renew_at.max(self.next_dial));
            let ping = live.heard.max(live.pinged) + times.ping;
            [
                Some(ping),
                Some(live.heard + times.ping * 3),
                Some(live.ends.at(now)),
                tunnel,
                renew,
            ]
            .into_iter()
            .flatten()
        });
        greetings
            .chain(dialling)
            .chain(dial)
            .chain(standing)
            .chain(live)
            .chain(self.retry_at)
            .min()
    }
}
