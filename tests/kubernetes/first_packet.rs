//! A pod sends at once when its runtime lets it start: whatever it sends first waits for its proof, and none of it is lost.

use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::json;

use crate::harness::mesh::Status;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::support::SOON;

/// Pods that start, one after the other.
const PODS: u8 = 5;
/// What stops a packet for want of a gate's mark, or for being where it should not be.
const LOST: [&str; 3] = ["ungated", "wire-in", "wire-out"];

#[test]
fn what_a_pod_sends_the_moment_that_it_starts_is_not_lost() {
    let Some(mut mesh) = Mesh::start("what_a_pod_sends_first") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web", "client"])
        .unwrap();
    mesh.only_clients().unwrap();
    let server = mesh
        .pod(0, "shop", "web-1", "web", &[("app", "web")], 10)
        .unwrap();
    let address = SocketAddr::new(server.address, 80);
    let listener = server
        .workload
        .ns
        .inside(|| Ok(TcpListener::bind(address)?));
    let _listener = listener.unwrap();

    for number in 0..PODS {
        let (name, tag) = (format!("client-{number}"), number.to_string());
        let node = &mesh.nodes[1];
        // Its link has its gateway's address on the node's side, as `ptp` and its like make it, and is seen before it is ours.
        let mut pod = Pod::make(&mesh.lab, node, "shop", &name, "", 20 + number).unwrap();
        let labels = [("app", "client"), ("tag", tag.as_str())];
        pod.uid = mesh
            .cluster
            .pod("shop", &name, node.name(), "client", &labels)
            .unwrap();
        let started = pod.cni(node, "ADD").unwrap();
        assert!(started.ok, "{started:?}");
        let connected = pod
            .workload
            .ns
            .inside(|| Ok(TcpStream::connect_timeout(&address, SOON)?));
        assert!(connected.is_ok(), "{connected:?}\n{}", mesh.evidence());
    }
    for node in &mesh.nodes {
        let status: Status = node.json(&["status"]).unwrap();
        for reason in LOST {
            let lost = status.packets(reason);
            assert_eq!(lost, 0, "{reason} on {}: {status:?}", node.name());
        }
    }
}
