//! What a workload asks of the agent for itself: its SVIDs, over the Workload API's socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::mesh::{Node, spiffe_id};
use crate::harness::process::{Finished, Place, command};
use crate::support::{self, Mesh, SOON, binary};

/// `handfast svid fetch`, in the place of `from`.
fn fetch(node: &Node, from: &Place, words: &[&str]) -> Finished {
    let socket = format!("unix://{}", node.run_dir().join("agent.sock").display());
    let mut all = vec!["svid", "fetch"];
    all.extend(words);
    all.extend(["--socket", &socket, "--output", "json"]);
    from.run(&mut command(binary(), &all), SOON).unwrap()
}

fn said(finished: Finished) -> Value {
    let finished = finished.success("svid fetch").unwrap();
    serde_json::from_str(&finished.stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_workload_fetches_its_svids_also_from_an_agent_that_was_killed_and_is_back() {
    let Some(_turn) = support::turn("workload API") else {
        return;
    };
    let mut mesh = Mesh::start();
    let web = mesh.workload(&mesh.n1, "web", &["app=web"], 2);
    let folder = mesh.lab.dir().join("fetched");
    let write = folder.to_str().unwrap();

    let svids = said(fetch(&mesh.n1, &web.place, &["x509", "--write", write]));
    assert_eq!(svids[0]["spiffe_id"], spiffe_id("web"));
    assert_eq!(svids.as_array().unwrap().len(), 1);
    assert!(svids[0].get("key").is_none(), "keys are not shown");
    for name in ["svid.0.pem", "svid.0.key", "bundle.0.pem"] {
        assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
    }
    let token = said(fetch(&mesh.n1, &web.place, &["jwt", "--audience", "db"]));
    assert_eq!(token[0]["spiffe_id"], spiffe_id("web"));
    assert_eq!(token[0]["token"].as_str().unwrap().split('.').count(), 3);

    // Everybody may ask; only root may administer.
    let run_dir = mesh.n1.run_dir();
    assert_eq!(mode(&run_dir), 0o755);
    assert_eq!(mode(&run_dir.join("agent.sock")), 0o666);
    assert_eq!(mode(&run_dir.join("admin.sock")), 0o600);

    // The node itself is not that workload, and neither is one without an entry.
    let stranger = mesh.lab.workload("stranger").unwrap();
    for place in [&mesh.n1.host.place, &stranger.place] {
        support::fails(
            &fetch(&mesh.n1, place, &["x509"]),
            &["no registration entry"],
        );
    }

    mesh.n1.agent().unwrap().kill();
    mesh.n1.run().unwrap();
    let again = said(fetch(&mesh.n1, &web.place, &["x509"]));
    assert_eq!(again[0]["spiffe_id"], spiffe_id("web"));
}
