//! The chart's first installation: nodes that join, with policies in audit mode. Nothing is cut and nothing is encrypted;
//! then the nodes become managed, and at last the policy requires proofs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::capture::{Capture, WireWatch};
use crate::harness::lab::underlay;
use crate::harness::mesh::{TUNNEL_PORTS, ranges};
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::support::{PAGE, SOON, fails, serve};

/// Nodes report what audited rules saw each ten seconds.
const REPORTED: Duration = Duration::from_secs(90);

/// What a CNI does that routes pods' traffic from node to node as it is.
fn route(mesh: &Mesh) {
    for (at, to) in [(0, 2u8), (1, 1)] {
        let [via, _] = underlay(to);
        let route = format!("route add 10.77.{to}.0/24 via {via}");
        mesh.nodes[at].host.ns.ip(&route).unwrap();
    }
}

fn policy(mode: &str) -> Value {
    json!({
        "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            // Opens and closes nothing: it asks for proofs alone.
            "enableDefaultDeny": {"ingress": false},
            "ingress": [{
                "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                "authentication": {"mode": mode},
            }],
        },
    })
}

/// Frames on the underlay, from now on, in which a page or a pod's address can be read.
fn readable(wire: &Capture<WireWatch>, work: impl FnOnce()) -> u64 {
    wire.with(|wire| (wire.clear, wire.secrets) = (0, 0));
    work();
    wire.with(|wire| wire.clear + wire.secrets)
}

#[test]
fn nodes_join_in_clear_then_are_managed_and_at_last_proofs_are_required() {
    let mesh = Mesh::start_with("nodes_join_in_clear", |config| {
        config["nodes"]["joining"] = json!(true);
    });
    let Some(mut mesh) = mesh else { return };
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    route(&mesh);
    mesh.cluster
        .namespace("shop", &json!({}), &["web", "client"])
        .unwrap();
    let pod = |node, name: &str, account: &str, index| -> Pod {
        let pod = mesh.pod(node, "shop", name, account, &[("app", account)], index);
        pod.unwrap()
    };
    let server = pod(0, "web-1", "web", 10);
    let client = pod(1, "client-1", "client", 10);
    let _page = serve(&mesh.lab, &server.workload);
    let states = || -> Vec<String> {
        let listed = mesh.authority.cli(&["node", "list", "--output", "json"]);
        let listed = listed.unwrap().success("node list").unwrap().stdout;
        let nodes: Vec<Value> = serde_json::from_str(&listed).unwrap();
        nodes
            .iter()
            .map(|node| node["managed"].to_string())
            .collect()
    };
    assert_eq!(states(), ["false", "false"]);

    let watch = WireWatch::new(ranges(), b"no canary", PAGE.as_bytes(), &TUNNEL_PORTS);
    let wire = Capture::start(mesh.lab.switch(), watch).unwrap();
    mesh.until_reached(&client, &server, true);
    mesh.cluster.create(&policy("audit")).unwrap();
    enforced(&mesh);
    wait::until("pods to talk as they did before", SOON, || {
        let clear = readable(&wire, || mesh.still_reaches(&client, &server));
        Ok((clear > 0).then_some(()))
    })
    .unwrap();

    // Managed: nothing is lost on the way, and nothing can be read afterwards.
    let words = [
        "node",
        "enforce",
        "n1",
        "n2",
        "--reason",
        "the trial is over",
    ];
    let said = mesh.authority.cli(&words).unwrap();
    said.success("node enforce").unwrap();
    assert_eq!(states(), ["true", "true"]);
    wait::until("the tunnel to carry what pods say", SOON, || {
        let mut reached = false;
        let clear = readable(&wire, || reached = mesh.reaches(&client, &server));
        Ok((reached && clear == 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", mesh.evidence()));

    // Audit, until every pair that was seen is proven; then required.
    let name = "shop/web";
    let enforce = |words: &[&str]| {
        let asked = [
            "policy",
            "enforce",
            name,
            "--since",
            "10s",
            "--least-flows",
            "3",
        ];
        mesh.authority.cli(&[&asked[..], words].concat()).unwrap()
    };
    wait::until("a policy that may be enforced", REPORTED, || {
        mesh.still_reaches(&client, &server);
        Ok((enforce(&["--dry-run"]).code() == 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", enforce(&["--dry-run"])));
    // Whose policy is an object of the cluster changes the object.
    let edit = "kubectl edit HandfastPolicy web --namespace shop";
    fails(&enforce(&[]), &[edit, "nothing was changed"]);
    let required = json!({"spec": policy("required")["spec"]});
    let path = "/apis/handfast.io/v1alpha1/namespaces/shop/handfastpolicies/web";
    mesh.cluster.patch(path, &required).unwrap();
    enforced(&mesh);
    let clear = readable(&wire, || {
        mesh.until_reached(&client, &server, true);
    });
    assert_eq!(clear, 0);
}

/// Waits until both nodes say that they enforce what the policy says now.
fn enforced(mesh: &Mesh) {
    let path = "/apis/handfast.io/v1alpha1/namespaces/shop/handfastpolicies/web";
    wait::until("the policy to be enforced", SOON, || {
        let object = mesh.cluster.get(path)?;
        let generation = &object["metadata"]["generation"];
        let conditions = object["status"]["conditions"].as_array().cloned();
        let enforced = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| {
                condition["type"] == "Enforced"
                    && condition["status"] == "True"
                    && condition["observedGeneration"] == *generation
            });
        Ok(enforced.map(drop))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", mesh.cluster.get(path).unwrap()));
}
