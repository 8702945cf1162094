//! The protobuf bodies, written by hand: few, small, and no build script needed.
//!
//! Field numbers are for ever. A field that a newer version adds is ignored by an older one.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Envelope {
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(bool, tag = "2")]
    pub optional: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint64, tag = "2")]
    pub features: u64,
    #[prost(string, tag = "3")]
    pub node_id: String,
    #[prost(bytes = "vec", tag = "4")]
    pub boot_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub tunnel_key: Vec<u8>,
    #[prost(uint32, tag = "6")]
    pub tunnel_port: u32,
    #[prost(uint64, tag = "7")]
    pub deny_number: u64,
    #[prost(uint32, tag = "8")]
    pub endpoints: u32,
    #[prost(uint64, tag = "9")]
    pub lineage: u64,
    #[prost(uint32, tag = "10")]
    pub oldest_version: u32,
    #[prost(uint32, tag = "11")]
    pub tunnel_kind: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Grant {
    /// Contexts of 32 bytes, one after the other.
    #[prost(bytes = "vec", tag = "1")]
    pub requests: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Proof {
    #[prost(bytes = "vec", tag = "1")]
    pub authenticator: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub request: Option<Vec<u8>>,
}

/// Verdict on a proof: accepted has no reason.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ProofVerdict {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub leaf_hash: Option<Vec<u8>>,
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Everything that is said about an address; each kind uses the fields that it needs.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Address {
    #[prost(bytes = "vec", tag = "1")]
    pub address: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub leaf_hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub boot_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TunnelKey {
    #[prost(bytes = "vec", tag = "1")]
    pub tag: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DenyList {
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A question about a flow, or an answer to one.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Asked {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Goodbye {
    #[prost(string, tag = "1")]
    pub reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}
