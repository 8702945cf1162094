//! What two nodes say to each other inside a session: frames, and nothing but frames.
//!
//! A [`Frame`] is plain owned data that has already been checked: whatever [`Frame::decode`] returns has legal
//! sizes, legal addresses and printable reasons, so that `core` need not look again. `codec` turns it
//! into bytes and back: four bytes of big-endian length, then a protobuf envelope of kind, optional flag and
//! body. A kind we do not know is skipped when its sender marked it optional and is an error otherwise, so that
//! neighbouring versions can work together (PROTOCOL.md, Sessions).

mod codec;
mod frame;
mod message;
#[cfg(test)]
mod tests;
mod types;

pub use frame::{Frame, FrameError, Hello};
pub use types::{
    BootId, LeafHash, MAX_ANSWER, MAX_AUTHENTICATOR, MAX_DENY_LIST, MAX_FRAME, MAX_NODE_ID,
    MAX_QUESTION, MAX_REASON, MAX_REQUESTS, MAX_WHOLE_DENY_LIST, OLDEST_VERSION, Reason,
    TunnelKind, VERSION,
};
