//! What the cluster of the tests needs beside the harness: here the program lies beside what measures.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::harness::lab::Workload;
use crate::harness::process::command;
use crate::harness::requirements;

/// How long anything may take that is not measured.
pub const SOON: Duration = Duration::from_secs(30);

/// Nothing else runs while something is measured.
pub struct Turn;

/// Says what is missing, if anything is.
pub fn turn(_measured: &str) -> Option<Turn> {
    let missing = requirements::missing();
    for missing in &missing {
        eprintln!("missing: {missing}");
    }
    missing.is_empty().then_some(Turn)
}

/// The program that is measured.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let own = std::env::current_exe().unwrap_or_default();
        own.with_file_name("handfast")
    })
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// Gets a page, or why there is none: curl's exit code.
pub fn curl(client: &Workload, url: &str, limit_s: u8) -> Result<String, i32> {
    let limit = limit_s.to_string();
    let words = ["-sS", "-g", "--noproxy", "*", "-m", &limit, url];
    match client.place.run(&mut command("curl", &words), SOON) {
        Ok(said) if said.code() == 0 => Ok(said.stdout),
        Ok(said) => Err(said.code()),
        Err(_) => Err(-1),
    }
}

/// The URL of an address, on port 80.
pub fn url(address: IpAddr) -> String {
    format!("http://{}/", SocketAddr::new(address, 80))
}
