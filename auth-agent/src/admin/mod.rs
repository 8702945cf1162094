//! The agent's administrative socket: what the command line asks, and what it gets back.
//!
//! One JSON document a line, in both directions, over a Unix socket that only root can open. A request is one
//! line; the answer is one line, or for `observe` a line for each event until the asker leaves.

mod client;
mod server;
mod types;

pub use client::{Client, ClientError};
pub use server::{Answer, Asked, serve};
pub use types::{
    EndpointInfo, ObserveFilter, Observed, PairInfo, PeerInfo, PolicyInfo, Request, Status,
    SvidInfo, Tuple, VerifyCheck, VerifyReport, VerifyState,
};

/// The longest line that either side takes.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
