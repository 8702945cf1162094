//! The plugin under hostile and unlucky runtimes: every failure is an error object, and none leaves anything behind.

use serde_json::{Value, json};

use crate::harness::mesh::Endpoint;
use crate::harness::wait;
use crate::mesh::Mesh;
use crate::pod::{Pod, call};
use crate::support::SOON;

#[test]
fn the_plugin_answers_in_the_form_that_runtimes_read() {
    let Some(mut mesh) = Mesh::start("the_plugin_answers") else {
        return;
    };
    mesh.node(1).unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web"])
        .unwrap();
    let node = &mesh.nodes[0];
    let uid = mesh.cluster.pod("shop", "web-1", "n1", "web", &[]).unwrap();
    let pod = Pod::make(&mesh.lab, node, "shop", "web-1", &uid, 10).unwrap();
    let code = |answer: &Value| answer["code"].as_u64();

    let version = call(node, "VERSION", &[], "").unwrap();
    let versions = version.json["supportedVersions"].as_array().unwrap();
    assert!(version.ok && versions.contains(&json!("1.1.0")) && versions.contains(&json!("1.0.0")));
    // The node has heard the CA once, or it would take no pods.
    wait::until("the node to take pods", SOON, || {
        Ok(pod.cni(node, "STATUS")?.ok.then_some(()))
    })
    .unwrap();

    // Without a result before it.
    let config = json!({"cniVersion": "1.0.0", "name": "pods", "adminSocket": node.socket()});
    let alone = call(node, "ADD", &pod.variables(), &config.to_string()).unwrap();
    assert_eq!((alone.ok, code(&alone.json)), (false, Some(7)), "{alone:?}");
    assert_eq!(alone.json["cniVersion"], "1.0.0");
    // Not JSON, no command, an unknown version.
    assert_eq!(
        code(&call(node, "ADD", &pod.variables(), "{").unwrap().json),
        Some(6)
    );
    assert_eq!(
        code(&call(node, "JUMP", &pod.variables(), "{}").unwrap().json),
        Some(4)
    );
    let old = json!({"cniVersion": "0.1.0"}).to_string();
    assert_eq!(
        code(&call(node, "ADD", &pod.variables(), &old).unwrap().json),
        Some(1)
    );
    // A namespace that is gone.
    let mut gone = pod.variables();
    gone.retain(|(name, _)| name != "CNI_NETNS");
    gone.push(("CNI_NETNS".into(), "/var/run/netns/hfk-gone".into()));
    let mut config = config;
    config["prevResult"] = pod.previous();
    let lost = call(node, "ADD", &gone, &config.to_string()).unwrap();
    assert_eq!(code(&lost.json), Some(100), "{lost:?}");
    assert_eq!(pod.cni(node, "CHECK").unwrap().json["code"], 3);

    // An address that the node may not have, whatever the plugins before gave it.
    let outside = mesh.cluster.pod("shop", "outside", "n1", "web", &[]);
    let mut outside = Pod::make(&mesh.lab, node, "shop", "outside", &outside.unwrap(), 12).unwrap();
    let elsewhere = "10.77.9.12";
    let inside = &outside.workload.ns;
    inside
        .ip(&format!("addr add {elsewhere}/32 dev eth0"))
        .unwrap();
    outside.address = elsewhere.parse().unwrap();
    let refused = outside.cni(node, "ADD").unwrap();
    assert_eq!(code(&refused.json), Some(100), "{refused:?}");
    let details = refused.json["details"].as_str().unwrap();
    assert!(
        details.contains(elsewhere) && details.contains("10.77.1.0/24"),
        "{details}"
    );
    assert_eq!(outside.cni(node, "CHECK").unwrap().json["code"], 3);

    // A hundred at once for one container: one attaches it, the others are told.
    let said: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| pod.cni(node, "ADD").unwrap()))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (done, refused): (Vec<_>, Vec<_>) = said.into_iter().partition(|one| one.ok);
    assert_eq!((done.len(), refused.len()), (1, 99));
    assert_eq!(
        done[0].json,
        pod.previous(),
        "the result before is passed on"
    );
    assert!(
        refused.iter().all(|one| code(&one.json) == Some(100)),
        "{:?}",
        refused[0]
    );
    assert!(pod.cni(node, "CHECK").unwrap().ok);

    // A pod that the authority does not know does not start.
    let mut strangers = pod.variables();
    strangers.retain(|(name, _)| name != "CNI_ARGS" && name != "CNI_CONTAINERID");
    let arguments = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=ghost;K8S_POD_UID=no-such-uid";
    strangers.push(("CNI_ARGS".into(), arguments.into()));
    strangers.push(("CNI_CONTAINERID".into(), "ghost".into()));
    let ghost = Pod::make(&mesh.lab, node, "shop", "ghost", "no-such-uid", 11).unwrap();
    strangers.retain(|(name, _)| name != "CNI_NETNS");
    let netns = format!("/var/run/netns/{}", ghost.workload.ns.name());
    strangers.push(("CNI_NETNS".into(), netns));
    config["prevResult"] = ghost.previous();
    config["identityTimeoutSeconds"] = json!(1);
    let unknown = call(node, "ADD", &strangers, &config.to_string()).unwrap();
    assert_eq!(code(&unknown.json), Some(11), "{unknown:?}");
    let endpoints: Vec<Endpoint> = node.json(&["endpoint", "list"]).unwrap();
    assert_eq!(endpoints.len(), 1, "{endpoints:?}");

    // A GC keeps what it names.
    let gc = |valid: Value| {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = valid;
        config["cniVersion"] = json!("1.1.0");
        call(node, "GC", &[], &config.to_string()).unwrap()
    };
    assert!(gc(json!([{"containerID": pod.container(), "ifname": "eth0"}])).ok);
    assert!(pod.cni(node, "CHECK").unwrap().ok);
    assert!(gc(json!([])).ok);
    assert_eq!(pod.cni(node, "CHECK").unwrap().json["code"], 3);
    assert!(pod.cni(node, "ADD").unwrap().ok);

    // Without an agent no pod starts, and every pod may end.
    let node = &mut mesh.nodes[0];
    node.agent().unwrap().interrupt(SOON).unwrap();
    let node = &mesh.nodes[0];
    let down = ghost.cni(node, "ADD").unwrap();
    assert_eq!(code(&down.json), Some(11), "{down:?}");
    assert_eq!(code(&pod.cni(node, "STATUS").unwrap().json), Some(50));
    pod.end(node).unwrap();
    let node = &mut mesh.nodes[0];
    node.run().unwrap();
    let endpoints: Vec<Endpoint> = node.json(&["endpoint", "list"]).unwrap();
    assert!(endpoints.is_empty(), "{endpoints:?}");
}
