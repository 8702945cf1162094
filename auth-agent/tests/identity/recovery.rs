//! The CA's server and its store are lost, its root is kept offline: a CA is made from a backup, and fifty agents come back
//! to it by themselves.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_ca::authority::{self, OfflineRoot, RootSource, Setup};
use handfast_ca::backup::{Restore, Writer, restore};
use handfast_ca::client::admin::TokenRequest;
use handfast_ca::model::Subject;
use spiffe::TrustDomain;
use tempfile::TempDir;

use super::world::{Ca, LONG, Workload, entry, ids};

const NODES: usize = 50;
/// The one that is revoked after the backup was taken.
const STOLEN: usize = 7;
const DAY: u64 = 24 * 3600;

/// A CA whose root's key never was on its machine.
async fn under_an_offline_root() -> (Arc<TempDir>, OfflineRoot) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let domain = TrustDomain::new("example.org").unwrap();
    let ranges = vec!["10.0.0.0/8".parse().unwrap()];
    let mut setup = Setup::new(folder.path().join("ca"), domain, ranges);
    let vault = folder.path().join("vault");
    let root = OfflineRoot::create(&vault, &setup.trust_domain, 3650 * DAY, None).unwrap();
    setup.root = RootSource::Offline {
        certificate: vault.join("root.crt"),
    };
    authority::init(&setup).await.unwrap();
    sign_request(&setup.dir, &root).await;
    (folder, root)
}

async fn sign_request(dir: &Path, root: &OfflineRoot) {
    let request = authority::request(dir).await.unwrap();
    let certificate = root.sign(&request, "ca", 90 * DAY).unwrap();
    authority::install(dir, &certificate).await.unwrap();
}

async fn add_entries(ca: &mut Ca, name: &str) {
    let entries: Vec<_> = (0..NODES)
        .map(|number| entry(&format!("{name}/{number}"), &format!("n{number}")))
        .collect();
    let made = ca.admin.import_entries(&entries, false, false).await;
    assert_eq!(made.unwrap().created, NODES as u64);
}

/// Waits until all nodes but the stolen one have applied so much.
async fn applied(ca: &mut Ca, number: u64) {
    let since = Instant::now();
    let stolen = format!("n{STOLEN}");
    loop {
        let nodes = ca.admin.nodes().await.unwrap();
        let joined = nodes.iter().filter(|node| node.joined_at_ms.is_some());
        let mut others = joined.filter(|node| node.name.as_str() != stolen);
        if others.all(|node| node.acknowledged >= number) {
            return;
        }
        assert!(since.elapsed() < 4 * LONG, "not applied everywhere");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_agents_find_back_to_a_restored_ca_without_being_visited() {
    let (folder, root) = under_an_offline_root().await;
    let mut ca = Ca::serve(folder, 0).await;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        nodes.push(ca.join(&format!("n{number}"), number + 1).await);
    }
    add_entries(&mut ca, "before").await;
    let agents: Vec<_> = nodes.iter().map(|node| node.start()).collect();
    let mut workloads = Vec::new();
    for (number, agent) in agents.iter().enumerate() {
        let mut workload = Workload::of(agent).await;
        workload.until_ids(&[&format!("before/{number}")]).await;
        workloads.push(workload);
    }
    let order = TokenRequest {
        node: "late".parse().unwrap(),
        prefixes: vec!["10.200.0.0/16".parse().unwrap()],
        underlay: vec!["192.0.2.200".to_owned()],
        ca_address: ca.address.to_string(),
        ttl: Duration::from_secs(600),
        joining: false,
    };
    let token = ca.admin.create_token(&order).await.unwrap();
    let backup = ca.folder.path().join("backup");
    let mut writer = Writer::create(&backup).unwrap();
    ca.admin.backup(&mut writer, false).await.unwrap();
    writer.finish().unwrap();
    let stolen = Subject::Node(format!("n{STOLEN}").parse().unwrap());
    let revoked = ca.admin.revoke(&stolen, "stolen").await.unwrap();
    applied(&mut ca, revoked).await;

    let (folder, port) = ca.stop().await;
    let dir = folder.path().join("ca");
    std::fs::remove_dir_all(&dir).unwrap();
    let order = Restore {
        backup,
        dir: dir.clone(),
        server: None,
        passphrase_file: None,
        root_key: None,
    };
    assert!(restore(&order).await.unwrap().waits_for_root);
    sign_request(&dir, &root).await;
    let mut ca = Ca::serve(folder, port).await;

    // Nobody does anything but wait.
    let since = Instant::now();
    while !ca.admin.status().await.unwrap().recovery.is_empty() {
        let status = ca.admin.status().await.unwrap();
        assert!(since.elapsed() < 4 * LONG, "{}", status.recovery);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("the CA signs again after {:?}", since.elapsed());
    let (_, denials) = ca.admin.revocations().await.unwrap();
    assert!(denials.iter().any(|denial| denial.subject == stolen));
    let refused = handfast_ca::client::join(&token).await.unwrap_err();
    assert!(refused.to_string().contains("void"), "{refused}");
    add_entries(&mut ca, "after").await;
    for (number, workload) in workloads.iter_mut().enumerate() {
        let wanted =
            ["before", "after"].map(|when| format!("spiffe://example.org/{when}/{number}"));
        if number != STOLEN {
            let all = |state: &_| ids(state).is_some_and(|ids| ids == wanted);
            tokio::time::timeout(4 * LONG, workload.state.wait_for(|state| all(state)))
                .await
                .unwrap_or_else(|_| panic!("n{number} has not come back"))
                .unwrap();
        }
    }
    println!("all agents serve news after {:?}", since.elapsed());
    let known = ids(&workloads[STOLEN].state.borrow()).unwrap_or_default();
    assert!(known.iter().all(|id| !id.contains("after")), "{known:?}");
}
