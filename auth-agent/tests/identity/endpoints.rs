//! Open streams of processes in an endpoint's network namespace follow the endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use handfast_agent::endpoint::{Endpoint, NamespaceName};
use handfast_agent::workload_api::{Peer, Source, WorkloadState};

use super::world::{Ca, LONG, Workload, entry};

/// A name under `/run/netns` for the network namespace of this process.
struct Named {
    name: String,
    inode: u64,
}

impl Named {
    fn new() -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hf-identity-{}-{number}", std::process::id());
        let path = format!("/run/netns/{name}");
        std::fs::create_dir_all("/run/netns").ok()?;
        std::fs::File::create(&path).ok()?;
        let none = None::<&str>;
        let bind = nix::mount::MsFlags::MS_BIND;
        let inode = std::fs::metadata("/proc/self/ns/net").ok()?.ino();
        let named = Self { name, inode };
        nix::mount::mount(Some("/proc/self/ns/net"), path.as_str(), none, bind, none).ok()?;
        Some(named)
    }

    fn endpoint(&self, label: &str) -> Endpoint {
        let endpoint = serde_json::json!({
            "id": 1, "name": "front", "netns": self.name, "netns_inode": self.inode,
            "labels": {"tier": label}, "addresses": [], "interface": "hfe1", "ifindex": 1,
            "mac": [0, 0, 0, 0, 0, 0], "host_mac": [0, 0, 0, 0, 0, 0], "created": true,
        });
        assert!(NamespaceName::new(&self.name).is_ok());
        serde_json::from_value(endpoint).unwrap()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let path = format!("/run/netns/{}", self.name);
        let _ = nix::mount::umount(path.as_str());
        let _ = std::fs::remove_file(path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gains_loses_and_changes_identities_with_the_endpoint_that_its_process_is_in() {
    let Some(named) = Named::new() else {
        eprintln!("SKIPPED: no right to name a network namespace");
        return;
    };
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    for tier in ["front", "back"] {
        let mut order = entry(tier, "web1");
        order.selectors = vec![format!("label:tier={tier}")];
        ca.admin.create_entry(&order).await.unwrap();
    }
    let workloads = agent.workloads();
    let mut workload = Workload::of(&agent).await;
    let nobody = |state: &WorkloadState| matches!(state, WorkloadState::NoIdentity);
    workload.until(nobody).await;

    workloads.add_endpoint(named.endpoint("front"));
    workload.until_ids(&["front"]).await;
    // Relabelled, as its own and in a list of all.
    workloads.add_endpoint(named.endpoint("back"));
    workload.until_ids(&["back"]).await;
    workloads.set_endpoints(vec![named.endpoint("front")]);
    workload.until_ids(&["front"]).await;
    // Another endpoint is no news for this one.
    let mut other = named.endpoint("back");
    (other.id, other.netns_inode) = (2, named.inode + 1);
    workload.state.mark_unchanged();
    workloads.add_endpoint(other);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!workload.state.has_changed().unwrap());

    workloads.set_endpoints(vec![]);
    workload.until(nobody).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_goes_while_a_caller_is_attested_gives_it_nothing_for_long() {
    let Some(named) = Named::new() else {
        eprintln!("SKIPPED: no right to name a network namespace");
        return;
    };
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut order = entry("front", "web1");
    order.selectors = vec!["label:tier=front".to_owned()];
    ca.admin.create_entry(&order).await.unwrap();
    let workloads = agent.workloads();
    workloads.add_endpoint(named.endpoint("front"));
    let mut first = Workload::of(&agent).await;
    first.until_ids(&["front"]).await;
    // Attested by the old list, served only when it has changed.
    let attested = Arc::clone(&first.attested);
    workloads.set_endpoints(vec![]);
    let mut late = workloads.watch(&attested);
    let withdrawn = late.wait_for(|state| matches!(**state, WorkloadState::NoIdentity));
    tokio::time::timeout(LONG, withdrawn)
        .await
        .expect("it is looked at again")
        .unwrap();
}

/// Its connection may be held by somebody else, and nothing is known of it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_be_looked_at_again_has_nothing_of_its_endpoint() {
    let Some(named) = Named::new() else {
        eprintln!("SKIPPED: no right to name a network namespace");
        return;
    };
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let agent = node.start();
    let mut order = entry("front", "web1");
    order.selectors = vec!["label:tier=front".to_owned()];
    ca.admin.create_entry(&order).await.unwrap();
    let workloads = agent.workloads();
    workloads.add_endpoint(named.endpoint("front"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdin.read()";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (connection, _) = listener.accept().unwrap();
    let peer = Arc::new(Peer::of(&connection).unwrap());
    let attested = workloads.attest(&peer).await.unwrap();
    let mut state = workloads.watch(&attested);
    let ready = state.wait_for(|state| matches!(**state, WorkloadState::Ready(_)));
    drop(tokio::time::timeout(LONG, ready).await.unwrap().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    workloads.set_endpoints(vec![]);
    let withdrawn = state.wait_for(|state| matches!(**state, WorkloadState::NoIdentity));
    tokio::time::timeout(LONG, withdrawn)
        .await
        .unwrap()
        .unwrap();
}
