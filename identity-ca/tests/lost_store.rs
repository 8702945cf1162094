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

/// Every page of the file but the first few.
fn spoil(store: &Path) {
    let file = File::options().write(true).open(store).unwrap();
    let length = file.metadata().unwrap().len();
    let mut at = 3 * 4096;
    while at < length {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 512], at).unwrap();
        at += 4096;
    }
    file.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_damaged_under_a_running_server_is_named_and_it_is_no_longer_ready() {
    let mut ca = Ca::start().await;
    let wanted = |name: String| handfast_ca::client::admin::NewEntry {
        spiffe_id: format!("spiffe://example.org/{name}"),
        selectors: vec!["netns:web".to_owned()],
        ..Default::default()
    };
    let many: Vec<_> = (0..6000).map(|n| wanted(format!("w{n}"))).collect();
    ca.admin.import_entries(&many, false, false).await.unwrap();
    // So that all of it is in the file, and little in memory.
    let folder = ca.stop().await;
    let options = common::options(&folder, 0);
    let server = Server::bind(&options).await.unwrap();
    let health = server.health();
    let mut ca = Ca::run(folder, &options, server).await;
    health.check().unwrap();
    spoil(&ca.store());
    let before = fs::read(ca.store()).unwrap();

    let mut said = None;
    for n in 0..200 {
        if let Err(error) = ca.admin.create_entry(&wanted(format!("new{n}"))).await {
            said = Some(error.to_string());
            break;
        }
    }
    let said = said.expect("it is noticed");
    for words in ["damaged", "registry.sqlite", "ca restore"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let unready = health.check().unwrap_err();
    assert!(
        unready.contains(&ca.store().display().to_string()),
        "{unready}"
    );
    assert!(unready.contains("ca restore"), "{unready}");
    let after = fs::read(ca.store()).unwrap();
    assert_eq!(before.len(), after.len(), "nothing is repaired by guessing");
}
