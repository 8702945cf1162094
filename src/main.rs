//! The handfast command line.
fn main() {}
