//! The audit log: every issuance, refusal, rotation step and administrative act.
//!
//! One JSON object a line, each with the hash of the one before it, so that a
//! line that was changed, removed or put in breaks the chain at a place that
//! can be named. What is cut off at the end shows against the signed heads
//! that agents keep ([`head`]). A server keeps a log of its own.
//!
//! An act is durable here before its result leaves the server: without a log
//! that can be written nothing is signed and nothing is changed.

mod act;
mod file;
pub mod head;
mod line;
mod read;
mod syslog;
#[cfg(test)]
mod tests;
mod writer;

pub use self::act::{ACTS, Act, Outcome};
pub use self::file::Position;
pub use self::head::AuditHead;
pub use self::line::{Hash, Record};
pub use self::read::{Filter, Verified, read, verify};
pub(crate) use self::syslog::Syslog;
pub(crate) use self::writer::Audit;

/// The folder of the log in the CA's folder.
pub const FOLDER: &str = "audit";
