//! The SPIFFE Workload API and Envoy's SDS on the agent's Unix socket.

pub mod authority;
mod peer;
mod source;

pub use peer::Peer;
pub use source::{
    AttestError, Attested, BundleSet, JwtError, JwtSvid, Material, Source, WorkloadState, X509Svid,
};
