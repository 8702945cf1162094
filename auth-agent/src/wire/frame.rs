//! The frames by name, and what can be wrong with one.

use std::net::IpAddr;

use super::types::{BootId, LeafHash, Reason, TunnelKind};

/// One message between two nodes. Which are legal when is `core`'s business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame both ways; the session is live when both have arrived.
    Hello(Hello),
    /// The server allows that many client authenticators, one for each context, each used once.
    Grant {
        /// Fresh random `certificate_request_context`s.
        requests: Vec<[u8; 32]>,
    },
    /// Possession of an SVID's key, bound to this session (RFC 9261).
    Proof {
        /// Certificate, CertificateVerify and Finished.
        authenticator: Vec<u8>,
        /// The granted context that it answers: always from a client, never from a server.
        request: Option<[u8; 32]>,
    },
    /// The proof with this end-entity certificate is recorded.
    ProofAccepted {
        /// Names the proof.
        leaf_hash: LeafHash,
    },
    /// A proof was not accepted.
    ProofRefused {
        /// Names the proof, if it could be read that far.
        leaf_hash: Option<LeafHash>,
        /// For people.
        reason: Reason,
    },
    /// From now on this address is the identity that was proven with that certificate.
    Announce {
        /// An endpoint's address.
        address: IpAddr,
        /// Names a proof given in this session.
        leaf_hash: LeafHash,
        /// Rises with each announcement of the address in one boot.
        generation: u64,
        /// The boot in which the generation counts.
        boot_id: BootId,
    },
    /// The announcement is installed in the receiver's kernel.
    Announced {
        /// As announced.
        address: IpAddr,
        /// As announced.
        generation: u64,
    },
    /// The announcement is not believed.
    AnnounceRefused {
        /// As announced.
        address: IpAddr,
        /// As announced.
        generation: u64,
        /// For people.
        reason: Reason,
    },
    /// The address is no longer that identity.
    Withdraw {
        /// As announced.
        address: IpAddr,
        /// As announced.
        generation: u64,
    },
    /// The withdrawal is done in the receiver's kernel.
    Withdrawn {
        /// As withdrawn.
        address: IpAddr,
        /// As withdrawn.
        generation: u64,
    },
    /// Who is this address? Asked in the name of an identity proven before.
    Resolve {
        /// An address in the receiver's prefixes.
        address: IpAddr,
        /// The asker's proof.
        leaf_hash: LeafHash,
    },
    /// No answer: unknown, or nothing that policy pairs with the asker. Which of both is not said.
    ResolveRefused {
        /// As asked.
        address: IpAddr,
    },
    /// Possession of the Hello's tunnel key, bound to this session (`proof::tunnel_tag`).
    TunnelKey {
        /// What only the two holders of the tunnels' private keys can make.
        tag: [u8; 32],
    },
    /// The tunnel toward the receiver is keyed from this session and installed.
    TunnelReady,
    /// Everything that the older session carried stands in this one too.
    Ready,
    /// A signed deny list, relayed, in as many frames as it needs; its signature is checked by whoever knows the CA.
    DenyList {
        /// The next piece of it, as the CA signed it.
        bytes: Vec<u8>,
        /// Another piece follows.
        more: bool,
    },
    /// What do you know of this flow? Changes nothing; a program that does not know the frame skips it.
    Ask {
        /// To answer with.
        id: u64,
        /// The shells' to read and write.
        question: Vec<u8>,
    },
    /// What this node knows of it. Skipped likewise.
    Answer {
        /// As asked.
        id: u64,
        /// The shells' to read and write.
        answer: Vec<u8>,
    },
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// Last frame: the sender closes.
    Goodbye {
        /// For people.
        reason: Reason,
    },
}

/// Who speaks, and what it brings along. The node ID counts only if the certificate says the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version.
    pub version: u32,
    /// The oldest one that the sender understands.
    pub oldest_version: u32,
    /// Feature bits.
    pub features: u64,
    /// The node's full SPIFFE ID.
    pub node_id: String,
    /// This boot of the node's kernel.
    pub boot_id: BootId,
    /// What carries its packets.
    pub tunnel_kind: TunnelKind,
    /// WireGuard public key, or IPsec's name of the node in this boot.
    pub tunnel_key: [u8; 32],
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Number of the newest deny list that the node has stored.
    pub deny_number: u64,
    /// How many endpoints are attached.
    pub endpoints: u32,
    /// The lineage of sessions with the receiver that stands on this node; 0 for none. The node that leads says
    /// in which one this session will be: another than the receiver's means that both begin cold.
    pub lineage: u64,
}

/// Why bytes are not a frame, or a frame cannot become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is above [`MAX_FRAME`](super::MAX_FRAME), or the frame would be.
    #[error("frame of {0} bytes is larger than allowed")]
    TooLarge(usize),
    /// Not the protobuf that it should be.
    #[error("frame cannot be read: {0}")]
    Malformed(String),
    /// A kind that the sender holds to be mandatory and that we do not know.
    #[error("unknown mandatory frame kind {0}")]
    UnknownKind(u32),
    /// A field with an illegal value.
    #[error("frame {frame}: field {field} is {problem}")]
    Field {
        /// Name of the frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}
