//! The manifests' own containers, run by a container runtime as they say: a node joins, its agent works, and before the
//! chart goes the node is detached.

use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::SYSTEM;
use crate::engine::{Engine, missing};
use crate::harness::lab::underlay;
use crate::harness::mesh::{Authority, Endpoint, Node, Status, TRUST_DOMAIN};
use crate::harness::wait;
use crate::mesh::{AUDIENCE, Mesh};
use crate::pod::Pod;
use crate::support::{SOON, binary, repository};

const BUNDLE: &str = "/api/v1/namespaces/handfast-system/configmaps/handfast-bundle";

/// A manifest's object, by kind and name.
fn object(manifests: &str, kind: &str, name: &str) -> Value {
    let objects =
        serde_norway::Deserializer::from_str(manifests).map(|one| Value::deserialize(one).unwrap());
    let found = objects
        .into_iter()
        .find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// What Helm makes of the hooks; they are not among the plain manifests.
fn hooks() -> Option<String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let home =
        || std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let helm = cache.unwrap_or_else(home).join("handfast/tools/bin/helm");
    let made = Command::new(helm)
        .args([
            "template",
            "handfast",
            "--namespace",
            SYSTEM,
            "--show-only",
            "templates/detach.yaml",
        ])
        .args([
            "--set",
            "trustDomain=example.org",
            "--set",
            "prefixRanges={10.77.0.0/16}",
        ])
        .args(["--set", "image.repository=handfast"])
        .arg(repository("deploy/helm/handfast"))
        .output();
    made.ok()
        .filter(|made| made.status.success())
        .map(|made| String::from_utf8(made.stdout).unwrap())
}

#[test]
fn the_manifests_containers_join_a_node_run_its_agent_and_detach_it() {
    const TEST: &str = "the_manifests_containers";
    let (hooks, lacks) = (hooks(), missing());
    let (Some(hooks), None) = (&hooks, &lacks) else {
        let why = lacks.unwrap_or_else(|| "no helm".to_owned());
        eprintln!("skipped: {TEST}: {why} (scripts/setup.sh test)");
        return;
    };
    let mesh = Mesh::start_with(TEST, |config| {
        config["bundle"] = json!({"namespace": SYSTEM, "name": "handfast-bundle"});
    });
    let Some(mesh) = mesh else { return };
    let node = Node::create(&mesh.lab, binary(), 1).unwrap();
    let addresses = underlay(1).map(|address| address.to_string());
    mesh.cluster
        .node("n1", &["10.77.1.0/24".to_owned()], &addresses)
        .unwrap();
    mesh.cluster
        .namespace("shop", &json!({}), &["web"])
        .unwrap();

    // What a kubelet puts into the volumes.
    let dir = &node.host.dir;
    let mut engine = Engine::new(&mesh.lab, node.host.ns.name(), &dir.join("containers")).unwrap();
    engine.host_path("data", &node.data_dir()).unwrap();
    engine.host_path("run", &node.run_dir()).unwrap();
    engine.host_path("bpf", node.bpf_dir()).unwrap();
    engine
        .host_path("cgroup", "/sys/fs/cgroup".as_ref())
        .unwrap();
    engine.host_path("netns", "/run/netns".as_ref()).unwrap();
    let (conf, bin) = (dir.join("net.d"), dir.join("bin"));
    engine.host_path("cni-conf", &conf).unwrap();
    engine.host_path("cni-bin", &bin).unwrap();
    let list = conf.join("10-pods.conflist");
    let theirs = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]});
    std::fs::write(&list, theirs.to_string()).unwrap();
    mesh.token(&node, AUDIENCE).unwrap();
    let token = dir.join("token-volume");
    engine.host_path("token", &token).unwrap();
    std::fs::rename(dir.join("token"), token.join("token")).unwrap();
    let bundle = dir.join("bundle-volume");
    engine.host_path("bundle", &bundle).unwrap();
    let published = wait::until("the bundle", SOON, || {
        let (code, object) = mesh.cluster.ask("GET", BUNDLE, None)?;
        Ok((code == 200).then_some(object))
    });
    for (name, text) in published.unwrap()["data"].as_object().unwrap() {
        std::fs::write(bundle.join(name), text.as_str().unwrap()).unwrap();
    }
    engine.fields.insert("spec.nodeName", "n1".to_owned());
    engine.fields.insert("status.hostIP", addresses[0].clone());
    let ca = Authority::address();
    let ca = ca.rsplit_once(':').unwrap().0;
    engine.hosts = format!("{ca} handfast-ca.{SYSTEM}.svc\n");

    // A node's pod: what is set before use is set.
    let manifests = std::fs::read_to_string(repository("deploy/kubernetes/handfast.yaml")).unwrap();
    let set = |word: &str| {
        let domain = word.starts_with("--trust-domain=");
        domain.then(|| format!("--trust-domain={TRUST_DOMAIN}"))
    };
    let daemon = object(&manifests, "DaemonSet", "handfast-agent");
    let pod = &daemon["spec"]["template"]["spec"];
    let join = || engine.start(pod, &pod["initContainers"][0], set).unwrap();
    join().end().unwrap();
    // Each start of the pod joins, and only the first does something.
    join().end().unwrap();
    let mut agent = engine.start(pod, &pod["containers"][0], set).unwrap();
    wait::until("the agent to be ready", SOON, || {
        anyhow::ensure!(agent.running(), "it ended: {}", agent.output());
        let asked = node.cli(&["status", "--output", "json"])?;
        let status: Option<Status> = serde_json::from_str(&asked.stdout).ok();
        Ok(status.filter(|status| status.ca_connected))
    })
    .unwrap();

    // It has put its plugin among the runtime's, and a pod starts by it.
    let installed = wait::until("the plugin", SOON, || {
        let list: Value = serde_json::from_slice(&std::fs::read(&list)?)?;
        let ours = list["plugins"]
            .as_array()
            .and_then(|plugins| plugins.last().cloned());
        Ok(ours.filter(|plugin| plugin["type"] == "handfast-cni"))
    });
    assert_eq!(
        installed.unwrap()["adminSocket"],
        "/run/handfast/admin.sock"
    );
    std::os::unix::fs::symlink(bin.join("handfast-cni"), dir.join("handfast-cni")).unwrap();
    let uid = mesh.cluster.pod("shop", "web-1", "n1", "web", &[]).unwrap();
    let web = Pod::make(&mesh.lab, &node, "shop", "web-1", &uid, 10).unwrap();
    let added = web.cni(&node, "ADD").unwrap();
    assert!(added.ok, "{added:?}\n{}", agent.output());
    let endpoints: Vec<Endpoint> = node.json(&["endpoint", "list"]).unwrap();
    assert!(
        endpoints[0]
            .spiffe_id
            .as_deref()
            .unwrap()
            .ends_with("/ns/shop/sa/web"),
        "{endpoints:?}"
    );

    // The chart goes: agents first, whose kernel goes on; then every node is detached.
    agent.stop().unwrap();
    let pins = node.bpf_dir().join("handfast");
    assert!(pins.join("links").read_dir().unwrap().next().is_some());
    let daemon = object(hooks, "DaemonSet", "handfast-detach");
    let pod = &daemon["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mut detach = engine.start(pod, container, |_| None).unwrap();
    let probe: Vec<&str> = container["readinessProbe"]["exec"]["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    wait::until("the node to be detached", SOON, || {
        anyhow::ensure!(detach.running(), "it ended: {}", detach.output());
        Ok(detach.exec(&probe).then_some(()))
    })
    .unwrap();
    let left = pins.read_dir().map_or(0, |left| left.count());
    assert_eq!(left, 0, "{}", detach.output());
    let list: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    assert_eq!(list["plugins"], json!([{"type": "ptp"}]));
    assert!(!bin.join("handfast-cni").exists());
}
