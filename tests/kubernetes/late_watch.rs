//! Watches that come back too late: what happened meanwhile is no longer told (410), so everything is listed anew. Nothing
//! is cut or opened while nobody hears of anything, and afterwards all is as it would have been.

use serde_json::{Value, json};

use crate::cluster::{Cluster, PORT};
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::Pod;
use crate::relay::Relay;
use crate::support::{SOON, serve};

/// Where the authority believes the API server to be.
const RELAYED: u16 = 16444;
/// An outage in which the Lease is lost ends every watch in order; a slow machine may take so long over one or two.
const ROUNDS: usize = 5;

/// The authority's configuration, with the API server behind the relay.
fn behind_the_relay(config: &mut Value) {
    let path = config["kubeconfig"].as_str().unwrap().to_owned();
    let direct = std::fs::read_to_string(&path).unwrap();
    let relayed = direct.replace(&PORT.to_string(), &RELAYED.to_string());
    std::fs::write(&path, relayed).unwrap();
}

fn policy(cluster: &Cluster, allowed: &str) {
    let spec = json!({
        "endpointSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{
            "fromEndpoints": [{"matchLabels": {"app": allowed}}],
            "authentication": {"mode": "required"},
        }],
    });
    let folder = "/apis/handfast.io/v1alpha1/namespaces/shop/handfastpolicies";
    let path = format!("{folder}/web");
    match cluster.ask("GET", &path, None).unwrap() {
        (200, _) => cluster.patch(&path, &json!({"spec": spec})).unwrap(),
        _ => cluster
            .create(&json!({
                "apiVersion": "handfast.io/v1alpha1", "kind": "HandfastPolicy",
                "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
            }))
            .unwrap(),
    };
}

/// Changes everything that is watched while nobody hears of it and etcd forgets it, and lets the watches come back.
fn outage(mesh: &Mesh, relay: &Relay, round: usize, [now, then]: [&Pod; 2], server: &Pod) {
    let (old, new) = (format!("old-{round}"), format!("new-{round}"));
    let make = |name: &str, account: &str| mesh.cluster.pod("shop", name, "n2", account, &[]);
    make(&old, "old").unwrap();
    // The watches are there, and are heard.
    mesh.entries_of("shop", "old", 1);
    policy(&mesh.cluster, &now.name);
    mesh.until_reached(now, server, true);
    mesh.until_reached(then, server, false);

    relay.cut();
    let path = |name: &str| format!("/api/v1/namespaces/shop/pods/{name}");
    mesh.cluster.delete(&path(&old)).unwrap();
    make(&new, "new").unwrap();
    let label = json!({"metadata": {"labels": {"round": round.to_string()}}});
    let namespace = "/api/v1/namespaces/shop";
    mesh.cluster.patch(namespace, &label).unwrap();
    policy(&mesh.cluster, &then.name);
    mesh.cluster.compact().unwrap();
    mesh.still_reaches(now, server);
    assert!(!mesh.reaches(then, server));
    assert_eq!(mesh.entries_of("shop", "old", 1).len(), 1);

    relay.heal();
    mesh.entries_of("shop", "old", 0);
    mesh.entries_of("shop", "new", 1);
    wait::until("the namespace's label to be signed", SOON, || {
        let entries = mesh.entries_of("shop", "web", 1);
        let label = &entries[0]["labels"]["io.cilium.k8s.namespace.labels.round"];
        let signed = label.as_str().and_then(|label| label.parse().ok());
        Ok((signed == Some(round)).then_some(()))
    })
    .unwrap();
    mesh.until_reached(then, server, true);
    mesh.until_reached(now, server, false);
    mesh.cluster.delete(&path(&new)).unwrap();
    mesh.entries_of("shop", "new", 0);
}

#[test]
fn watches_that_come_back_too_late_make_up_for_what_they_missed() {
    let Some(mut mesh) = Mesh::start_with("watches_that_come_back_too_late", behind_the_relay)
    else {
        return;
    };
    let host = &mesh.authority.host().ns;
    let relay = Relay::start(host, RELAYED, PORT).unwrap();
    // Without its cache the server asks etcd itself, which forgets what it is told to.
    mesh.cluster.down().unwrap();
    mesh.cluster.up_with(&["--watch-cache=false"]).unwrap();
    mesh.node(1).unwrap();
    mesh.node(2).unwrap();
    let accounts = ["web", "client", "old", "new"];
    mesh.cluster
        .namespace("shop", &json!({}), &accounts)
        .unwrap();
    let made = |node, name: &str, account, index| {
        let pod = mesh.pod(node, "shop", name, account, &[("app", name)], index);
        pod.unwrap()
    };
    let server = made(0, "web", "web", 10);
    let (one, other) = (made(1, "one", "client", 10), made(1, "other", "client", 11));
    let _page = serve(&mesh.lab, &server.workload);

    let too_late = || {
        let log = std::fs::read_to_string(mesh.lab.logs().join("ca.log")).unwrap();
        // What the API server says with 410.
        log.contains("too old")
    };
    for round in 0..ROUNDS {
        outage(&mesh, &relay, round, [&one, &other], &server);
        if too_late() {
            return;
        }
    }
    panic!("no watch of {ROUNDS} rounds came too late");
}
