//! What the tests of the datapath share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

/// The committed object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../src/handfast.bpf.o");

/// A directory of pins that goes away with the test, however it ends.
pub struct Pins(PathBuf);

impl Pins {
    /// Nothing, and a word why, where the tests cannot run.
    pub fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let path = Path::new("/sys/fs/bpf").join(format!("hf-test-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        if let Err(error) = fs::create_dir_all(path.join("links")) {
            eprintln!("skipped: no bpffs at /sys/fs/bpf: {error}");
            return None;
        }
        Some(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub mod cost;
pub mod driver;
pub mod lane;
pub mod packets;
pub mod run;
pub mod verifier;

pub mod lab;
