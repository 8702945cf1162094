//! End to end: the real binary, real kernels' namespaces, real packets. Needs root; says so where it is missing.
//!
//! Each test has a lab of its own, and one runs at a time, since they measure time and share two processors.

#[path = "../../src/demo/harness/mod.rs"]
#[allow(dead_code)]
mod harness;

mod instruments;
mod support;
