//! Compiles the Workload API and SDS without protoc, and keeps their descriptors for reflection (W-16).

use std::error::Error;
use std::fs;
use std::path::Path;

use prost::Message;

const FILES: [&str; 2] = ["workloadapi.proto", "envoy/service/secret/v3/sds.proto"];
/// Reached by name alone: a type inside an `Any` is imported by nobody.
const INSIDE_ANY: [&str; 1] = ["envoy/extensions/transport_sockets/tls/v3/secret.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES.iter().chain(&INSIDE_ANY), ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    fs::write(
        Path::new(&out).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .include_file("workload_api.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
