//! Nothing here is the test's but the workload: a CA, an agent that attests its callers by their process, and a
//! rotation of the CA's root with every step confirmed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_agent::identity::{NodeStore, Standalone};
use handfast_agent::workload_api::{Endpoint, Limits, serve};
use handfast_ca::bundle::sha256;
use handfast_ca::client::rotation::NewRotation;
use handfast_ca::model::Subject;
use handfast_ca::rotation::{Stage, What};
use serde_json::Value;
use tempfile::TempDir;

use crate::python::{check_report, hex, requests};
use crate::script::Script;
use crate::support::Ca;

/// Longer than a rotation takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// An agent with the identities `web` and `api` for every process of this user.
pub struct Agent {
    folder: TempDir,
    agent: Standalone,
    endpoint: Endpoint,
}

impl Agent {
    pub async fn start(ca: &mut Ca) -> Self {
        // The node that `Ca` joins for other tests has no agent that would confirm anything.
        let node = Subject::Node("web1".parse().unwrap());
        ca.admin.revoke(&node, "has no agent").await.unwrap();
        ca.entry("spiffe://example.org/web").await;
        ca.entry("spiffe://example.org/api").await;
        let folder = tempfile::tempdir().unwrap();
        let token = ca.token("web2").await;
        let store = NodeStore::create(&folder.path().join("agent")).unwrap();
        let joined = handfast_ca::client::join(&token).await.unwrap();
        store.save_joined(&token.ca_address, None, &joined).unwrap();
        Self::resume(folder)
    }

    fn resume(folder: TempDir) -> Self {
        let store = NodeStore::open(&folder.path().join("agent")).unwrap();
        let agent = Standalone::start(store, None).unwrap();
        let path = folder.path().join("run/agent.sock");
        let source = Arc::new(agent.workloads().clone());
        let endpoint = serve(&path, source, Limits::default()).unwrap();
        Self {
            folder,
            agent,
            endpoint,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.endpoint.path().to_owned()
    }

    pub async fn stop(self) {
        self.endpoint.stop().await;
        drop((self.agent, self.folder));
    }
}

/// Rotates the root to the end; the new bundle's fingerprints.
async fn rotate(ca: &mut Ca) -> BTreeSet<String> {
    let order = NewRotation {
        what: What::Root,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    };
    let rotation = ca.admin.rotate(order).await.unwrap();
    let begun = Instant::now();
    loop {
        let status = ca.admin.rotations().await.unwrap();
        if let Some(ended) = status.ended.iter().find(|ended| ended.id == rotation.id) {
            assert_eq!(ended.stage, "revoked");
            break;
        }
        assert!(begun.elapsed() < LONG, "{:#?}", status.live);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    roots(ca).await
}

async fn roots(ca: &mut Ca) -> BTreeSet<String> {
    let bundle = ca.admin.bundle().await.unwrap();
    bundle.roots().map(|root| hex(&sha256(root))).collect()
}

fn roots_in(context: &Value) -> BTreeSet<String> {
    let roots = context["roots"]
        .as_array()
        .unwrap_or_else(|| panic!("{context}"));
    roots
        .iter()
        .map(|root| root.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_of_a_real_agent_follows_a_real_rotation() {
    let mut ca = Ca::start("example.org").await;
    let agent = Agent::start(&mut ca).await;
    let path = agent.path();
    let Some(mut script) = Script::start("agent", "workload_api.py", &[path.to_str().unwrap()])
    else {
        return;
    };
    assert_eq!(script.hear().await, "five calls");
    assert_eq!(script.hear().await, "every authority");
    let before = script.hear().await;
    let old = roots(&mut ca).await;
    assert_eq!(roots_in(&before), old);
    let new = rotate(&mut ca).await;
    assert!(new.is_disjoint(&old));
    let mut leaves = BTreeSet::from([before["leaf"].to_string()]);
    let mut both = false;
    loop {
        let context = script.hear().await;
        let roots = roots_in(&context);
        both |= roots.is_superset(&old) && roots.is_superset(&new);
        leaves.insert(context["leaf"].to_string());
        if roots == new {
            assert!(both, "the old and the new root were there together");
            assert!(leaves.len() >= 2, "the SVID moved under the new root");
            break;
        }
    }
    script.tell("end");
    assert_eq!(script.hear().await, "done");
    script.finish();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_of_a_real_agent_loses_no_request_in_a_real_rotation() {
    let mut ca = Ca::start("example.org").await;
    let agent = Agent::start(&mut ca).await;
    let path = agent.path();
    let folder = agent.folder.path().to_owned();
    let arguments = [path.to_str().unwrap(), folder.to_str().unwrap(), "stream"];
    let Some(mut script) = Script::start("agent", "envoy.py", &arguments) else {
        return;
    };
    assert_eq!(script.hear().await, "running");
    let old = roots(&mut ca).await;
    requests(&mut script, 20).await;
    let new = rotate(&mut ca).await;
    assert!(new.is_disjoint(&old));
    let during = requests(&mut script, 0).await;
    // What the end of the rotation brought is in force by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    requests(&mut script, during + 40).await;
    script.tell("stop");
    let report = script.hear().await;
    script.finish();
    check_report(&report);
    drop(agent);
}
