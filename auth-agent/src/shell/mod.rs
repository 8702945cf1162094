//! The agent's shell: all sockets, files, devices and maps, around a core that has none of them.
//!
//! `run` starts a node and is its main loop; `agent` carries the core's effects out; the other files are one
//! neighbour each: the CA, the peers, the kernel's gates, held packets, policies, administrators.

mod agent;
mod alarms;
mod awaited;
mod cni;
mod contradictions;
mod detach;
mod endpoints;
mod forwarding;
mod gates;
mod hosts;
mod identities;
mod kernel_events;
mod memory;
mod metrics;
mod net;
mod observations;
mod observe;
mod pairings;
mod pairs;
mod park;
mod policies;
mod policy;
mod proofs;
mod readiness;
mod report;
mod requests;
mod run;
mod running_pods;
mod start;
mod stored;
mod tunnel_effects;
mod tunnel_filter;
mod tunnel_key;
mod tunnel_report;
mod tunnel_rotation;
mod tunnel_routes;
mod tunnel_start;
#[cfg(test)]
mod tunnel_tests;
mod tunnel_wire;
mod tunnel_work;
mod tunnel_worker;
mod tunnels;
mod updates;
mod verify;
mod wires;

use std::path::PathBuf;

use crate::clock;
use crate::config::AgentConfig;

pub use detach::detach;
pub(crate) use memory::{give_back_heap, keep_heap_together};
pub use readiness::Readiness;
pub use run::run;
pub use start::hold_off;

/// Why an agent does not start, or what went wrong while it runs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not root.
    #[error("the agent must run as root: it attaches eBPF programs and makes network devices")]
    NotRoot,
    /// Another agent uses the run directory.
    #[error("another agent runs already with {0}; stop it first, or use another --run-dir")]
    AlreadyRunning(PathBuf),
    /// A port or socket cannot be opened.
    #[error("cannot listen on {what}: {source}; nothing was changed in the kernel")]
    Listen {
        /// Which.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// This node's own SVID is not good any more, or not yet.
    #[error("this node's SVID cannot be used: {0}")]
    OwnSvid(handfast_ca::verify::Rejection),
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel's random numbers are not to be had.
    #[error("no random numbers from the kernel")]
    NoRandomness,
    /// A SPIFFE ID that is none; certificates with such a one are refused long before.
    #[error("{0:?} is no SPIFFE ID")]
    BadSpiffeId(String),
    /// A session ended while something was done with it.
    #[error("the session has ended")]
    SessionGone,
    /// The node's identity.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// Files.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// Endpoints' links.
    #[error(transparent)]
    Endpoint(#[from] crate::endpoint::EndpointError),
    /// Endpoints' records.
    #[error(transparent)]
    Record(#[from] crate::endpoint::RecordError),
    /// The gates and their maps.
    #[error(transparent)]
    Gates(#[from] handfast_bpf::Error),
    /// The tunnel, routes and translation.
    #[error(transparent)]
    Tunnel(#[from] handfast_encrypt::Error),
    /// Sessions.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// Proofs and the keys derived beside them.
    #[error(transparent)]
    Proof(#[from] crate::proof::ProofError),
    /// Policies.
    #[error("{0}")]
    Policy(String),
    /// A request that cannot be fulfilled.
    #[error("{0}")]
    Refused(String),
}

impl RunError {
    fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Where the core's memory is kept; it must not outlive a boot.
fn snapshot_path(config: &AgentConfig) -> PathBuf {
    config.run_dir.join("core.json")
}

/// Where it is kept which kernel switches the agent has turned.
fn forwarding_path(config: &AgentConfig) -> PathBuf {
    config.run_dir.join("forwarding.json")
}
