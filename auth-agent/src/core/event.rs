//! What happens to the core. Everything in here has been verified by the shell: certificates and authenticators
//! are values with names and dates by then; what peers merely claim comes in as [`Frame`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::types::{ConnId, EndpointId, HoldKey, Identity, PeerNumber, PolicyView};
use crate::wire::{Frame, LeafHash};

/// One input.
#[derive(Clone, Debug)]
pub enum Event {
    /// The CA's list of nodes, whole: hints where to dial for an address. Own entries are skipped.
    Nodes(Vec<NodeInfo>),
    /// A workload is attached, or its addresses or identity have changed (same endpoint ID).
    EndpointAdded {
        /// Never reused in a boot.
        endpoint: EndpointId,
        /// Its addresses.
        addresses: BTreeSet<IpAddr>,
        /// The entry that matched it; `None` if there is none, then it never satisfies `required`.
        identity: Option<Identity>,
    },
    /// A workload is gone.
    EndpointRemoved {
        /// Its number.
        endpoint: EndpointId,
    },
    /// After a start: every endpoint that survived has been added. Until then nothing is withdrawn for want of
    /// an endpoint, and no successor takes over. Must be sent once, also when there was nothing to adopt.
    Settled,
    /// A proof SVID is at hand, new or renewed.
    IdentityReady(LocalIdentity),
    /// No proof SVID for this identity any more (its entry is gone).
    IdentityGone(Identity),
    /// Policy has been read, or has changed. Nothing is paired before the first one.
    Policy(Policy),
    /// A TLS connection stands, its certificates verified.
    Connected(Connected),
    /// A dial that was asked for by [`Effect::Dial`](super::Effect::Dial) has come to nothing.
    DialFailed {
        /// Whom it was for.
        peer: PeerNumber,
    },
    /// Fresh random contexts, asked for by [`Effect::MakeGrant`](super::Effect::MakeGrant).
    GrantMade {
        /// The connection.
        conn: ConnId,
        /// 32 random bytes each.
        requests: Vec<[u8; 32]>,
    },
    /// A frame has arrived.
    Frame {
        /// The connection.
        conn: ConnId,
        /// The frame.
        frame: Frame,
    },
    /// Bytes that are no frame have arrived.
    Garbage {
        /// The connection.
        conn: ConnId,
    },
    /// The connection is gone, for whatever reason. Not sent for those that the core closed (harmless if it is).
    Disconnected {
        /// The connection.
        conn: ConnId,
    },
    /// An authenticator is right. Verdicts come in the order of the connection's
    /// [`Effect::VerifyProof`](super::Effect::VerifyProof).
    ProofVerified {
        /// The connection.
        conn: ConnId,
        /// What it proves.
        proof: RemoteProof,
    },
    /// An authenticator is wrong. Same order.
    ProofInvalid {
        /// The connection.
        conn: ConnId,
        /// The end-entity certificate, if it could be read that far.
        leaf_hash: Option<LeafHash>,
        /// For people.
        reason: String,
    },
    /// [`Effect::SendProof`](super::Effect::SendProof) could not be carried out.
    ProofFailed {
        /// The connection.
        conn: ConnId,
        /// Which proof.
        leaf_hash: LeafHash,
    },
    /// The verdict asked for by [`Effect::VerifyTunnelKey`](super::Effect::VerifyTunnelKey).
    TunnelKeyChecked {
        /// The connection.
        conn: ConnId,
        /// Whether the peer holds the key that it claims.
        held: bool,
    },
    /// The tunnel asked for by [`Effect::InstallTunnel`](super::Effect::InstallTunnel) stands.
    TunnelInstalled {
        /// The connection whose keys it has.
        conn: ConnId,
    },
    /// It could not be installed; it is tried again.
    TunnelFailed {
        /// The connection whose keys it was to have.
        conn: ConnId,
    },
    /// A tunnel device with another key stands beside the one that is in use: from now on Hello says this one. Every
    /// peer with a session gets a successor soon, which goes over to the new device when both sides are ready.
    TunnelKey {
        /// The new key.
        key: [u8; 32],
        /// Its UDP port.
        port: u16,
    },
    /// A successor session with this peer, now. Nothing comes of it without a live session, or while a successor is
    /// under way.
    RenewSession {
        /// The peer.
        peer: PeerNumber,
    },
    /// Ask a peer about a flow; [`Effect::Answered`](super::Effect::Answered) comes if it answers.
    Ask {
        /// Whom.
        peer: PeerNumber,
        /// Chosen by the asker.
        id: u64,
        /// At most [`MAX_QUESTION`](crate::wire::MAX_QUESTION) bytes.
        question: Vec<u8>,
    },
    /// The answer to [`Effect::Asked`](super::Effect::Asked).
    AnswerGiven {
        /// The connection that it was asked on.
        conn: ConnId,
        /// As asked.
        id: u64,
        /// At most [`MAX_ANSWER`](crate::wire::MAX_ANSWER) bytes.
        answer: Vec<u8>,
    },
    /// A gate has no decision and has parked a packet. Sent for the first packet of a key at least; more do no
    /// harm.
    Held(HoldKey),
    /// A packet from an address that its peer has not announced was dropped on its way to this endpoint.
    UnknownSource {
        /// Whence.
        peer: PeerNumber,
        /// The source address.
        address: IpAddr,
        /// The endpoint it was for.
        endpoint: EndpointId,
    },
    /// A deny list whose signature is right and which is stored: from the CA or from a peer.
    DenyList(Arc<DenyList>),
    /// The kernel has refused a write: of this peer's entries, of this node's own ([`PeerNumber::LOCAL`]), or of who
    /// knows whose. What stands there is not what the core believes: what sessions carry is made anew in a successor,
    /// all else is written again, soon at first and then less often.
    NotWritten {
        /// Whose, if that can be told.
        peer: Option<PeerNumber>,
    },
    /// Forget pairs between local and remote, so that they must be proven again (`pair flush`).
    FlushPairs,
    /// The agent stops: the kernel goes on. Say goodbye to everyone.
    Stop,
    /// The deadline of [`Core::next_deadline`](super::Core::next_deadline) has come.
    Tick,
}

/// A node as the CA lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Full SPIFFE ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its agent listens for sessions; their IP addresses are also its tunnel's.
    pub addresses: Vec<SocketAddr>,
    /// What its workloads may have.
    pub prefixes: Vec<IpNet>,
}

/// A connection that stands.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The shell's number for it.
    pub conn: ConnId,
    /// What the peer's certificate says.
    pub node: PeerNode,
    /// True if this node dialled, and so is the TLS client.
    pub dialled: bool,
    /// The peer's address on the underlay; the tunnel goes there unless the CA's list says otherwise.
    pub address: IpAddr,
    /// When this node's own SVID, as used for this connection, ends: unix seconds.
    pub local_not_after: u64,
}

/// A peer's node SVID, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Full SPIFFE ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Signed prefixes.
    pub prefixes: Vec<IpNet>,
    /// Higher for a later assignment of a prefix.
    pub assignment: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// Serial number of the SVID.
    pub serial: Vec<u8>,
}

/// A proof SVID of this node's, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalIdentity {
    /// Whose.
    pub identity: Identity,
    /// SHA-256 of the end-entity certificate.
    pub leaf_hash: LeafHash,
    /// Unix seconds.
    pub not_after: u64,
    /// Serial number of the SVID.
    pub serial: Vec<u8>,
}

/// A peer's proof, verified: structure, signature, Finished, chain and SPIFFE rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteProof {
    /// Whose.
    pub identity: Identity,
    /// The node name in the certificate; the core demands that it is the session's peer.
    pub node: String,
    /// SHA-256 of the end-entity certificate.
    pub leaf_hash: LeafHash,
    /// Unix seconds.
    pub not_after: u64,
    /// Serial number of the SVID.
    pub serial: Vec<u8>,
}

/// What is revoked: whole, numbered, signature checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Only rises.
    pub number: u64,
    /// SPIFFE IDs of workloads.
    pub identities: BTreeSet<String>,
    /// Full SPIFFE IDs of nodes.
    pub nodes: BTreeSet<String>,
    /// Serial numbers of SVIDs of either kind.
    pub serials: BTreeSet<Vec<u8>>,
    /// As signed, to relay.
    pub signed: Vec<u8>,
}

/// Policy behind a handle.
#[derive(Clone)]
pub struct Policy(pub Arc<dyn PolicyView>);

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Policy")
    }
}
