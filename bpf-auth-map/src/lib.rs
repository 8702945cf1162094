//! Maps and gates: loads the programs, attaches and pins them, and gives typed access to what they
//! read and write.
//!
//! [`Kernel`] is the way in: it creates the pinned maps or adopts those that an earlier agent left,
//! and attaches the gates so that they go on without it. [`Tables`] is what the agent writes;
//! [`Events`] what the programs tell; [`HoldDevice`] where held packets wait.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod attach;
mod cgroup;
mod clock;
mod error;
mod events;
mod filters;
#[doc(hidden)]
pub mod foreign;
mod hold;
mod kernel;
mod link;
mod loader;
mod precedence;
mod programs;
mod tables;
mod types;
mod unlink;

pub use attach::{AttachError, Attachment};
pub use cgroup::find as find_cgroup;
pub use clock::boot_time;
pub use error::Error;
pub use events::{Event, Events};
pub use hold::{Frame, FrameError, Held, HoldDevice};
pub use kernel::{Kernel, Options, Sizes, probe};
pub use precedence::Preceded;
pub use tables::Tables;
pub use types::*;

pub use handfast_layout::{EventKind, Hook, Reason};
