//! Everything that a CA is given wrongly: a clear error, and nothing changed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Ca, options, setup};
use handfast_ca::authority;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::NewEntry;
use handfast_ca::client::{self, SvidKind, SvidRequest};
use handfast_ca::model::Subject;
use handfast_ca::server::{Options, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn words(error: impl std::fmt::Display, expected: &[&str]) {
    let text = error.to_string();
    for word in expected {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_a_second_use_raises_an_alarm() {
    let mut ca = Ca::start().await;
    let token = ca.token("web1", "10.1.0.0/24").await;
    client::join(&token).await.unwrap();
    words(
        client::join(&token).await.unwrap_err(),
        &["used already", "revoke", "token create --node web1"],
    );
    assert_eq!(ca.admin.status().await.unwrap().alarms, 1);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_an_invented_and_a_foreign_token_are_refused() {
    let mut ca = Ca::start().await;
    let mut order = ca.order("web1", "10.1.0.0/24");
    order.ttl = Duration::from_secs(1);
    let token = ca.admin.create_token(&order).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    words(
        client::join(&token).await.unwrap_err(),
        &["expired at", "token create --node web1"],
    );

    let good = ca.token("web2", "10.2.0.0/24").await;
    let text = good
        .to_text()
        .unwrap()
        .replace(good.secret.expose(), "hfjoin1_invented");
    let invented = handfast_ca::token::JoinToken::parse(&text).unwrap();
    words(
        client::join(&invented).await.unwrap_err(),
        &["has not made it"],
    );

    // Another CA behind the same address: its root is not the token's, so the
    // secret is never said.
    let other = Ca::start().await;
    let mut elsewhere = good.clone();
    elsewhere.ca_address = other.address.to_string();
    words(
        client::join(&elsewhere).await.unwrap_err(),
        &["does not end in the root"],
    );
    client::join(&good).await.unwrap();
    ca.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_one_by_one() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let elsewhere = ca.join("db1", "10.2.0.0/24").await;
    let not_ours = ca.entry("spiffe://example.org/db", Some("db1")).await;
    let agent = ca.connect(&joined).await.unwrap();

    let good = PrivateKey::generate().unwrap().csr().unwrap();
    let mut wrong = good.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let rsa = rcgen::CertificateParams::default()
        .serialize_request(&rsa)
        .unwrap()
        .der()
        .to_vec();
    let proof = |entry_id: &str, csr: &[u8]| SvidRequest {
        kind: SvidKind::Proof {
            entry_id: entry_id.to_owned(),
        },
        csr: csr.to_vec(),
    };
    let batch = vec![
        proof(&entry.id, &wrong),
        proof(&entry.id, &rsa),
        proof(&entry.id, b"garbage"),
        proof("nothing", &good),
        proof(&not_ours.id, &good),
        proof(&entry.id, &good),
    ];
    let answers = agent.issue(batch).await.unwrap();
    let expected = [
        "signature does not match",
        "RSA",
        "not a PKCS#10",
        "no entry",
        "no entry",
    ];
    for (answer, word) in answers.iter().zip(expected) {
        words(answer.as_ref().unwrap_err(), &[word]);
    }
    assert!(answers[5].is_ok());
    drop(elsewhere);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csr_names_nobody() {
    let mut ca = Ca::start().await;
    let joined = ca.join("web1", "10.1.0.0/24").await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let agent = ca.connect(&joined).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    let uri = "spiffe://example.org/admin".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let kind = SvidKind::Workload { entry_id: entry.id };
    let svid = agent
        .issue(vec![SvidRequest { kind, csr }])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let text = String::from_utf8_lossy(&svid.chain[0]).into_owned();
    assert!(text.contains("spiffe://example.org/web"));
    assert!(!text.contains("admin") && !text.contains("evil"));
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_writes_wrongly_changes_nothing() {
    let mut ca = Ca::start().await;
    ca.join("web1", "10.1.0.0/24").await;
    let before = ca.admin.status().await.unwrap().sequence;
    let entry = |id: &str, selector: &str| NewEntry {
        spiffe_id: id.to_owned(),
        selectors: vec![selector.to_owned()],
        ..NewEntry::default()
    };
    let cases = [
        (
            entry("spiffe://example.org/a//b", "netns:a"),
            "empty segments",
        ),
        (entry("spiffe://example.org", "netns:a"), "has a path"),
        (entry("spiffe://other.org/a", "netns:a"), "signs for"),
        (
            entry("spiffe://example.org/handfast/node/web1", "netns:a"),
            "reserved",
        ),
        (entry("spiffe://Example.org/a", "netns:a"), "lower case"),
        (entry("spiffe://example.org/a", "netns"), "KIND:VALUE"),
        (
            NewEntry {
                parent: Some("nobody".to_owned()),
                ..entry("spiffe://example.org/a", "netns:a")
            },
            "no node",
        ),
        (
            NewEntry {
                selectors: vec![],
                ..entry("spiffe://example.org/a", "netns:a")
            },
            "selector",
        ),
        (
            NewEntry {
                labels: [("x".repeat(300), "y".repeat(253))]
                    .into_iter()
                    .chain((0..20).map(|n| (format!("k{n}"), "v".repeat(250))))
                    .collect(),
                ..entry("spiffe://example.org/a", "netns:a")
            },
            "4096 bytes",
        ),
        (
            NewEntry {
                dns_names: vec!["bad name".to_owned()],
                ..entry("spiffe://example.org/a", "netns:a")
            },
            "DNS name",
        ),
        (
            NewEntry {
                ttl: Some(Duration::from_secs(9_999_999)),
                ..entry("spiffe://example.org/a", "netns:a")
            },
            "24 hours",
        ),
    ];
    for (entry, word) in cases {
        words(ca.admin.create_entry(&entry).await.unwrap_err(), &[word]);
    }
    for (node, prefix, word) in [
        ("web2", "192.168.0.0/24", "none of the ranges"),
        ("web2", "10.1.0.0/16", "of node web1"),
        ("web1", "10.9.0.0/24", "has joined with other prefixes"),
    ] {
        let order = ca.order(node, prefix);
        words(ca.admin.create_token(&order).await.unwrap_err(), &[word]);
    }
    let mut order = ca.order("web2", "10.2.0.0/24");
    order.ca_address = "10.2.0.1:7251".to_owned();
    words(
        ca.admin.create_token(&order).await.unwrap_err(),
        &["contains 10.2.0.1"],
    );
    order.ca_address = "nonsense".to_owned();
    words(
        ca.admin.create_token(&order).await.unwrap_err(),
        &["HOST:PORT"],
    );
    let revoked = ca
        .admin
        .revoke(&Subject::Node("nobody".parse().unwrap()), "why")
        .await;
    words(revoked.unwrap_err(), &["no node"]);
    let revoked = ca
        .admin
        .revoke(&Subject::Node("web1".parse().unwrap()), " ")
        .await;
    words(revoked.unwrap_err(), &["say why"]);
    let documents = [
        ("a".to_owned(), "text".to_owned()),
        (String::new(), "text".to_owned()),
    ];
    words(
        ca.admin.put_policies(&documents).await.unwrap_err(),
        &["policy name"],
    );
    words(
        ca.admin
            .delete_policies(&["a".to_owned()], "a test")
            .await
            .unwrap_err(),
        &["no policy"],
    );
    words(
        ca.admin.delete_entry("x", "a test").await.unwrap_err(),
        &["no entry"],
    );

    assert_eq!(ca.admin.status().await.unwrap().sequence, before);
    assert!(ca.admin.policies().await.unwrap().is_empty());
    assert!(ca.admin.entries().await.unwrap().is_empty());
    assert_eq!(ca.admin.nodes().await.unwrap().len(), 1);
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_has_to_sign_changes_nothing() {
    let mut ca = Ca::start().await;
    let before = ca.admin.rotations().await.unwrap();
    words(
        ca.admin.request_issuing("by mistake").await.unwrap_err(),
        &[
            "root's key is in this CA's folder",
            "ca rotate",
            "Nothing was changed",
        ],
    );
    let after = ca.admin.rotations().await.unwrap();
    assert!(after.live.is_empty() && after.ended.is_empty());
    assert_eq!(before.authorities.len(), after.authorities.len());
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_made_twice_is_refused() {
    let mut ca = Ca::start().await;
    let entry = ca.entry("spiffe://example.org/web", None).await;
    let again = NewEntry {
        spiffe_id: entry.spiffe_id.to_string(),
        selectors: vec!["netns:web".to_owned()],
        ..NewEntry::default()
    };
    words(
        ca.admin.create_entry(&again).await.unwrap_err(),
        &["exists already", &entry.id],
    );
    // And deleted once, however often it is named.
    let twice = [entry.id.clone(), entry.id.clone()];
    let deleted = ca.admin.delete_entries(&twice, "mistyped").await.unwrap();
    assert_eq!(deleted.len(), 1);
    assert!(ca.admin.entries().await.unwrap().is_empty());
    ca.stop().await;
}

/// The file of a private key.
fn key(dir: &Path, kind: &str) -> PathBuf {
    let keys = fs::read_dir(dir.join("keys")).unwrap();
    let mut found = keys.map(|file| file.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(kind)
    });
    found.next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_is_made_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    authority::init(&setup(dir.clone())).await.unwrap();
    let root = key(&dir, "root");
    let before = fs::read(&root).unwrap();
    words(
        authority::init(&setup(dir.clone())).await.unwrap_err(),
        &["holds a CA already"],
    );
    assert_eq!(fs::read(&root).unwrap(), before);
    for (path, mode) in [
        (dir.clone(), 0o700),
        (dir.join("keys"), 0o700),
        (root, 0o600),
        (key(&dir, "issuing"), 0o600),
        (key(&dir, "jwt"), 0o600),
        (dir.join("registry.sqlite"), 0o600),
    ] {
        let found = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{}", path.display());
    }

    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "mine").unwrap();
    words(
        authority::init(&setup(full.clone())).await.unwrap_err(),
        &["not empty"],
    );
    let mut range = setup(folder.path().join("other"));
    range.prefix_ranges = vec!["10.0.0.1/8".parse().unwrap()];
    words(
        authority::init(&range).await.unwrap_err(),
        &["prefix range"],
    );
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "no drafts are left: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_whose_files_are_missing_says_which_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    authority::init(&setup(dir.clone())).await.unwrap();
    let refusal = |options: Options| async move {
        let refused = Server::bind(&options).await;
        refused.err().expect("refused")
    };
    for file in [dir.join("registry.sqlite"), key(&dir, "issuing")] {
        let away = folder.path().join("away");
        fs::rename(&file, &away).unwrap();
        let shown = file.display().to_string();
        words(
            refusal(options(&folder, 0)).await,
            &[&shown, "missing", "ca restore"],
        );
        assert!(!file.exists(), "nothing is made in its place");
        fs::rename(&away, &file).unwrap();
    }
    let mut nowhere = options(&folder, 0);
    nowhere.syslog = Some(folder.path().join("no-collector"));
    words(refusal(nowhere).await, &["syslog", "no-collector"]);
    let mut plain = options(&folder, 0);
    plain.syslog = Some(dir.join("ca.json"));
    words(refusal(plain).await, &["--syslog", "no socket"]);
    let mut without = options(&folder, 0);
    without.federation.web_roots = Some(folder.path().join("no-roots.pem"));
    words(refusal(without).await, &["--web-roots", "no-roots.pem"]);
    let mut empty = options(&folder, 0);
    empty.federation.web_roots = Some(dir.join("ca.json"));
    words(refusal(empty).await, &["--web-roots", "no certificate"]);
    drop(Server::bind(&options(&folder, 0)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_open_missing_or_not_ours_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let options = options(&folder, 0);
    let refusal = || async { Server::bind(&options).await.err().expect("refused") };
    words(refusal().await, &["does not exist", "ca init"]);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    words(refusal().await, &["not a handfast CA's"]);
    fs::remove_dir(&dir).unwrap();

    authority::init(&setup(dir.clone())).await.unwrap();
    let mode =
        |name: &str, mode| fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode));
    mode("", 0o755).unwrap();
    words(refusal().await, &["reached by others", "chmod"]);
    mode("", 0o700).unwrap();
    let root = key(&dir, "root");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o640)).unwrap();
    words(refusal().await, &["keys/root-", "reached by others"]);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
        words(refusal().await, &["belongs to uid 12345"]);
        std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    }
    let server = Server::bind(&options).await.unwrap();
    words(refusal().await, &["is in use"]);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let ca = Ca::start().await;
    let folder = tempfile::tempdir().unwrap();
    authority::init(&setup(folder.path().join("ca")))
        .await
        .unwrap();
    let mut options = options(&folder, 0);
    options.listen = ca.address;
    let refused = Server::bind(&options).await.err().unwrap();
    words(
        refused,
        &[&ca.address.to_string(), "another program listens there"],
    );
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_does_not_listen_where_a_tunnel_leads() {
    let mut ca = Ca::start().await;
    let mut order = ca.order("web1", "10.1.0.0/24");
    ca.admin.create_token(&order).await.unwrap();
    order.node = "web2".parse().unwrap();
    order.prefixes = vec![];
    order.ca_address = "10.1.0.7:7251".to_owned();
    words(
        ca.admin.create_token(&order).await.unwrap_err(),
        &["lies in the prefix 10.1.0.0/24"],
    );
    let folder = ca.stop().await;
    let mut options = options(&folder, 0);
    options.listen = "10.1.0.1:7251".parse().unwrap();
    words(
        Server::bind(&options).await.err().unwrap(),
        &["lies in the prefix", "listen on an address outside"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_and_left_alone() {
    let ca = Ca::start().await;
    let store = ca.store();
    let folder = ca.stop().await;
    let good = fs::read(&store).unwrap();
    let mut torn = good.clone();
    for byte in &mut torn[4096..12288] {
        *byte = 0xaa;
    }
    for bad in [
        b"not a database, but long enough to look like one".to_vec(),
        torn,
    ] {
        fs::write(&store, &bad).unwrap();
        let refused = Server::bind(&options(&folder, 0)).await.err().unwrap();
        words(refused, &["damaged", "registry.sqlite", "backup"]);
        assert_eq!(
            fs::read(&store).unwrap(),
            bad,
            "nothing is repaired by guessing"
        );
    }
    fs::write(&store, &good).unwrap();
    Ca::serve(folder, 0).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_may_only_join() {
    let ca = Ca::start().await;
    // Garbage, and a plain HTTP client.
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &[0xff; 4096],
        &[22, 3, 1, 0xff, 0xff],
    ] {
        let mut tcp = tokio::net::TcpStream::connect(ca.address).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), tcp.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer.len() < 64, "{answer:?}");
    }
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_ca_is_not_let_in() {
    let mut ca = Ca::start().await;
    let mut other = Ca::start().await;
    let ours = ca.join("web1", "10.1.0.0/24").await;
    let mut stranger = other.join("web1", "10.1.0.0/24").await;
    // The stranger knows our root, but our CA does not know his.
    stranger.bundle = ours.bundle.clone();
    words(
        ca.connect(&stranger).await.unwrap_err(),
        &["does not know who signed"],
    );
    // And the other way round: whoever is not our CA is not believed.
    let error = other.connect(&ours).await.unwrap_err();
    words(error, &["no valid path to the trust bundle"]);
    ca.stop().await;
    other.stop().await;
}
