//! Bundle and deny list on disk: always of one moment, and never of an earlier one than was acknowledged, whenever the
//! agent is killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use handfast_agent::identity::{NodeStore, Renewed, Svids};
use handfast_ca::bundle::TrustBundle;
use handfast_ca::client::AgentClient;
use handfast_ca::deny::DenyList;
use handfast_ca::model::Subject;
use handfast_ca::verify::Verifier;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::world::{Ca, Node, entry};

const DATA: &str = "HANDFAST_TEST_TRUST_DATA";
const MOMENTS: &str = "HANDFAST_TEST_TRUST_MOMENTS";
/// Kills of a writer.
const KILLS: u64 = 25;

/// Lists that the CA signed one after the other, each with a bundle that carries the same number.
async fn moments(ca: &mut Ca, node: &Node, count: usize) -> Vec<Verifier> {
    let trust = NodeStore::open(&node.data).unwrap().trust().unwrap();
    let roots: Vec<Vec<u8>> = trust.bundle().roots().map(|root| root.to_vec()).collect();
    let agent = node.start();
    let mut moments = Vec::new();
    for serial in 1..=count {
        let subject = Subject::Serial(format!("{serial:02x}").parse().unwrap());
        let number = ca.admin.revoke(&subject, "a test").await.unwrap();
        let deny = loop {
            let trust = NodeStore::open(&node.data).unwrap().trust().unwrap();
            if trust.deny_list().number() >= number {
                break trust.deny_list().clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let domain = trust.bundle().trust_domain().clone();
        let bundle = TrustBundle::new(domain, deny.number(), roots.clone()).unwrap();
        moments.push(Verifier::new(bundle, deny));
    }
    drop(agent);
    moments
}

fn write_moments(folder: &Path, moments: &[Verifier]) {
    for (at, moment) in moments.iter().enumerate() {
        let name = |kind: &str| folder.join(format!("{at}.{kind}"));
        std::fs::write(name("bundle"), moment.bundle().to_bytes()).unwrap();
        std::fs::write(name("deny"), moment.deny_list().bytes()).unwrap();
    }
}

fn read_moments(folder: &Path) -> Vec<Verifier> {
    let mut moments = Vec::new();
    while let Ok(bundle) = std::fs::read(folder.join(format!("{}.bundle", moments.len()))) {
        let deny = std::fs::read(folder.join(format!("{}.deny", moments.len()))).unwrap();
        let bundle = TrustBundle::from_bytes(&bundle).unwrap();
        let deny = DenyList::from_bytes(&deny, &bundle).unwrap();
        moments.push(Verifier::new(bundle, deny));
    }
    moments
}

/// Not a test of its own: the writer that the next one kills.
#[tokio::test]
#[ignore = "the next test runs it"]
async fn writer_process() {
    let (Ok(data), Ok(moments)) = (std::env::var(DATA), std::env::var(MOMENTS)) else {
        return;
    };
    let store = NodeStore::open(data.as_ref()).unwrap();
    let moments = read_moments(moments.as_ref());
    let from = store.trust().unwrap().deny_list().number();
    for moment in moments
        .iter()
        .filter(|moment| moment.deny_list().number() > from)
    {
        store.save_trust(moment).unwrap();
        println!("stored {}", moment.deny_list().number());
    }
    println!("all stored");
    std::future::pending::<()>().await;
}

/// The last number that a writer has acknowledged before it was killed.
async fn kill_after(data: &Path, moments: &Path, life: Duration) -> (u64, bool) {
    let mut writer = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "trust::writer_process",
            "--ignored",
            "--nocapture",
        ])
        .env(DATA, data)
        .env(MOMENTS, moments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let (mut last, mut all) = (0, false);
    let reading = async {
        while let Ok(Some(line)) = lines.next_line().await {
            all |= line.contains("all stored");
            if let Some((_, number)) = line.split_once("stored ") {
                last = number.trim().parse().unwrap_or(last);
            }
        }
    };
    let _ = tokio::time::timeout(life, reading).await;
    writer.kill().await.unwrap();
    // What it had said before it died and nobody had read yet.
    while let Ok(Some(line)) = lines.next_line().await {
        all |= line.contains("all stored");
        if let Some((_, number)) = line.split_once("stored ") {
            last = number.trim().parse().unwrap_or(last);
        }
    }
    (last, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_writer_is_killed_bundle_and_list_are_of_one_moment_and_never_go_back() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let moments = moments(&mut ca, &node, 40).await;
    let folder = tempfile::tempdir().unwrap();
    write_moments(folder.path(), &moments);
    let store = NodeStore::open(&node.data).unwrap();
    let first = Verifier::new(moments[0].bundle().clone(), moments[0].deny_list().clone());
    let mut stood = 0;
    for round in 0..KILLS {
        if round == 0 || stood == moments[moments.len() - 1].deny_list().number() {
            // From the beginning, in the layout of earlier versions.
            old_layout(&node.data, &first);
        }
        let life = Duration::from_millis(20 + 7 * round);
        let (acknowledged, _) = kill_after(&node.data, folder.path(), life).await;
        let trust = store.trust().unwrap();
        stood = trust.deny_list().number();
        assert_eq!(trust.bundle().sequence(), stood, "of one moment");
        assert!(stood >= acknowledged, "{stood} after {acknowledged}");
        NodeStore::open(&node.data).unwrap();
        let left: Vec<PathBuf> = std::fs::read_dir(&node.data)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".new-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn old_layout(data: &Path, trust: &Verifier) {
    let _ = std::fs::remove_file(data.join("trust.json"));
    std::fs::write(data.join("bundle"), trust.bundle().to_bytes()).unwrap();
    std::fs::write(data.join("deny-list"), trust.deny_list().bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_kept_is_read_until_there_is_something_newer() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let moments = moments(&mut ca, &node, 2).await;
    let store = NodeStore::open(&node.data).unwrap();
    let number = |store: &NodeStore| store.trust().unwrap().deny_list().number();
    old_layout(&node.data, &moments[0]);
    assert_eq!(number(&store), moments[0].deny_list().number());
    // A node that has never heard of a list.
    std::fs::remove_file(node.data.join("deny-list")).unwrap();
    assert_eq!(number(&store), 0);
    old_layout(&node.data, &moments[0]);
    store.save_trust(&moments[1]).unwrap();
    assert!(!node.data.join("bundle").exists() && !node.data.join("deny-list").exists());
    // Killed before the old ones were removed, or after one of them.
    for old in [&["bundle", "deny-list"][..], &["bundle"], &["deny-list"]] {
        for name in old {
            std::fs::write(node.data.join(name), "of another time").unwrap();
        }
        assert_eq!(number(&store), moments[1].deny_list().number());
        store.save_trust(&moments[1]).unwrap();
        assert!(old.iter().all(|name| !node.data.join(name).exists()));
    }
    // And an agent runs on it.
    let agent = node.start();
    let mut progress = agent.progress();
    progress.wait_for(|now| now.sequence > 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_svid_whose_entry_has_gone_or_changed_meanwhile_is_dropped() {
    let mut ca = Ca::start().await;
    let node = ca.join("web1", 1).await;
    let created = ca.admin.create_entry(&entry("web", "web1")).await.unwrap();
    let store = NodeStore::open(&node.data).unwrap();
    let (identity, verifier) = (store.identity().unwrap(), store.trust().unwrap());
    let address = ca.address.to_string();
    let client = AgentClient::connect(&address, &verifier, &identity);
    let client = client.await.unwrap();
    let now = rustls_pki_types::UnixTime::now().as_secs();
    let known = handfast_agent::identity::KnownEntry::from(&created);
    let mut relabelled = known.clone();
    relabelled.labels = [("tier".to_owned(), "front".to_owned())].into();
    let mut svids = Svids::new(&identity.chain, now + 100_000, now);
    for wanted in [vec![], vec![relabelled], vec![known.clone()]] {
        let mut due = svids.due(now, std::slice::from_ref(&known)).unwrap();
        assert_eq!(due.len(), 1, "asked for at once");
        let (renewal, request) = due.remove(0);
        let svid = client
            .issue(vec![request])
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        let renewed = svids
            .accept(renewal, svid, &verifier, &wanted, now)
            .unwrap();
        if wanted == [known.clone()] {
            assert!(matches!(renewed, Renewed::Proof(_)));
            assert_eq!(svids.proofs().len(), 1);
        } else {
            assert!(matches!(renewed, Renewed::Unwanted(_)));
            assert!(svids.proofs().is_empty());
        }
    }
}
