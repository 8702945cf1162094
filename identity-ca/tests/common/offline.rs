//! A CA whose root's key never was on its machine. Tests of agents begin with it too.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use handfast_ca::authority::{self, OfflineRoot, RootSource, Setup};
use spiffe::TrustDomain;

const DAY: u64 = 24 * 3600;
/// How long an issuing CA lives, in seconds, if a test does not say otherwise.
pub const LIFE: u64 = 90 * DAY;

/// Makes it in `ca` below a folder, its root in `vault`; the issuing CA lives so many seconds.
pub async fn init(folder: &Path, life: u64) -> OfflineRoot {
    let domain = TrustDomain::new("example.org").unwrap();
    let vault = folder.join("vault");
    let root = OfflineRoot::create(&vault, &domain, 3650 * DAY, None).unwrap();
    let ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let mut setup = Setup::new(folder.join("ca"), domain, ranges);
    setup.root = RootSource::Offline {
        certificate: vault.join("root.crt"),
    };
    authority::init(&setup).await.unwrap();
    sign_request(&setup.dir, &root, life).await;
    root
}

/// Carries the request of a CA that does not serve to its root, and the answer back.
pub async fn sign_request(dir: &Path, root: &OfflineRoot, life: u64) {
    let request = authority::request(dir).await.unwrap();
    let certificate = root.sign(&request, "ca", life).unwrap();
    authority::install(dir, &certificate).await.unwrap();
}
