//! Bugs planted on purpose, one at a time, to show that the simulator would find them.
//!
//! Without the feature `planted-bugs`, which no build but the simulator's own has, [`planted`] is constantly false
//! and nothing of this is in the program.

/// A bug, by the rule that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An address is free again before the peer has confirmed its withdrawal.
    WithdrawalAckSkipped,
    /// A proof counts in whatever session it was made.
    ForeignSessionAccepted,
    /// The signature is checked with the key of the last certificate instead of the first.
    LastCertificateTaken,
    /// A restarted agent counts its sessions from the beginning.
    EpochIgnoredOnRestart,
    /// A restarted agent does not know what was revoked.
    DenyListForgottenOnResume,
    /// An address counts wherever it lies.
    ForeignPrefixTrusted,
    /// Held packets wait on when their address has changed hands.
    HeldPacketOutlivesItsAddress,
    /// Endpoints are told apart by interface index, which the kernel gives again. Numbers of endpoints are given
    /// outside of the core, so it is the simulated node that has this one.
    #[cfg(feature = "planted-bugs")]
    InterfaceIndexReused,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    impl Bug {
        /// All of them.
        pub const ALL: [Self; 8] = [
            Self::WithdrawalAckSkipped,
            Self::ForeignSessionAccepted,
            Self::LastCertificateTaken,
            Self::EpochIgnoredOnRestart,
            Self::DenyListForgottenOnResume,
            Self::ForeignPrefixTrusted,
            Self::InterfaceIndexReused,
            Self::HeldPacketOutlivesItsAddress,
        ];
    }

    /// What runs on this thread has this bug from now on, and no other.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// True while the bug is planted on this thread.
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{plant, planted};

/// No bug is planted in this build.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
