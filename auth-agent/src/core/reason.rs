//! Every reason the core has for closing, discarding or raising an alarm, by name: what counters, logs and
//! people see.

use std::net::IpAddr;

use super::types::{EndpointId, HoldKey, PeerNumber};
use crate::wire::{OLDEST_VERSION, TunnelKind, VERSION};

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum CloseReason {
    /// Violation: bytes that are no frame.
    #[error("not a frame")]
    Garbage,
    /// Violation: a frame that is not legal in this state.
    #[error("frame {0} is not legal now")]
    OutOfState(&'static str),
    /// Violation: the Hello names another node than the certificate.
    #[error("hello names another node than the certificate")]
    NodeIdMismatch,
    /// Violation: a client's proof answers a context that was not granted, or was used before.
    #[error("proof answers no granted request")]
    RequestNotGranted,
    /// Violation: more contexts granted than asked for by anybody.
    #[error("too many requests granted")]
    TooManyGrants,
    /// Violation: more unverified proofs, or frames waiting for them, than allowed.
    #[error("too much waits for verification")]
    TooMuchWaiting,
    /// Violation: more proofs in one session than allowed.
    #[error("too many proofs in one session")]
    TooManyProofs,
    /// Violation: a confirmation of what was never said.
    #[error("{0} confirms what was never said")]
    NeverSaid(&'static str),
    /// Violation: frames of a kind faster than allowed.
    #[error("too many {0} frames")]
    TooFast(&'static str),
    /// Violation: more proofs and announcements that had to be refused than allowed.
    #[error("too much of it had to be refused")]
    TooManyRefused,
    /// Violation: the Hello's tunnel key is another peer's, or ours.
    #[error("the tunnel key belongs to another node")]
    TunnelKeyTaken,
    /// Violation: the Hello's tunnel key is not the peer's to use.
    #[error("the peer does not hold the tunnel key that it claims")]
    TunnelKeyNotHeld,
    /// The peer speaks no version that we do.
    #[error(
        "no common protocol version: the peer speaks {theirs} and understands {oldest} and later, this node speaks \
         {VERSION} and understands {OLDEST_VERSION} and later"
    )]
    Version {
        /// What it speaks.
        theirs: u32,
        /// The oldest that it understands.
        oldest: u32,
    },
    /// The peer's packets are carried by something else than ours.
    #[error("this node's tunnel is {ours}, the peer's {theirs}: give both nodes the same kind")]
    TunnelKind {
        /// Ours.
        ours: TunnelKind,
        /// The peer's.
        theirs: TunnelKind,
    },
    /// No Hello in time.
    #[error("no hello in time")]
    HelloTimeout,
    /// Nothing heard in time.
    #[error("peer is silent")]
    Silent,
    /// The certificate is this node's own.
    #[error("connected to ourselves")]
    OurselvesOnTheOtherSide,
    /// The other of two simultaneous dials goes on, or nothing needs this one.
    #[error("duplicate connection")]
    Duplicate,
    /// A successor has taken over.
    #[error("superseded by a newer session")]
    Superseded,
    /// Hard expiry.
    #[error("session has reached its hard expiry")]
    Expired,
    /// The node or its certificate is on the deny list.
    #[error("node is revoked")]
    Revoked,
    /// The certificate's prefixes are ours or another peer's.
    #[error("prefix belongs to another node")]
    PrefixConflict,
    /// A bound of ours is reached.
    #[error("too many peers or connections")]
    TooMany,
    /// The kernel has not taken what was to be confirmed to the peer.
    #[error("the kernel refused what the peer asked for")]
    NotWritten,
    /// The peer said goodbye.
    #[error("peer said goodbye")]
    Goodbye,
    /// The agent stops.
    #[error("agent stops")]
    Stopping,
}

impl CloseReason {
    /// True where the peer broke the rules.
    pub fn is_violation(self) -> bool {
        matches!(
            self,
            Self::Garbage
                | Self::OutOfState(_)
                | Self::NodeIdMismatch
                | Self::RequestNotGranted
                | Self::TooManyGrants
                | Self::TooMuchWaiting
                | Self::TooManyProofs
                | Self::NeverSaid(_)
                | Self::TooFast(_)
                | Self::TooManyRefused
                | Self::TunnelKeyTaken
                | Self::TunnelKeyNotHeld
        )
    }

    /// The counter's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::OutOfState(_) => "out-of-state",
            Self::NodeIdMismatch => "node-id-mismatch",
            Self::RequestNotGranted => "request-not-granted",
            Self::TooManyGrants => "too-many-grants",
            Self::TooMuchWaiting => "too-much-waiting",
            Self::TooManyProofs => "too-many-proofs",
            Self::NeverSaid(_) => "never-said",
            Self::TooFast(_) => "too-fast",
            Self::TooManyRefused => "too-many-refused",
            Self::TunnelKeyTaken => "tunnel-key-taken",
            Self::TunnelKeyNotHeld => "tunnel-key-not-held",
            Self::Version { .. } => "version",
            Self::TunnelKind { .. } => "tunnel-kind",
            Self::HelloTimeout => "hello-timeout",
            Self::Silent => "silent",
            Self::OurselvesOnTheOtherSide => "ourselves",
            Self::Duplicate => "duplicate",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::PrefixConflict => "prefix-conflict",
            Self::TooMany => "too-many",
            Self::NotWritten => "not-written",
            Self::Goodbye => "goodbye",
            Self::Stopping => "stopping",
        }
    }
}

/// Why held packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Discarded {
    /// No decision in time.
    #[error("no decision in time")]
    Timeout,
    /// More keys are held than allowed.
    #[error("too many holds")]
    TooMany,
    /// The peer does not say who the address is.
    #[error("the peer does not say who the address is")]
    ResolveRefused,
    /// The peer does not accept our proof.
    #[error("the peer does not accept our proof")]
    ProofRefused,
    /// The peer does not accept the announcement of our address.
    #[error("the peer does not accept our announcement")]
    AnnounceRefused,
    /// It came in for an address that was not announced to its sender.
    #[error("the address was not announced to the sender")]
    NotAnnounced,
    /// The local endpoint is gone or has become another.
    #[error("the endpoint is gone")]
    EndpointGone,
    /// The remote address is gone or has become another identity.
    #[error("the remote address has changed hands")]
    RemoteChanged,
    /// The local endpoint has no identity.
    #[error("the endpoint has no identity")]
    NoIdentity,
    /// The address lies in no node's prefix.
    #[error("no node has this address")]
    NoPeer,
    /// One of the two, or the node, is revoked.
    #[error("revoked")]
    Revoked,
    /// The session with the peer has ended.
    #[error("the session has ended")]
    SessionEnded,
}

/// Something a person should see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// Two kernels take turns under one node name: a stolen node key, or a cloned machine.
    #[error("{id} takes turns between two boot IDs: a cloned machine or a stolen key")]
    BootIdsTakeTurns {
        /// The node.
        id: String,
    },
    /// The two programs, or their settings, do not fit: there is no session.
    #[error("no session with {id}: {reason}")]
    NoSession {
        /// The node.
        id: String,
        /// Why.
        reason: CloseReason,
    },
    /// A peer broke the rules.
    #[error("{id} broke the protocol: {reason}")]
    Violation {
        /// The node.
        id: String,
        /// How.
        reason: CloseReason,
    },
    /// Two nodes hold certificates for the same addresses.
    #[error("{id} claims prefixes that belong to {holder}")]
    PrefixConflict {
        /// Who came.
        id: String,
        /// Who has it.
        holder: String,
    },
    /// Another endpoint has this address: nothing was changed.
    #[error("address {address} of endpoint {} is in use by endpoint {}", .endpoint.0, .holder.0)]
    AddressInUse {
        /// The address.
        address: IpAddr,
        /// Who came.
        endpoint: EndpointId,
        /// Who has it.
        holder: EndpointId,
    },
    /// Peers will refuse this address.
    #[error("address {address} of endpoint {} lies in none of this node's prefixes", .endpoint.0)]
    AddressOutsidePrefixes {
        /// The address.
        address: IpAddr,
        /// Whose.
        endpoint: EndpointId,
    },
    /// A peer refuses something of ours.
    #[error("{id} refuses {what}: {reason}")]
    Refused {
        /// The node.
        id: String,
        /// What of ours.
        what: String,
        /// Its words.
        reason: String,
    },
    /// We refuse something of a peer's.
    #[error("refused from {id}: {what}: {reason}")]
    RefusedFrom {
        /// The node.
        id: String,
        /// What of its.
        what: String,
        /// Why.
        reason: String,
    },
    /// The tunnel could not be installed.
    #[error("the tunnel toward {id} could not be installed")]
    TunnelFailed {
        /// The node.
        id: String,
    },
    /// An older deny list than the one in force was brought.
    #[error("deny list {offered} is older than {ours}: kept the newer one")]
    DenyListOlder {
        /// Brought.
        offered: u64,
        /// In force.
        ours: u64,
    },
    /// A bound is reached.
    #[error("bound reached: {0}")]
    Full(&'static str),
    /// A pair's key for a packet, dropped for a reason a person can change.
    #[error("packets between endpoint {} and {} dropped: {reason}", .key.endpoint.0, .key.remote)]
    Dropped {
        /// The key.
        key: HoldKey,
        /// Why.
        reason: Discarded,
    },
    /// A session with this peer has ended.
    #[error("session with peer {peer} has ended: {reason}")]
    SessionEnded {
        /// The peer.
        peer: PeerNumber,
        /// Why.
        reason: CloseReason,
    },
}
