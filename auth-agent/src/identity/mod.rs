//! Who this node is: its key and SVID on disk, the proof SVIDs of its workloads in memory, and the SVIDs that
//! workloads get; and the link to the CA that signs them.
//!
//! Keys are made here and never leave: the node's key is kept, since a node must be able to come back after a
//! restart; the keys of proof SVIDs live in memory alone and are made anew by each run of the agent; those of workload
//! SVIDs outlive the agent in memory, so that a restart is not noticed.

mod acknowledge;
mod attest;
mod audit_heads;
mod forms;
mod join;
mod link;
mod reattest;
mod selectors;
mod standalone;
mod store;
mod svids;
pub(crate) mod swap;
mod trust;
mod turns;
mod workloads;

use spiffe::SpiffeId;

pub use attest::pod_uid;
pub use audit_heads::AuditHeads;
pub use forms::in_vain;
pub use join::{K8sPsatFile, Method, Standing, X509PopFiles, join};
pub use link::{Credentials, FromCa, Link, NotReached};
pub use reattest::Reattest;
pub use selectors::{Demands, SELECTOR_KINDS, Subject, matches};
pub use standalone::{Progress, Standalone};
pub use store::{Foreign, Knowledge, KnownEntry, KnownNode, KnownPolicy, NodeStore};
pub use svids::{ProofSvid, Renewal, Renewed, Svids, WorkloadIdentity, authority_of, serial_bytes};
pub use workloads::{Beginning, Change, HeldSvid, Workloads};

use svids::renew_at;

/// What joining gave.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The node's SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// The end of its first SVID, seconds since 1970.
    pub not_after: u64,
}

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The node has one already.
    #[error(
        "{0} holds the identity of a node already. To attest again as the same node (after an eviction), stop the agent \
         and add --again; to become another node, move that folder away. Nothing was changed, and no token was used"
    )]
    AlreadyJoined(std::path::PathBuf),
    /// It attests as another node than it was.
    #[error(
        "this node was {was} and would be {would_be}; to make another node of it, move {dir} away first. The identity that \
         is kept was not changed"
    )]
    AnotherNode {
        /// Its SPIFFE ID.
        was: SpiffeId,
        /// The one that the CA gave it now.
        would_be: SpiffeId,
        /// The agent's folder.
        dir: std::path::PathBuf,
    },
    /// The node has none yet.
    #[error("{0} holds no node identity; join first: handfast agent join FILE")]
    NotJoined(std::path::PathBuf),
    /// A folder with secrets that others can read.
    #[error(
        "{path} can be read by others (mode {mode:o}); its keys may be known: chmod 700 it only if you are sure they are not"
    )]
    TooOpen {
        /// The folder.
        path: std::path::PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that does not make sense.
    #[error("{path}: {problem}; restore it, or join anew")]
    Damaged {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that could not be read or written.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// The CA, or its certificates.
    #[error(transparent)]
    Ca(#[from] handfast_ca::Error),
}
