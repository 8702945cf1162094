//! What a demonstration and an end-to-end test both need: machines made of network namespaces, real programs in
//! them, and facts read from the kernel.
//!
//! Everything here drives the `handfast` binary from outside, as a user would, and knows nothing of its insides.

pub mod capture;
pub mod counters;
pub mod evidence;
pub mod lab;
pub mod mesh;
pub mod namespace;
pub mod process;
pub mod requirements;
pub mod scan;
pub mod wait;
