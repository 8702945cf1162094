//! A disk that is really full: a small file system in a mount namespace of its own.

use std::process::Command;

use handfast_ca::authority;
use handfast_ca::client::admin::Admin;
use handfast_ca::server::{Options, Server};

use super::common::setup;

/// The name of the helper below, which runs in the namespace.
const INSIDE: &str = "full_disk::inside_the_namespace";
const PLACE: &str = "HANDFAST_TEST_FULL_DISK";

#[test]
fn a_full_disk_changes_nothing_and_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a file system of its own needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let script = format!(
        "mount --make-rprivate / && mount -t tmpfs -o size=3m,mode=700 tmpfs {place} && exec \"$0\" --exact {INSIDE} --ignored --nocapture"
    );
    let ran = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(PLACE, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let problem = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success() && said.contains("the disk was full"),
        "{said}{problem}"
    );
}

/// Fills the disk with policies until the CA says that it is full.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "only the other tests run it"]
async fn inside_the_namespace() {
    let Ok(place) = std::env::var(PLACE) else {
        eprintln!("skipped: only the other tests run it");
        return;
    };
    let place = std::path::PathBuf::from(place);
    // A mount point that is empty is filled from inside.
    authority::init(&setup(place.clone())).await.unwrap();
    let socket = place.with_extension("sock");
    let options = Options::new(
        place.clone(),
        "127.0.0.1:0".parse().unwrap(),
        socket.clone(),
    );
    let server = Server::bind(&options).await.unwrap();
    let running = tokio::spawn(server.run(std::future::pending()));
    let mut admin = Admin::connect(&socket).await.unwrap();
    let mut made = 0;
    let error = loop {
        let document = (format!("p{made}"), "x".repeat(100_000));
        match admin.put_policies(&[document]).await {
            Ok(_) => made += 1,
            Err(error) => break error.to_string(),
        }
        assert!(made < 100, "3 MiB hold no 10 MB");
    };
    assert!(
        error.contains("full") && error.contains("nothing was changed"),
        "{error}"
    );
    // It goes on reading, and what was refused is not there.
    assert_eq!(admin.policies().await.unwrap().len(), made);
    println!("the disk was full after {made} policies");
    running.abort();
}
