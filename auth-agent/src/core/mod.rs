//! The protocol between nodes as one state machine: sessions, proofs, announcements, pairs and holds.
//!
//! An [`Event`] goes in, [`Effect`]s come out. No socket, no clock, no randomness: the tokio shell and the
//! simulator drive the same code, and the same inputs give the same outputs.

mod config;
mod effect;
mod event;
mod reason;
mod snapshot;
mod types;
mod view;

pub use config::{Config, Limits, Local, Times};
pub use effect::{
    AnnouncedEntry, AnnouncedState, Effect, PairKey, RemoteEntry, SessionEntry, SessionState,
};
pub use event::{
    Connected, DenyList, Event, LocalIdentity, NodeInfo, PeerNode, Policy, RemoteProof,
};
pub use reason::{Alarm, CloseReason, Discarded};
pub use snapshot::{AnnouncedSnapshot, PeerSnapshot, RemoteSnapshot, SessionSnapshot, Snapshot};
pub use types::{
    ConnId, Direction, EndpointId, HoldKey, Identity, IdentityNumber, Now, Pairing, PeerNumber,
    PolicyView,
};
pub use view::{ConnectionView, EndpointView, IdentityView, PairView, PeerView, View};

// Core::new(Config, Local, Option<Snapshot>) -> Core
// core.handle(Now, Event) -> Vec<Effect>; core.next_deadline() -> Option<Duration> (boot clock)
// core.snapshot() -> Snapshot; core.view(Now) -> View
