//! What of a cluster the authority goes by, when it is set otherwise: prefixes from elsewhere, and Cilium's policies.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::harness::lab::underlay;
use crate::harness::mesh::Node;
use crate::harness::wait;
use crate::mesh::{AUDIENCE, Mesh};
use crate::support::{SOON, binary, example_policy, fails, serve};

/// A kind of Cilium's, as far as an API server must know it. Whatever stands in it is kept. Of those for the cluster the
/// status is a resource of its own, as Cilium defines it; others show that it need not be there.
fn cilium(kind: &str, plural: &str, scope: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.cilium.io")},
        "spec": {
            "group": "cilium.io", "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v2", "served": true, "storage": true,
                "subresources": match scope {
                    "Cluster" => json!({"status": {}}),
                    _ => json!({}),
                },
                "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

/// A node of the cluster that is none of the mesh yet, with its agent's token.
fn machine(mesh: &Mesh, number: u8, prefixes: &[String]) -> Node {
    let node = Node::create(&mesh.lab, binary(), number).unwrap();
    let addresses = underlay(number).map(|address| address.to_string());
    mesh.cluster
        .node(node.name(), prefixes, &addresses)
        .unwrap();
    mesh.token(&node, AUDIENCE).unwrap();
    node
}

/// The prefixes that the authority has of a node.
fn registered(mesh: &Mesh, name: &str) -> Value {
    let said = mesh.authority.cli(&["node", "list", "--output", "json"]);
    let said = said.unwrap().success("node list").unwrap();
    let nodes: Vec<Value> = serde_json::from_str(&said.stdout).unwrap();
    let node = nodes.iter().find(|node| node["name"] == name).unwrap();
    node["prefixes"].clone()
}

fn cilium_node(cluster: &Cluster, name: &str, prefixes: &[&str]) {
    let object = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNode",
        "metadata": {"name": name}, "spec": {"ipam": {"podCIDRs": prefixes}},
    });
    cluster.create(&object).unwrap();
}

#[test]
fn prefixes_come_from_cilium_nodes_within_the_authoritys_ranges() {
    let mesh = Mesh::start_with("prefixes_come_from_cilium_nodes", |config| {
        config["nodes"]["prefixes"] = json!({"source": "cilium-nodes"});
    });
    let Some(mesh) = mesh else { return };
    let definition = cilium("CiliumNode", "ciliumnodes", "Cluster");
    mesh.cluster.define(&definition).unwrap();
    // What the Node says counts for nothing here.
    let node = machine(&mesh, 1, &["10.77.9.0/24".to_owned()]);
    fails(&mesh.join(&node, "n1").unwrap(), &["CiliumNode"]);
    cilium_node(&mesh.cluster, "n1", &["10.77.1.0/24"]);
    let joined = mesh.join(&node, "n1").unwrap();
    joined.success("handfast agent join").unwrap();
    assert_eq!(registered(&mesh, "n1"), json!(["10.77.1.0/24"]));

    let far = machine(&mesh, 2, &["10.77.2.0/24".to_owned()]);
    cilium_node(&mesh.cluster, "n2", &["192.168.9.0/24"]);
    fails(&mesh.join(&far, "n2").unwrap(), &["192.168.9.0/24"]);
    let none = machine(&mesh, 3, &["10.77.3.0/24".to_owned()]);
    cilium_node(&mesh.cluster, "n3", &[]);
    fails(&mesh.join(&none, "n3").unwrap(), &["n3", "no prefixes"]);
}

#[test]
fn prefixes_come_from_a_file_that_is_read_at_each_attestation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes.yaml");
    std::fs::write(&path, "n1: [10.77.1.0/24]\n").unwrap();
    let mesh = Mesh::start_with("prefixes_come_from_a_file", |config| {
        config["nodes"]["prefixes"] = json!({"source": "file", "path": path});
    });
    let Some(mesh) = mesh else { return };
    let node = machine(&mesh, 1, &["10.77.9.0/24".to_owned()]);
    let joined = mesh.join(&node, "n1").unwrap();
    joined.success("handfast agent join").unwrap();
    assert_eq!(registered(&mesh, "n1"), json!(["10.77.1.0/24"]));

    let second = machine(&mesh, 2, &["10.77.2.0/24".to_owned()]);
    fails(&mesh.join(&second, "n2").unwrap(), &["n2", "no prefixes"]);
    std::fs::write(&path, "n1: [10.77.1.0/24]\nn2: [10.77.2.7/24]\n").unwrap();
    fails(&mesh.join(&second, "n2").unwrap(), &["host bits"]);
    std::fs::write(&path, "n1: [10.77.1.0/24]\nn2: [10.77.2.0/24]\n").unwrap();
    let joined = mesh.join(&second, "n2").unwrap();
    joined.success("handfast agent join").unwrap();
    assert_eq!(registered(&mesh, "n2"), json!(["10.77.2.0/24"]));
}

#[test]
fn policies_written_for_cilium_are_in_force_as_they_are() {
    let mesh = Mesh::start_with("policies_written_for_cilium", |config| {
        let kinds = ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"];
        config["policies"] = json!(kinds);
    });
    let Some(mut mesh) = mesh else { return };
    for (kind, plural, scope) in [
        ("CiliumNetworkPolicy", "ciliumnetworkpolicies", "Namespaced"),
        (
            "CiliumClusterwideNetworkPolicy",
            "ciliumclusterwidenetworkpolicies",
            "Cluster",
        ),
    ] {
        mesh.cluster.define(&cilium(kind, plural, scope)).unwrap();
    }
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["nginx", "client"])
        .unwrap();
    let server = mesh
        .pod(0, "shop", "nginx", "nginx", &[("run", "nginx")], 10)
        .unwrap();
    let good = mesh
        .pod(1, "shop", "good", "client", &[("client", "good")], 10)
        .unwrap();
    let bad = mesh
        .pod(1, "shop", "bad", "client", &[("client", "bad")], 11)
        .unwrap();
    let _page = serve(&mesh.lab, &server.workload);
    mesh.until_reached(&bad, &server, true);

    // The README's policy, as `kubectl apply` sends it.
    let mut policy: Value = serde_norway::from_str(&example_policy()).unwrap();
    policy["metadata"]["namespace"] = json!("shop");
    mesh.cluster.create(&policy).unwrap();
    mesh.until_reached(&bad, &server, false);
    mesh.until_reached(&good, &server, true);

    // One for the whole cluster denies what the other allows.
    mesh.cluster
        .create(&json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
            "metadata": {"name": "nobody"},
            "spec": {
                "endpointSelector": {"matchLabels": {"run": "nginx"}},
                "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"client": "good"}}]}],
            },
        }))
        .unwrap();
    mesh.until_reached(&good, &server, false);

    // Of a mistake in it whoever looks at it is told, and the last good version stays.
    let nobody = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/nobody";
    let valid = |status: &str, words: &str| {
        wait::until(&format!("Valid={status} {words:?}"), SOON, || {
            let object = mesh.cluster.get(nobody)?;
            let conditions = object["status"]["conditions"].as_array().cloned();
            Ok(conditions
                .unwrap_or_default()
                .into_iter()
                .find(|condition| {
                    condition["type"] == "Valid"
                        && condition["status"] == status
                        && condition["message"].as_str().unwrap().contains(words)
                }))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", mesh.cluster.get(nobody).unwrap()))
    };
    valid("True", "can be read");
    let mistake = json!({"spec": {"ingressDeny": [{"fromEndpoint": [{}]}]}});
    mesh.cluster.patch(nobody, &mistake).unwrap();
    valid("False", "fromEndpoint");
    // Where this API server has events about what is in no namespace; later ones have them in `default`.
    let event = mesh.refused("kube-system", "nobody");
    assert!(
        event.contains("the last good version stays in force"),
        "{event}"
    );
    assert!(!mesh.reaches(&good, &server));
    mesh.cluster.delete(nobody).unwrap();
    mesh.until_reached(&good, &server, true);

    // A mistake leaves the last good version in force, and an event says what is wrong.
    let path = "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/nginx";
    let mistake = json!({"spec": {"ingress": [{"fromEndpoint": [{}]}]}});
    mesh.cluster.patch(path, &mistake).unwrap();
    let event = mesh.refused("shop", "nginx");
    assert!(event.contains("fromEndpoint"), "{event}");
    mesh.still_reaches(&good, &server);
    assert!(!mesh.reaches(&bad, &server));
}
