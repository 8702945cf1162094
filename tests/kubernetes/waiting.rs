//! Pods that start while the CA is away wait for their identity, all at once, and are in nobody's way.

use serde_json::json;

use crate::harness::mesh::{Endpoint, Status};
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::{Pod, call};
use crate::support::SOON;

/// More than the agent's socket once served at a time.
const PODS: u8 = 40;

#[test]
fn pods_that_wait_for_the_ca_start_when_it_is_back_and_block_nobody_meanwhile() {
    let Some(mut mesh) = Mesh::start("pods_that_wait") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web"])
        .unwrap();
    // The node has heard the CA once, or it would take no pods at all.
    let asked =
        json!({"cniVersion": "1.1.0", "name": "pods", "adminSocket": mesh.nodes[0].socket()});
    wait::until("the node to take pods", SOON, || {
        let status = call(&mesh.nodes[0], "STATUS", &[], &asked.to_string())?;
        Ok(status.ok.then_some(()))
    })
    .unwrap();
    mesh.authority.server().unwrap().kill();
    let pods: Vec<Pod> = (0..PODS)
        .map(|number| {
            let name = format!("web-{number}");
            let uid = mesh.cluster.pod("shop", &name, "n1", "web", &[]).unwrap();
            Pod::make(&mesh.lab, &mesh.nodes[0], "shop", &name, &uid, 20 + number).unwrap()
        })
        .collect();
    let Mesh {
        nodes, authority, ..
    } = &mut mesh;
    let node = &nodes[0];
    let listed = || node.json::<Vec<Endpoint>>(&["endpoint", "list"]);
    let started: Vec<_> = std::thread::scope(|scope| {
        let start = |pod: &Pod| {
            let config = json!({
                "cniVersion": "1.0.0", "name": "pods", "adminSocket": node.socket(),
                "prevResult": pod.previous(), "identityTimeoutSeconds": 120,
            });
            call(node, "ADD", &pod.variables(), &config.to_string()).unwrap()
        };
        let starting: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(move || start(pod)))
            .collect();
        // All have their gates, nobody has an identity; whoever asks the agent something else is answered.
        wait::until("all pods to wait", SOON * 4, || {
            Ok((listed()?.len() == usize::from(PODS)).then_some(()))
        })
        .unwrap();
        assert!(listed().unwrap().iter().all(|pod| pod.spiffe_id.is_none()));
        assert!(starting.iter().all(|start| !start.is_finished()));
        let status: Status = node.json(&["status"]).unwrap();
        assert!(!status.ca_connected, "{status:?}");
        authority.serve().unwrap();
        starting
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect()
    });
    assert!(started.iter().all(|one| one.ok), "{started:?}");
    let without = listed()
        .unwrap()
        .into_iter()
        .find(|pod| pod.spiffe_id.is_none());
    assert!(without.is_none(), "{without:?}");
}
