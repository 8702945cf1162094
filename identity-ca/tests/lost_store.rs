//! A store that is not the CA's is a reason to stop, and none to destroy keys.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::Ca;
use handfast_ca::server::Server;

/// Names of the keys, each made two days old: what has no row by then is rubbish.
fn aged_keys(dir: &Path) -> Vec<String> {
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    let mut names = Vec::new();
    for key in fs::read_dir(dir.join("keys")).unwrap() {
        let path = key.unwrap().path();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        names.push(path.display().to_string());
    }
    names.sort();
    names
}

#[tokio::test]
async fn keys_outlive_a_store_that_knows_nothing_of_them() {
    let ours = Ca::start().await.stop().await;
    let theirs = Ca::start().await.stop().await;
    let dir = ours.path().join("ca");
    let store = "registry.sqlite";
    fs::copy(theirs.path().join("ca").join(store), dir.join(store)).unwrap();
    let before = aged_keys(&dir);
    assert_eq!(before.len(), 3, "root, issuing CA, JWT key");
    assert!(Server::bind(&common::options(&ours, 0)).await.is_err());
    assert_eq!(aged_keys(&dir), before);
}
