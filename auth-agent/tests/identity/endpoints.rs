//! Open streams of processes in an endpoint's network namespace follow the endpoint.

use handfast_agent::endpoint::{Endpoint, NamespaceName};
use handfast_agent::workload_api::WorkloadState;

use super::world::{Ca, Workload, entry};

/// A name under `/run/netns` for the network namespace of this process.
struct Named {
    name: String,
    inode: u64,
}

impl Named {
    fn new() -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let name = format!("hf-identity-{}", std::process::id());
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
    let attested = std::sync::Arc::clone(&first.attested);
    workloads.set_endpoints(vec![]);
    use handfast_agent::workload_api::Source;
    let mut late = workloads.watch(&attested);
    let withdrawn = late.wait_for(|state| matches!(**state, WorkloadState::NoIdentity));
    tokio::time::timeout(super::world::LONG, withdrawn)
        .await
        .expect("it is looked at again")
        .unwrap();
}
