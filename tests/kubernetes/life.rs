//! What happens to pods in the life of a cluster, and that identities follow.

use serde_json::json;

use crate::harness::mesh::Endpoint;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::support::{SOON, serve};

#[test]
fn identities_follow_pods_through_rollouts_labels_outages_and_the_end_of_a_namespace() {
    let Some(mut mesh) = Mesh::start("identities_follow_pods") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    let accounts = ["web", "web2", "client"];
    mesh.cluster
        .namespace("shop", &json!({"team": "sales"}), &accounts)
        .unwrap();
    let labels = [("app", "web"), ("pod-template-hash", "1")];
    let first = mesh.pod(0, "shop", "web-1", "web", &labels, 10).unwrap();
    let client = mesh
        .pod(1, "shop", "client-1", "client", &[("app", "client")], 10)
        .unwrap();
    let _page = serve(&mesh.lab, &first.workload);
    mesh.until_reached(&client, &first, true);

    // A pod's label, and its namespace's, are signed; what only a rollout changes is not.
    let entry = &mesh.entries_of("shop", "web", 1)[0];
    assert_eq!(entry["labels"]["app"], "web");
    assert_eq!(entry["owner"], format!("kubernetes/pod/{}", first.uid));
    assert!(
        entry["labels"].get("pod-template-hash").is_none(),
        "{entry}"
    );
    let pod = "/api/v1/namespaces/shop/pods/web-1";
    mesh.cluster
        .patch(pod, &json!({"metadata": {"labels": {"tier": "front"}}}))
        .unwrap();
    mesh.cluster
        .patch(
            "/api/v1/namespaces/shop",
            &json!({"metadata": {"labels": {"team": "buyers"}}}),
        )
        .unwrap();
    wait::until("the labels to be signed", SOON, || {
        let entries = mesh.entries_of("shop", "web", 1);
        let labels = &entries[0]["labels"];
        let both =
            labels["tier"] == "front" && labels["io.cilium.k8s.namespace.labels.team"] == "buyers";
        Ok(both.then_some(()))
    })
    .unwrap();
    mesh.until_reached(&client, &first, true);

    // A rollout with another service account: the next pod is there before the last one goes.
    let second = mesh.pod(0, "shop", "web-2", "web2", &labels, 11).unwrap();
    let _second_page = serve(&mesh.lab, &second.workload);
    mesh.until_reached(&client, &second, true);
    mesh.cluster.delete(pod).unwrap();
    mesh.entries_of("shop", "web", 0);
    first.end(&mesh.nodes[0]).unwrap();
    mesh.still_reaches(&client, &second);

    // The API server is away: nothing is cut, nothing opens, and no pod that nobody has registered starts.
    mesh.cluster.down().unwrap();
    for _ in 0..3 {
        mesh.still_reaches(&client, &second);
    }
    assert_eq!(mesh.entries_of("shop", "web2", 1).len(), 1);
    mesh.cluster.up().unwrap();
    let third = mesh.pod(0, "shop", "web-3", "web", &labels, 12).unwrap();
    mesh.entries_of("shop", "web", 1);

    // The authority starts anew: it goes on with what it had, and hears of what went meanwhile.
    mesh.authority.server().unwrap().kill();
    mesh.cluster
        .delete("/api/v1/namespaces/shop/pods/web-3")
        .unwrap();
    mesh.authority.serve().unwrap();
    mesh.entries_of("shop", "web", 0);
    mesh.entries_of("shop", "web2", 1);
    third.end(&mesh.nodes[0]).unwrap();

    // The namespace ends, as its controller would end it: pods first.
    for name in ["web-2", "client-1"] {
        mesh.cluster
            .delete(&format!("/api/v1/namespaces/shop/pods/{name}"))
            .unwrap();
    }
    mesh.entries_of("shop", "web2", 0);
    mesh.entries_of("shop", "client", 0);
    second.end(&mesh.nodes[0]).unwrap();
    client.end(&mesh.nodes[1]).unwrap();
    for node in &mesh.nodes {
        let endpoints: Vec<Endpoint> = node.json(&["endpoint", "list"]).unwrap();
        assert!(endpoints.is_empty(), "{endpoints:?}");
    }
}
