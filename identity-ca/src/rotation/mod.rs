//! Replacing roots, issuing CAs and JWT keys without stranding anybody: each step waits until all have confirmed the
//! one before.

mod journal;
mod plan;
#[cfg(test)]
mod plan_tests;
