//! The CA's server and its folder are gone, its root is kept offline, and nobody visits a node.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::path::Path;

use common::{Ca, offline};
use futures::future::join_all;
use handfast_ca::backup::{Restore, Writer, examine, restore, write_keys};
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::{self, AgentClient, Joined, SvidKind, SvidRequest};
use handfast_ca::deny::DenyList;
use handfast_ca::model::Subject;
use handfast_ca::verify::Verifier;

const NODES: usize = 50;

/// What an agent keeps on its disk.
struct Node {
    joined: Joined,
    deny: DenyList,
}

impl Node {
    async fn connect(&self, ca: &Ca) -> Result<AgentClient, handfast_ca::Error> {
        let verifier = Verifier::new(self.joined.bundle.clone(), self.deny.clone());
        let address = ca.address.to_string();
        AgentClient::connect(&address, &verifier, &self.joined.identity).await
    }

    /// Takes in the newest deny list of a CA that is well.
    async fn listen(&mut self, ca: &Ca) {
        let client = self.connect(ca).await.unwrap();
        let mut updates = client.updates().await.unwrap();
        let first = updates.next().await.unwrap().unwrap();
        self.deny = first.deny_list.unwrap();
    }
}

fn proof(entry: &str) -> SvidRequest {
    SvidRequest {
        kind: SvidKind::Proof {
            entry_id: entry.to_owned(),
        },
        csr: PrivateKey::generate().unwrap().csr().unwrap(),
    }
}

fn order(backup: &Path, dir: &Path) -> Restore {
    Restore {
        backup: backup.to_owned(),
        dir: dir.to_owned(),
        server: None,
        passphrase_file: None,
        root_key: None,
    }
}

async fn back_up(ca: &mut Ca, to: &Path) {
    let mut writer = Writer::create(to).unwrap();
    ca.admin.backup(&mut writer, false).await.unwrap();
    writer.finish().unwrap();
}

#[tokio::test]
async fn fifty_agents_come_back_to_a_restored_ca_and_nothing_that_was_taken_away_does() {
    let folder = tempfile::tempdir().unwrap();
    let root = offline::init(folder.path(), offline::LIFE).await;
    let mut ca = Ca::serve(folder, 0).await;
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let joined = ca
            .join(&format!("n{number}"), &format!("10.1.{number}.0/24"))
            .await;
        nodes.push(Node {
            joined,
            deny: DenyList::empty(),
        });
    }
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let spent_later = ca.token("late", "10.2.0.0/24").await;
    let never_spent = ca.token("later", "10.3.0.0/24").await;
    let backup = ca.folder.path().join("backup");
    back_up(&mut ca, &backup).await;
    assert!(!fs::read_to_string(&backup).unwrap().contains("PRIVATE KEY"));

    // After the backup: a node is revoked, a token is spent.
    let lost: Subject = Subject::Node("n7".parse().unwrap());
    ca.admin.revoke(&lost, "stolen").await.unwrap();
    client::join(&spent_later).await.unwrap();
    for number in (0..NODES).filter(|number| *number != 7) {
        nodes[number].listen(&ca).await;
    }
    let before = nodes[0].deny.number();

    let port = ca.address.port();
    let folder = ca.stop().await;
    let dir = folder.path().join("ca");
    fs::remove_dir_all(&dir).unwrap();
    let restored = restore(&order(&backup, &dir)).await.unwrap();
    assert!(restored.waits_for_root);
    assert_eq!(restored.nodes as usize, NODES);
    offline::sign_request(&dir, &root, offline::LIFE).await;
    let mut ca = Ca::serve(folder, port).await;

    // It signs nothing and says why.
    let client = nodes[0].connect(&ca).await.unwrap();
    let refused = client.issue(vec![proof(&entry.id)]).await.unwrap_err();
    assert!(
        refused.to_string().contains("restored from a backup"),
        "{refused}"
    );
    let thief = nodes[7].connect(&ca).await.unwrap();
    assert!(thief.issue(vec![proof(&entry.id)]).await.is_err());
    assert!(
        ca.admin
            .status()
            .await
            .unwrap()
            .recovery
            .contains("0 of 50")
    );
    let mut updates = client.updates().await.unwrap();
    let first = updates.next().await.unwrap().unwrap();
    assert!(first.recovering && first.deny_list.is_none());

    // What is revoked now counts, whatever older lists say.
    let now: Subject = Subject::Node("n8".parse().unwrap());
    ca.admin.revoke(&now, "seen by eye").await.unwrap();

    // More than half of those that count have to show what they know; saying it twice is no second voice.
    let out = [7, 8];
    let honest = (0..NODES).filter(|number| !out.contains(number));
    for (heard, number) in honest.enumerate() {
        let node = &nodes[number];
        let client = node.connect(&ca).await.unwrap();
        for _ in 0..2 {
            let left = client.offer_deny_list(&node.deny).await.unwrap();
            let enough = heard + 1 > (NODES - out.len()) / 2;
            assert_eq!(left.is_none(), enough, "{number}: {left:?}");
        }
    }
    assert!(ca.admin.status().await.unwrap().recovery.is_empty());

    let answers = join_all(nodes.iter().map(|node| {
        let (ca, entry) = (&ca, &entry.id);
        async move { node.connect(ca).await?.issue(vec![proof(entry)]).await }
    }))
    .await;
    for (number, answer) in answers.into_iter().enumerate() {
        let issued = answer.is_ok_and(|mut answers| answers.remove(0).is_ok());
        assert_eq!(issued, !out.contains(&number), "node {number}");
    }
    nodes[0].listen(&ca).await;
    assert!(nodes[0].deny.denies(&lost) && nodes[0].deny.denies(&now));
    assert!(nodes[0].deny.number() > before, "numbers do not go back");
    for token in [&spent_later, &never_spent] {
        let refused = client::join(token).await.unwrap_err().to_string();
        assert!(refused.contains("join token refused"), "{refused}");
    }
}

#[tokio::test]
async fn with_its_keys_a_ca_goes_on_as_if_nothing_had_been() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let passphrase = ca.folder.path().join("passphrase");
    fs::write(&passphrase, "a long enough passphrase\n").unwrap();
    std::os::unix::fs::chown(&passphrase, None, None).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&passphrase, mode).unwrap();
    let backup = ca.folder.path().join("backup");
    let mut writer = Writer::create(&backup).unwrap();
    ca.admin.backup(&mut writer, true).await.unwrap();
    let keys = write_keys(&mut writer, &ca.folder.path().join("ca"), &passphrase).unwrap();
    writer.finish().unwrap();
    assert_eq!(keys, 3, "root, issuing CA, JWT key");
    let text = fs::read_to_string(&backup).unwrap();
    assert!(!text.contains("BEGIN PRIVATE KEY"));

    let folder = ca.stop().await;
    let dir = folder.path().join("ca");
    fs::remove_dir_all(&dir).unwrap();
    let locked = restore(&order(&backup, &dir)).await.unwrap_err();
    assert!(locked.to_string().contains("passphrase"), "{locked}");
    assert!(!dir.exists(), "nothing is left of a restore that failed");
    let mut order = order(&backup, &dir);
    order.passphrase_file = Some(passphrase.clone());
    assert!(!restore(&order).await.unwrap().waits_for_root);

    // The root's key is sealed in the new folder.
    let mut options = common::options(&folder, 0);
    options.passphrase_file = Some(passphrase);
    let server = handfast_ca::server::Server::bind(&options).await.unwrap();
    let address = server.local_addr().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { drop(stopped.await) }));
    let verifier = Verifier::new(joined.bundle.clone(), DenyList::empty());
    let client = AgentClient::connect(&address, &verifier, &joined.identity)
        .await
        .unwrap();
    let mut admin = handfast_ca::client::admin::Admin::connect(&options.admin_socket)
        .await
        .unwrap();
    assert!(
        admin
            .finish_recovery("only one node, seen by eye")
            .await
            .unwrap()
    );
    let mut answers = client.issue(vec![proof(&entry.id)]).await.unwrap();
    assert!(answers.remove(0).is_ok());
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_backup_that_was_cut_off_or_changed_restores_nothing() {
    let mut ca = Ca::start().await;
    ca.entry("spiffe://example.org/web", None).await;
    let backup = ca.folder.path().join("backup");
    back_up(&mut ca, &backup).await;
    let held = examine(&backup).unwrap();
    assert_eq!(
        (held.trust_domain.as_str(), held.rows["entries"]),
        ("example.org", 1)
    );
    assert!(held.keys.is_empty());
    let whole = fs::read(&backup).unwrap();
    let dir = ca.folder.path().join("restored");
    let cut = whole[..whole.len() / 2].to_vec();
    let text = String::from_utf8(whole.clone()).unwrap();
    let changed = text
        .replacen("example.org/web", "example.org/wub", 1)
        .into_bytes();
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let without_end = whole[..end].to_vec();
    let garbage = b"not a backup\n".to_vec();
    let longer = [whole.as_slice(), b"{}\n"].concat();
    for bad in [cut, changed, without_end, garbage, longer, Vec::new()] {
        fs::write(&backup, &bad).unwrap();
        let error = restore(&order(&backup, &dir)).await.unwrap_err();
        assert!(
            matches!(error, handfast_ca::Error::Backup { .. }),
            "{error}"
        );
        assert!(examine(&backup).is_err());
        assert!(!dir.exists());
    }
    // And one that is there already is not overwritten.
    assert!(Writer::create(&backup).is_err());
}
