//! The SPIFFE Workload API and Envoy's SDS on the agent's Unix socket.
//!
//! Everybody on the node may connect; a caller is the process at the other end, and gets what its properties entitle
//! it to. [`Source`] knows whom and what; this folder knows how it is said. What callers send is hostile: calls,
//! connections and message sizes are bounded by caller, and the only bytes read here ourselves are HTTP/2 frames
//! (`authority`), by a filter that keeps no table.

mod admission;
pub mod authority;
mod by_number;
mod caller;
pub(crate) mod cgroup;
pub mod client;
mod limits;
mod listen;
mod metrics;
mod peer;
pub mod proto;
mod responses;
mod sds;
mod server;
mod source;
mod spiffe;

pub use limits::Limits;
pub use peer::Peer;
pub use server::{Endpoint, serve};
pub use source::{
    AttestError, Attested, BundleSet, JwtError, JwtSvid, Material, Source, WorkloadState, X509Svid,
};
