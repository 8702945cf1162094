//! What the core wants done. The shell carries effects out **in order**, each finished before the next begins;
//! the order is part of the safety argument: what forbids comes before what permits, [`Effect::Persist`] before
//! anything that relies on it, [`Effect::Release`] last. `SendProof` keeps its place among the frames of its
//! connection. An effect on a connection that is gone is skipped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::event::Event;
use super::reason::{Alarm, CloseReason, Discarded};
use super::types::{ConnId, EndpointId, HoldKey, Identity, IdentityNumber, PeerNumber};
use crate::wire::{Frame, LeafHash};

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Store [`Core::snapshot`](super::Core::snapshot) where an agent of the same boot finds it. At most one a
    /// step, and first. While it fails it is due before every step, and [`Effect::unless_stored`] says what is left
    /// out of that.
    Persist,
    /// First effect ever of a core without a snapshot: empty sessions, prefixes, remotes, announced, auth,
    /// identities, locals and connections, since their numbers mean nothing any more.
    ClearTables,

    /// Dial the peer; answer with `Connected` or `DialFailed`. The certificate must be this peer's.
    Dial {
        /// Number to answer with.
        peer: PeerNumber,
        /// Full SPIFFE ID that the certificate must carry.
        id: String,
        /// To try, in order.
        addresses: Vec<SocketAddr>,
    },
    /// Close the connection after what was sent before; no `Disconnected` is expected.
    Close {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// Send a frame.
    Send {
        /// The connection.
        conn: ConnId,
        /// The frame.
        frame: Frame,
    },
    /// Make that many fresh random contexts; answer with `GrantMade`.
    MakeGrant {
        /// The connection.
        conn: ConnId,
        /// How many.
        count: usize,
    },
    /// Make an authenticator with this proof SVID and send it in a `Proof` frame.
    SendProof {
        /// The connection.
        conn: ConnId,
        /// Whose proof.
        identity: Arc<Identity>,
        /// Names the SVID; if the shell no longer has exactly this one, it answers `ProofFailed`.
        leaf_hash: LeafHash,
        /// The granted context to answer; `None` from a server.
        request: Option<[u8; 32]>,
    },
    /// Verify a peer's authenticator; answer with `ProofVerified` or `ProofInvalid`, in order.
    VerifyProof {
        /// The connection.
        conn: ConnId,
        /// As received.
        authenticator: Vec<u8>,
        /// As received; the core has checked that it was granted and unused.
        request: Option<[u8; 32]>,
    },
    /// Verify and store a relayed deny list; answer with `DenyList` if it is right and newer.
    VerifyDenyList {
        /// From whom, for the log.
        conn: ConnId,
        /// As received.
        signed: Vec<u8>,
    },

    /// This number stands for this identity from now on: compile policy for it before going on.
    Identity {
        /// The number.
        number: IdentityNumber,
        /// The identity.
        identity: Arc<Identity>,
    },
    /// This number stands for nothing any more; its policy entries can go. It will not come back.
    IdentityForgotten {
        /// The number.
        number: IdentityNumber,
    },

    /// Make the tag that shows the peer of this connection that we hold our tunnel key, and send it in a
    /// `TunnelKey` frame.
    SendTunnelKey {
        /// The connection.
        conn: ConnId,
        /// The peer's full SPIFFE ID.
        id: String,
        /// Our own tunnel key, as the Hello of this connection said it.
        own_key: [u8; 32],
        /// The WireGuard public key that it claims.
        peer_key: [u8; 32],
    },
    /// Check a peer's tag for the key that it claims; answer with `TunnelKeyChecked`.
    VerifyTunnelKey {
        /// The connection.
        conn: ConnId,
        /// The peer's full SPIFFE ID.
        id: String,
        /// Our own tunnel key, as the Hello of this connection said it.
        own_key: [u8; 32],
        /// The WireGuard public key that it claims.
        peer_key: [u8; 32],
        /// As received.
        tag: [u8; 32],
    },
    /// Key and install the tunnel toward a peer from this connection, or renew its preshared key in place;
    /// answer with `TunnelInstalled` or `TunnelFailed`.
    InstallTunnel {
        /// The peer.
        peer: PeerNumber,
        /// Its full SPIFFE ID.
        id: String,
        /// The connection whose exporter gives the preshared key.
        conn: ConnId,
        /// Our own tunnel key, as the Hello of this connection said it.
        own_key: [u8; 32],
        /// The peer's WireGuard public key.
        peer_key: [u8; 32],
        /// Where its packets go.
        endpoint: SocketAddr,
        /// Its allowed IPs: exactly the signed prefixes.
        prefixes: Vec<IpNet>,
    },
    /// The peer has installed what this session gives it: where one of the two is to speak first through the tunnel, it
    /// can do so now. Comes after the [`Self::InstallTunnel`] that it concerns, which may not have been answered yet.
    CallPeer {
        /// The peer.
        peer: PeerNumber,
    },
    /// Both sides have installed what this session gave them, and only its epoch counts from now on: packets leave
    /// under its keys, and what carried its predecessor goes after a grace. Once a session, and by the next agent
    /// again; nothing if the session's tunnel is the one in use already.
    ActivateTunnel {
        /// The peer.
        peer: PeerNumber,
    },
    /// Remove everything of the tunnel toward a peer.
    RemoveTunnel {
        /// The peer.
        peer: PeerNumber,
    },

    /// Write one entry of `prefixes`.
    SetPrefix {
        /// The prefix.
        prefix: IpNet,
        /// Whose.
        peer: PeerNumber,
    },
    /// Remove one entry of `prefixes`.
    RemovePrefix {
        /// The prefix.
        prefix: IpNet,
    },
    /// Write one entry of `locals`.
    SetLocal {
        /// The address.
        address: IpAddr,
        /// Whose.
        endpoint: EndpointId,
        /// Who that is.
        identity: IdentityNumber,
    },
    /// Remove one entry of `locals`.
    RemoveLocal {
        /// The address.
        address: IpAddr,
    },
    /// Write one entry of `sessions`.
    SetSession {
        /// The peer.
        peer: PeerNumber,
        /// The entry.
        session: SessionEntry,
    },
    /// Remove one entry of `sessions`: the peer is forgotten, and its number does not come back.
    RemoveSession {
        /// The peer.
        peer: PeerNumber,
    },
    /// Write one entry of `remotes`.
    SetRemote {
        /// The address.
        address: IpAddr,
        /// The entry.
        remote: RemoteEntry,
    },
    /// Write a negative entry of `remotes`: drop instead of asking again.
    SetNegative {
        /// The address.
        address: IpAddr,
        /// Who refused.
        peer: PeerNumber,
        /// Until when, on the boot clock.
        until: Duration,
    },
    /// Remove one entry of `remotes`.
    RemoveRemote {
        /// The address.
        address: IpAddr,
    },
    /// Write one entry of `announced`.
    SetAnnounced {
        /// The local address.
        address: IpAddr,
        /// To whom.
        peer: PeerNumber,
        /// The entry.
        announced: AnnouncedEntry,
    },
    /// Remove one entry of `announced`.
    RemoveAnnounced {
        /// The local address.
        address: IpAddr,
        /// To whom.
        peer: PeerNumber,
    },
    /// Write one entry of `identities`.
    SetIdentity {
        /// The identity.
        number: IdentityNumber,
        /// On the boot clock.
        valid_until: Duration,
        /// Cut.
        revoked: bool,
    },
    /// Write one entry of `auth`.
    SetPair {
        /// The pair.
        pair: PairKey,
        /// On the boot clock.
        expires: Duration,
        /// The session's, on this node.
        epoch: u32,
    },
    /// Remove one entry of `auth`.
    RemovePair {
        /// The pair.
        pair: PairKey,
    },
    /// Remove the peer's entries of `remotes`, `announced` and `auth` whose epoch is below.
    SweepEpoch {
        /// The peer.
        peer: PeerNumber,
        /// The oldest epoch that stays.
        below: u32,
    },

    /// Drop what is held under a key.
    Discard {
        /// The key.
        key: HoldKey,
        /// Why.
        reason: Discarded,
    },
    /// Give back what is held under a key, in order: the gate can decide now.
    Release {
        /// The key.
        key: HoldKey,
    },
    /// A peer asks about a flow; answer with `AnswerGiven`, or not at all. Tell only what the peer may know: addresses
    /// that are announced between the two.
    Asked {
        /// Who.
        peer: PeerNumber,
        /// The connection.
        conn: ConnId,
        /// To answer with.
        id: u64,
        /// As received, at most [`MAX_QUESTION`](crate::wire::MAX_QUESTION) bytes.
        question: Vec<u8>,
    },
    /// A peer has answered what it was asked.
    Answered {
        /// Who.
        peer: PeerNumber,
        /// As asked.
        id: u64,
        /// As received, at most [`MAX_ANSWER`](crate::wire::MAX_ANSWER) bytes.
        answer: Vec<u8>,
    },
    /// Something a person should see.
    Alarm(Alarm),
}

impl Effect {
    /// The connection on which this tells the peer that something stands, or does not stand any more, in the kernel.
    /// If a write of the same step has been refused, it must not be sent. The shell then says
    /// [`Event::NotWritten`](super::Event::NotWritten), and the peer says again what was not confirmed.
    pub fn confirms(&self) -> Option<ConnId> {
        match self {
            Self::Send {
                conn,
                frame:
                    Frame::Announced { .. }
                    | Frame::Withdrawn { .. }
                    | Frame::ProofAccepted { .. }
                    | Frame::TunnelReady
                    | Frame::Ready,
            } => Some(*conn),
            _ => None,
        }
    }
}

impl Effect {
    /// What the core must hear in place of this while the disk refuses [`Effect::Persist`]; `None` for what may be
    /// done all the same. The rest of the world must not learn of what a successor would not know: so nothing is
    /// permitted, nothing is said, and a connection on which something should have been said is closed. What
    /// forbids is done, revocations above all.
    ///
    /// Whether the agent then dies or the disk comes round, it is as if it had slept until then, behind gates that
    /// let less through: a successor goes on from the snapshot before, or the core writes everything again.
    pub fn unless_stored(&self) -> Option<Event> {
        match self {
            Self::Send {
                frame: Frame::DenyList { .. },
                ..
            } => None,
            Self::Send { conn, .. }
            | Self::SendProof { conn, .. }
            | Self::SendTunnelKey { conn, .. } => Some(Event::Disconnected { conn: *conn }),
            Self::Dial { peer, .. } => Some(Event::DialFailed { peer: *peer }),
            Self::InstallTunnel { conn, .. } => Some(Event::TunnelFailed { conn: *conn }),
            Self::SetSession { session, .. } if session.state == SessionState::Cut => None,
            Self::SetAnnounced { announced, .. }
                if announced.state == AnnouncedState::Withdrawing =>
            {
                None
            }
            Self::SetSession { .. }
            | Self::SetAnnounced { .. }
            | Self::SetPrefix { .. }
            | Self::SetLocal { .. }
            | Self::SetRemote { .. }
            | Self::SetPair { .. } => Some(Event::NotWritten { peer: None }),
            _ => None,
        }
    }
}

impl Effect {
    /// What the core must hear if the kernel refuses this write.
    pub fn refused(&self) -> Option<Event> {
        let peer = match self {
            Self::SetIdentity { .. } | Self::SetLocal { .. } | Self::SetPrefix { .. } => {
                Some(PeerNumber::LOCAL)
            }
            Self::SetSession { peer, .. }
            | Self::SetAnnounced { peer, .. }
            | Self::RemoveAnnounced { peer, .. }
            | Self::SweepEpoch { peer, .. } => Some(*peer),
            Self::SetRemote { remote, .. } => Some(remote.peer),
            Self::SetPair { pair, .. } | Self::RemovePair { pair } => Some(pair.peer),
            Self::RemoveRemote { .. } => None,
            _ => return None,
        };
        Some(Event::NotWritten { peer })
    }
}

/// A session as gates see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// The oldest epoch whose entries count.
    pub oldest: u32,
    /// The newest.
    pub current: u32,
    /// When it ends, on the boot clock.
    pub expires: Duration,
    /// Whether packets may pass.
    pub state: SessionState,
}

impl SessionEntry {
    /// After the last epoch: none counts.
    pub(super) fn cut(last_epoch: u32) -> Self {
        Self {
            oldest: last_epoch.saturating_add(1),
            current: last_epoch,
            expires: Duration::ZERO,
            state: SessionState::Cut,
        }
    }
}

/// Whether packets may pass between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionState {
    /// Hello both ways, but the tunnel does not stand on both sides: hold.
    Pending,
    /// The tunnel stands on both sides.
    Ready,
    /// Ended: hold, and nothing of it counts.
    Cut,
}

/// A remote address as gates see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteEntry {
    /// Who it is.
    pub identity: IdentityNumber,
    /// Where it is.
    pub peer: PeerNumber,
    /// In which epoch that was announced.
    pub epoch: u32,
    /// As announced.
    pub generation: u64,
}

/// A local address toward one peer as gates see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedEntry {
    /// The one endpoint that may use the address toward the peer.
    pub endpoint: EndpointId,
    /// In which epoch it was announced.
    pub epoch: u32,
    /// Only `Confirmed` lets packets pass.
    pub state: AnnouncedState,
    /// As announced.
    pub generation: u64,
}

/// How far an announcement has come.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum AnnouncedState {
    /// The peer may believe it.
    Sent,
    /// The peer believes it.
    Confirmed,
    /// The peer may still believe it and is to stop.
    Withdrawing,
}

/// Two identities proven to each other.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct PairKey {
    /// The identity on this node.
    pub local: IdentityNumber,
    /// The identity on the peer.
    pub remote: IdentityNumber,
    /// Where the remote one is; [`PeerNumber::LOCAL`] on this node.
    pub peer: PeerNumber,
}
