//! The manifests' own containers, run by a container runtime as they say: a node joins, its agent works, and before the
//! chart goes the node is detached.

use std::net::SocketAddr;
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{PORT, SYSTEM};
use crate::engine::{Engine, missing};
use crate::harness::lab::underlay;
use crate::harness::mesh::{Authority, Endpoint, Node, Status, TRUST_DOMAIN};
use crate::harness::process::command;
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

/// What is set before use, set.
fn set(word: &str) -> Option<String> {
    let domain = word.starts_with("--trust-domain=");
    domain.then(|| format!("--trust-domain={TRUST_DOMAIN}"))
}

fn manifests() -> String {
    std::fs::read_to_string(repository("deploy/kubernetes/handfast.yaml")).unwrap()
}

#[test]
fn the_manifests_ca_serves_without_any_capability_and_finds_its_cluster() {
    const TEST: &str = "the_manifests_ca_serves";
    if let Some(missing) = missing() {
        eprintln!("skipped: {TEST}: {missing}");
        return;
    }
    let Some(mut mesh) = Mesh::start(TEST) else {
        return;
    };
    // Its place, network and ports are free.
    mesh.authority.server().unwrap().interrupt(SOON).unwrap();
    let host = mesh.authority.host();
    let dir = host.dir.join("pod");
    let mut engine = Engine::new(&mesh.lab, host.ns.name(), &dir).unwrap();
    for volume in ["data", "run", "config", "account"] {
        engine.host_path(volume, &dir.join(volume)).unwrap();
    }
    let manifests = manifests();
    let config = object(&manifests, "ConfigMap", "handfast-ca");
    for (name, text) in config["data"].as_object().unwrap() {
        std::fs::write(dir.join("config").join(name), text.as_str().unwrap()).unwrap();
    }
    let kubeconfig = mesh.cluster.kubeconfig("handfast-ca").unwrap();
    let kubeconfig: Value = serde_json::from_slice(&std::fs::read(kubeconfig).unwrap()).unwrap();
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    let account = dir.join("account");
    let authority = cluster["certificate-authority"].as_str().unwrap();
    std::fs::copy(authority, account.join("ca.crt")).unwrap();
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    std::fs::write(account.join("token"), token).unwrap();
    std::fs::write(account.join("namespace"), SYSTEM).unwrap();
    engine.account = Some((account, SocketAddr::from(([127, 0, 0, 1], PORT))));
    let addresses = &host.addresses;
    engine
        .fields
        .insert("metadata.name", "handfast-ca-0".to_owned());
    engine
        .fields
        .insert("status.hostIP", addresses[0].to_string());

    let stateful = object(&manifests, "StatefulSet", "handfast-ca");
    let pod = &stateful["spec"]["template"]["spec"];
    let init = || engine.start(pod, &pod["initContainers"][0], set).unwrap();
    init().end().unwrap();
    init().end().unwrap();
    let container = &pod["containers"][0];
    let mut server = engine.start(pod, container, set).unwrap();
    let probe = &container["readinessProbe"]["httpGet"];
    let [path, at] = ["path", "host"].map(|field| probe[field].as_str().unwrap());
    let url = format!("http://{at}:{}{path}", probe["port"]);
    wait::until("the CA to be ready", SOON, || {
        anyhow::ensure!(server.running(), "it ended: {}", server.output());
        let asked = host.place.run(
            &mut command("curl", &["-fsS", "--noproxy", "*", &url]),
            SOON,
        )?;
        Ok((asked.code() == 0).then_some(()))
    })
    .unwrap();
    // As docs/kubernetes.md has it.
    assert!(
        server.exec(&["handfast", "node", "list"]),
        "{}",
        server.output()
    );
    // By the rights of its service account it leads, and publishes its bundle.
    let published = wait::until("the bundle", SOON, || {
        let (code, object) = mesh.cluster.ask("GET", BUNDLE, None)?;
        Ok((code == 200).then_some(object))
    });
    let published = published.unwrap_or_else(|error| panic!("{error}: {}", server.output()));
    assert!(published["data"]["bundle.json"].is_string(), "{published}");
    server.stop().unwrap();
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

    let manifests = manifests();
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
