//! The CA's server and its store are lost, its root is kept offline: a CA is made from a backup, and fifty agents come back
//! to it by themselves.

#[path = "../../../identity-ca/tests/common/offline.rs"]
mod offline;

use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_ca::backup::{Restore, Writer, restore};
use handfast_ca::client::admin::TokenRequest;
use handfast_ca::model::Subject;

use super::world::{Ca, LONG, Workload, entry, ids};

const NODES: usize = 50;
/// The one that is revoked after the backup was taken.
const STOLEN: usize = 7;

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
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let root = offline::init(folder.path(), offline::LIFE).await;
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
    offline::sign_request(&dir, &root, offline::LIFE).await;
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
