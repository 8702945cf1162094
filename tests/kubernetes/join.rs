//! Who becomes a node by a token, and who does not, each refusal by its name.

use serde_json::json;

use crate::cluster::SYSTEM;
use crate::harness::lab::underlay;
use crate::harness::mesh::Node;
use crate::mesh::{AUDIENCE, Mesh};
use crate::support::{binary, fails};

#[test]
fn a_node_joins_by_its_agents_token_alone() {
    let Some(mut mesh) = Mesh::start("a_node_joins_by_its_agents_token_alone") else {
        return;
    };
    mesh.node(1).unwrap();

    let node = Node::create(&mesh.lab, binary(), 2).unwrap();
    let addresses = underlay(2).map(|address| address.to_string());
    let prefixes = ["10.77.2.0/24".to_owned()];
    mesh.cluster.node("n2", &prefixes, &addresses).unwrap();

    mesh.token(&node, "another-audience").unwrap();
    fails(
        &mesh.join(&node, "n2").unwrap(),
        &["k8s_psat", "token", "audience"],
    );

    mesh.token(&node, AUDIENCE).unwrap();
    fails(
        &mesh.join(&node, "n1").unwrap(),
        &["of a pod on node n2", "not on node n1"],
    );

    let pod = mesh
        .cluster
        .pod(SYSTEM, "other", "n2", "handfast-ca", &[])
        .unwrap();
    let put = |token: &str| std::fs::write(node.host.dir.join("token"), token).unwrap();
    let bound = Some(("other", pod.as_str()));
    put(&mesh
        .cluster
        .token("handfast-ca", Some(AUDIENCE), bound)
        .unwrap());
    fails(
        &mesh.join(&node, "n2").unwrap(),
        &["handfast-ca", "no service account of agents"],
    );

    put(&mesh
        .cluster
        .token("handfast-agent", Some(AUDIENCE), None)
        .unwrap());
    fails(&mesh.join(&node, "n2").unwrap(), &["bound to no pod"]);

    // Whatever the cluster says, prefixes stay within the authority's ranges.
    let far = Node::create(&mesh.lab, binary(), 3).unwrap();
    let addresses = underlay(3).map(|address| address.to_string());
    let outside = ["192.168.9.0/24".to_owned()];
    mesh.cluster.node("n3", &outside, &addresses).unwrap();
    mesh.token(&far, AUDIENCE).unwrap();
    fails(&mesh.join(&far, "n3").unwrap(), &["192.168.9.0/24"]);

    // Nor may a node write an address there, which is to be a pod's one day.
    let inside = Node::create(&mesh.lab, binary(), 4).unwrap();
    let addresses = ["10.77.9.1".to_owned()];
    mesh.cluster
        .node("n4", &["10.77.4.0/24".to_owned()], &addresses)
        .unwrap();
    mesh.token(&inside, AUDIENCE).unwrap();
    fails(
        &mesh.join(&inside, "n4").unwrap(),
        &["InternalIP 10.77.9.1 lies in 10.77.0.0/16"],
    );

    mesh.token(&node, AUDIENCE).unwrap();
    mesh.cluster
        .delete(&format!("/api/v1/namespaces/{SYSTEM}/pods/agent-n2"))
        .unwrap();
    fails(&mesh.join(&node, "n2").unwrap(), &["k8s_psat"]);

    mesh.token(&node, AUDIENCE).unwrap();
    mesh.cluster
        .delete(&format!(
            "/api/v1/namespaces/{SYSTEM}/serviceaccounts/handfast-agent"
        ))
        .unwrap();
    fails(&mesh.join(&node, "n2").unwrap(), &["k8s_psat"]);

    // What has been refused so often joins as soon as it is right.
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "handfast-agent", "namespace": SYSTEM},
    });
    mesh.cluster.create(&account).unwrap();
    mesh.token(&node, AUDIENCE).unwrap();
    mesh.join(&node, "n2")
        .unwrap()
        .success("handfast agent join")
        .unwrap();
    let again = mesh
        .join(&node, "n2")
        .unwrap()
        .success("the same again")
        .unwrap();
    assert!(again.stdout.contains("has joined already"), "{again:?}");
}
