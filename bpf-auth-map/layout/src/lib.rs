//! Types shared between the eBPF programs and the agent: keys and values of every map, events,
//! drop reasons, the meta of a held frame, and the packet parser.
//!
//! One definition for both sides, so that they cannot disagree. Every type of a map is
//! `repr(C)` without padding holes (checked at compile time below), since the kernel compares keys
//! byte by byte. Nothing here allocates, panics or needs `std`: the parser runs in the kernel and
//! under a fuzzer alike.
#![no_std]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod addr;
mod event;
mod flow;
mod hold;
mod maps;
pub mod packet;
mod reason;

pub use addr::Addr;
pub use event::{Event, EventKind};
pub use flow::{
    CLOSING, Connection, ConnectionKey, ENDED_HERE, ENDED_THERE, FragmentKey, Ports, REPLIED,
    is_over, lifetime,
};
pub use hold::{DISCARD, HOLD_META_LEN, HoldKey, HoldMeta, HoldValue, Parked, quota};
pub use maps::*;
pub use reason::{REASONS, Reason};

/// Version of everything in this crate that lies in pinned maps. It rises with every change of a
/// key, a value or their meaning; an agent refuses to adopt maps of another version.
pub const LAYOUT_VERSION: u32 = 2;
