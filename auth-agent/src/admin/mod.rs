//! The agent's administrative socket: what the command line asks, and what it gets back.
//!
//! One JSON document a line, in both directions, over a Unix socket that only root can open. A request is one
//! line; the answer is one line, or for `observe` a line for each event until the asker leaves, or for pairs a line for
//! some of them and an empty one at their end.

mod client;
mod server;
mod tunnel;
mod types;

pub use client::{Client, ClientError};
pub use server::{Answer, Asked, serve};
pub use tunnel::{PeerInfo, RotationInfo, WireInfo, WireVerdict};
pub use types::{
    AlarmInfo, EndpointInfo, ObserveFilter, Observed, PairDetail, PairInfo, PolicyInfo, ProofInfo,
    Request, Status, SvidInfo, Tuple, VerifyCheck, VerifyReport, VerifyState,
};

/// The longest request that an agent takes.
pub const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// The longest answer that is read: a listing of some hundred thousand pairs.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;
