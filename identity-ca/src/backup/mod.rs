//! Backup and restore: the whole registry as text, keys only when they are asked for, and sealed.
//!
//! A backup is one file of JSON lines: what it is of, the rows of every table,
//! sealed keys if any, and at its end how many lines there are and their hash,
//! so that a file that was cut off or changed is not restored.
//!
//! A restored CA does not go back in time (PROTOCOL.md, CA and agents): its
//! numbers begin above all that were ever given, join tokens are void, and it
//! signs nothing until agents have brought the newest deny list ([`recovery`]).

mod examine;
mod file;
pub(crate) mod recovery;
mod restore;
pub(crate) mod rows;

pub use self::examine::{Examined, examine, examine_from};
pub use self::file::{Writer, write_keys};
pub use self::restore::{Restore, Restored, restore};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::authority::Lifetimes;

/// The first line: what the backup is of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// The version of the format.
    pub(crate) handfast_backup: u32,
    pub(crate) trust_domain: String,
    /// The server that wrote it.
    pub(crate) server: String,
    pub(crate) prefix_ranges: Vec<IpNet>,
    pub(crate) lifetimes_seconds: Lifetimes,
    /// Unix milliseconds.
    pub(crate) at_ms: u64,
    /// Of the last change in it.
    pub(crate) sequence: u64,
    /// The last step of the store's migrations.
    pub(crate) schema: i64,
}

/// The version of the format that this program writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;
