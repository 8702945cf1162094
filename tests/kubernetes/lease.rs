//! Which of several servers reconciles: the holder of the Lease. The test is the other server.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM};
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::support::SOON;

/// Longer than a Lease lasts that nobody renews (15 s), on a slow machine.
const LAPSE: std::time::Duration = std::time::Duration::from_secs(60);

fn path() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/handfast-ca")
}

fn holder(cluster: &Cluster) -> Option<String> {
    let (code, lease) = cluster.ask("GET", &path(), None).ok()?;
    let holder = lease["spec"]["holderIdentity"].as_str();
    (code == 200).then(|| holder.map(str::to_owned)).flatten()
}

/// Writes the Lease as its holder does.
fn hold(cluster: &Cluster, turn: usize) {
    let renewed = json!({"spec": {
        "holderIdentity": "another-server", "leaseDurationSeconds": 15,
        "renewTime": format!("2026-01-01T00:00:00.{turn:06}Z"),
    }});
    cluster.patch(&path(), &renewed).unwrap();
}

#[test]
fn a_server_leaves_the_cluster_to_the_leases_holder_and_takes_over_when_that_is_gone() {
    let Some(mut mesh) = Mesh::start("a_server_leaves_the_cluster") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web"])
        .unwrap();
    let pod = |name: &str| mesh.cluster.pod("shop", name, "n1", "web", &[]).unwrap();
    let entries = || -> Vec<Value> {
        let mut all = mesh.entries().unwrap();
        all.retain(|entry| entry["spiffe_id"].as_str().unwrap().ends_with("/sa/web"));
        all
    };
    pod("first");
    mesh.entries_of("shop", "web", 1);
    let own = holder(&mesh.cluster).unwrap();
    assert_ne!(own, "another-server");

    // Another holds it, and goes on holding it by clocks that nobody here believes.
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        hold(&mesh.cluster, 0);
        scope.spawn(|| {
            for turn in 1.. {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                hold(&mesh.cluster, turn);
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
        });
        // This one renews every 2 s and sees by then that it is no longer its own.
        let left = wait::until("the server to leave the cluster alone", SOON, || {
            let log = mesh.lab.logs().join("ca.log");
            let said = std::fs::read_to_string(log)?;
            Ok(said.contains("no longer reconciles").then_some(()))
        });
        if left.is_ok() {
            pod("second");
        }
        // Long enough for whoever would reconcile (well below a second), and the holder is still the other.
        std::thread::sleep(std::time::Duration::from_secs(3));
        let (seen, now) = (entries().len(), holder(&mesh.cluster));
        gone.store(true, Ordering::SeqCst);
        left.unwrap();
        assert_eq!((seen, now.as_deref()), (1, Some("another-server")));
    });
    // It is gone without a word.
    wait::until("the other's Lease to lapse", LAPSE, || {
        Ok((entries().len() == 2).then_some(()))
    })
    .unwrap();
    assert_eq!(holder(&mesh.cluster), Some(own));
}
