//! Compiles the protocol descriptions without protoc.

use std::error::Error;

const FILES: &[&str] = &[
    "proto/ca.proto",
    "proto/attest.proto",
    "proto/audit.proto",
    "proto/backup.proto",
    "proto/federation.proto",
    "proto/observations.proto",
    "proto/operators.proto",
    "proto/rotation.proto",
    "proto/trial.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    // A migration that is added is compiled in.
    println!("cargo:rerun-if-changed=migrations");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
