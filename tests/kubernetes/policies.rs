//! Policies that are objects of the cluster: in force, told how they stand, and gone when they are deleted.

use serde_json::{Value, json};

use crate::harness::wait;
use crate::mesh::Mesh;
use crate::support::{SOON, serve};

const OBJECTS: &str = "/apis/handfast.io/v1alpha1/namespaces/shop/handfastpolicies";

fn policy(name: &str, ingress: Value) -> Value {
    json!({
        "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [ingress]},
    })
}

/// A condition's status and message.
fn condition(object: &Value, kind: &str) -> (String, String) {
    let none = Vec::new();
    let conditions = object["status"]["conditions"].as_array().unwrap_or(&none);
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == kind);
    let text = |field: &str| {
        found
            .and_then(|condition| condition[field].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    (text("status"), text("message"))
}

#[test]
fn a_policy_is_in_force_says_so_and_ends_with_its_object() {
    let Some(mut mesh) = Mesh::start("a_policy_is_in_force") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web", "client"])
        .unwrap();
    let server = mesh
        .pod(0, "shop", "web-1", "web", &[("app", "web")], 10)
        .unwrap();
    let friend = mesh
        .pod(1, "shop", "friend", "client", &[("app", "friend")], 10)
        .unwrap();
    let stranger = mesh
        .pod(1, "shop", "stranger", "client", &[("app", "stranger")], 11)
        .unwrap();
    let _page = serve(&mesh.lab, &server.workload);
    mesh.until_reached(&stranger, &server, true);

    let from = |app: &str| {
        json!({
            "fromEndpoints": [{"matchLabels": {"app": app}}],
            "authentication": {"mode": "required"},
        })
    };
    mesh.cluster.create(&policy("web", from("friend"))).unwrap();
    mesh.until_reached(&stranger, &server, false);
    mesh.until_reached(&friend, &server, true);
    let path = format!("{OBJECTS}/web");
    wait::until("the policy to be enforced", SOON, || {
        let object = mesh.cluster.get(&path)?;
        let (enforced, message) = condition(&object, "Enforced");
        let accepted = condition(&object, "Accepted").0;
        Ok((accepted == "True" && enforced == "True" && message.contains("2 of 2")).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", mesh.cluster.get(&path).unwrap()));

    // Taken out of the registry by hand, it comes back: the object says what holds.
    let name = "kubernetes/HandfastPolicy/shop/web";
    let words = ["policy", "delete", name, "--reason", "a slip"];
    let said = mesh.authority.cli(&words).unwrap();
    let said = said.success("policy delete").unwrap();
    assert!(said.stderr.contains("comes back"), "{said:?}");
    wait::until("the policy to be back", SOON, || {
        let listed = mesh
            .authority
            .cli(&["policy", "list"])?
            .success("policy list")?;
        Ok(listed.stdout.contains("HandfastPolicy").then_some(()))
    })
    .unwrap();
    mesh.until_reached(&stranger, &server, false);

    // A mistake is named with its field, and what was in force stays.
    let mistake = json!({"spec": {"ingress": [{"fromEndpoint": [{}]}]}});
    mesh.cluster.patch(&path, &mistake).unwrap();
    wait::until("the mistake to be named", SOON, || {
        let (accepted, message) = condition(&mesh.cluster.get(&path)?, "Accepted");
        Ok((accepted == "False" && message.contains("fromEndpoint")).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", mesh.cluster.get(&path).unwrap()));
    let event = mesh.refused("shop", "web");
    assert!(event.contains("fromEndpoint"), "{event}");
    mesh.still_reaches(&friend, &server);
    assert!(!mesh.reaches(&stranger, &server));

    mesh.cluster
        .patch(&path, &json!({"spec": {"ingress": [from("stranger")]}}))
        .unwrap();
    mesh.until_reached(&stranger, &server, true);
    mesh.until_reached(&friend, &server, false);
    mesh.cluster.delete(&path).unwrap();
    mesh.until_reached(&friend, &server, true);

    // A NetworkPolicy as it was written for any other enforcer.
    mesh.cluster
        .create(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "friends", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}],
                             "ports": [{"port": 80, "protocol": "TCP"}]}],
            },
        }))
        .unwrap();
    mesh.until_reached(&stranger, &server, false);
    mesh.until_reached(&friend, &server, true);
}
