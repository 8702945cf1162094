//! Replacing roots, issuing CAs and JWT keys without stranding anybody: each step waits until all have confirmed the
//! one before.

#[cfg(test)]
mod clock_tests;
mod expired;
pub(crate) mod journal;
pub(crate) mod plan;
#[cfg(test)]
mod plan_tests;
pub(crate) mod run;

pub use self::plan::{Stage, What};
