//! The plugin's place in a node's CNI configuration, whoever writes there.

use serde_json::{Value, json};

use crate::harness::wait;
use crate::mesh::Mesh;
use crate::support::SOON;

#[test]
fn the_plugin_stays_last_in_the_list_whoever_writes_it_and_leaves_with_the_agent() {
    let Some(mut mesh) = Mesh::start("the_plugin_stays_last") else {
        return;
    };
    let folder = mesh.lab.dir().join("cni");
    let (conf, bin) = (folder.join("net.d"), folder.join("bin"));
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    let list = conf.join("10-pods.conflist");
    let written = |plugins: Value| {
        let text = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins});
        // As a CNI's own installer does.
        let fresh = folder.join("fresh");
        std::fs::write(&fresh, text.to_string()).unwrap();
        std::fs::rename(&fresh, &list).unwrap();
    };
    let types = || -> Vec<String> {
        let list: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
        let plugins = list["plugins"].as_array().unwrap().iter();
        let types = plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned());
        types.collect()
    };
    let bridge = json!({"type": "bridge", "ipam": {"type": "host-local"}});
    written(json!([bridge]));

    mesh.node(1).unwrap();
    let node = &mut mesh.nodes[0];
    node.agent().unwrap().interrupt(SOON).unwrap();
    let words = [&conf, &bin].map(|path| path.display().to_string());
    node.also(&["--cni-conf-dir", &words[0], "--cni-bin-dir", &words[1]]);
    node.run().unwrap();
    let until = |wanted: &[&str]| {
        wait::until("the list to be as it should", SOON, || {
            Ok((types() == wanted).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}", types()));
    };
    until(&["bridge", "handfast-cni"]);
    let plugin = bin.join("handfast-cni");
    assert!(plugin.is_file());

    // A CNI that is upgraded writes its list anew.
    written(json!([bridge, {"type": "portmap"}]));
    until(&["bridge", "portmap", "handfast-cni"]);
    // Another chained plugin puts itself behind.
    let ours = json!({"type": "handfast-cni", "adminSocket": mesh.nodes[0].socket(), "identityTimeoutSeconds": 3});
    written(json!([bridge, ours, {"type": "bandwidth"}]));
    until(&["bridge", "bandwidth", "handfast-cni"]);
    let text = std::fs::read_to_string(&list).unwrap();
    assert!(text.contains("\"identityTimeoutSeconds\": 3"), "{text}");

    // What cannot be read is left alone, and named; it heals when it can be.
    std::fs::write(&list, "{").unwrap();
    let node = &mesh.nodes[0];
    wait::until("the alarm", SOON, || {
        let status: Value = node.json(&["status"])?;
        Ok(status
            .to_string()
            .contains("pods start ungated")
            .then_some(()))
    })
    .unwrap();
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "{");
    written(json!([bridge]));
    until(&["bridge", "handfast-cni"]);

    // Whoever detaches a node leaves nothing that would keep pods from starting.
    let mut detach = node.command(&["agent", "detach"]);
    detach
        .arg("--data-dir")
        .arg(node.data_dir())
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--bpf-dir")
        .arg(node.bpf_dir())
        .args(["--cni-conf-dir", &words[0], "--cni-bin-dir", &words[1]]);
    let detached = node.host.place.run(&mut detach, SOON).unwrap();
    detached.success("handfast agent detach").unwrap();
    assert_eq!(types(), ["bridge"]);
    assert!(!plugin.exists());
}
