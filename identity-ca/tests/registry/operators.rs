//! Operators from afar: an SVID, a role, and nothing beyond it.

use std::path::Path;

use handfast_ca::audit::Filter;
use handfast_ca::certificate::PrivateKey;
use handfast_ca::client::admin::Admin;
use handfast_ca::client::operators::Remote;
use handfast_ca::client::{SvidKind, SvidRequest};
use handfast_ca::model::{Role, Subject};

use super::common::Ca;
use super::entries::wanted;

fn pem(label: &str, ders: &[Vec<u8>]) -> String {
    let encode = |der: &Vec<u8>| {
        let text = data_encoding::BASE64.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    };
    ders.iter().map(encode).collect()
}

/// The SVID of an entry, with its key and the bundle, in files.
async fn operator(ca: &mut Ca, folder: &Path, name: &str) -> (String, Remote) {
    let joined = ca
        .join(
            &format!("node-of-{name}"),
            &format!("10.{}.0.0/24", name.len()),
        )
        .await;
    let entry = ca.admin.create_entry(&wanted(name)).await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let request = SvidRequest {
        kind: SvidKind::Workload { entry_id: entry.id },
        csr: key.csr().unwrap(),
    };
    let agent = ca.connect(&joined).await.unwrap();
    let svid = agent.issue(vec![request]).await.unwrap().remove(0).unwrap();
    let chain: Vec<Vec<u8>> = svid.chain.iter().map(|der| der.to_vec()).collect();
    let roots: Vec<Vec<u8>> = joined.bundle.roots().map(|root| root.to_vec()).collect();
    let write = |file: &str, text: String| {
        let path = folder.join(format!("{name}.{file}"));
        std::fs::write(&path, text).unwrap();
        path
    };
    let remote = Remote::read(
        &write("svid", pem("CERTIFICATE", &chain)),
        &write("key", pem("PRIVATE KEY", &[key.to_pkcs8().to_vec()])),
        &write("bundle", pem("CERTIFICATE", &roots)),
    );
    (svid.spiffe_id.to_string(), remote.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_svid_opens_what_its_role_allows_and_no_more() {
    let mut ca = Ca::start().await;
    let folder = tempfile::tempdir().unwrap();
    let address = ca.address.to_string();
    let (name, alice) = operator(&mut ca, folder.path(), "alice").await;
    // A workload that is no operator is not even connected, and hears what it lacks.
    let refused = Admin::connect_remote(&address, &alice).await.unwrap_err();
    assert!(refused.to_string().contains("operator add"), "{refused}");
    let (svid, bundle) = (
        folder.path().join("alice.svid"),
        folder.path().join("alice.bundle"),
    );
    let other = folder.path().join("other.key");
    let key = PrivateKey::generate().unwrap();
    std::fs::write(&other, pem("PRIVATE KEY", &[key.to_pkcs8().to_vec()])).unwrap();
    let mismatched = Remote::read(&svid, &other, &bundle)
        .unwrap_err()
        .to_string();
    assert!(mismatched.contains("other.key") && mismatched.contains("alice.svid"));

    ca.admin
        .put_operator(&name, Role::Auditor, "on call")
        .await
        .unwrap();
    let mut remote = Admin::connect_remote(&address, &alice).await.unwrap();
    assert_eq!(remote.entries().await.unwrap().len(), 1);
    let (grants, you, role) = remote.operators().await.unwrap();
    assert_eq!(
        (grants.len(), you.as_str(), role),
        (1, name.as_str(), Role::Auditor)
    );
    let error = remote.create_entry(&wanted("new")).await.unwrap_err();
    assert!(error.to_string().contains("needs registrar"), "{error}");

    ca.admin
        .put_operator(&name, Role::Registrar, "promoted")
        .await
        .unwrap();
    remote.create_entry(&wanted("new")).await.unwrap();
    let subject = Subject::Node("node-of-alice".parse().unwrap());
    let error = remote.revoke(&subject, "mischief").await.unwrap_err();
    assert!(error.to_string().contains("needs admin"), "{error}");
    assert!(remote.put_operator(&name, Role::Admin, "me").await.is_err());
    // Nor by an SVID of somebody who is more.
    let boss = wanted("boss");
    ca.admin
        .put_operator(&boss.spiffe_id, Role::Admin, "the boss")
        .await
        .unwrap();
    for error in [
        remote.create_entry(&boss).await.unwrap_err(),
        remote
            .import_entries(&[boss], true, false)
            .await
            .unwrap_err(),
    ] {
        assert!(error.to_string().contains("for an admin"), "{error}");
    }

    // Who did what, and what was refused, stands in the log.
    let mut acts = Vec::new();
    let filter = Filter {
        by: Some(name.clone()),
        ..Filter::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        acts.push(serde_json::to_string(&record).unwrap());
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    let has = |words: &[&str]| {
        acts.iter()
            .any(|act| words.iter().all(|word| act.contains(word)))
    };
    assert!(has(&["entry.create", "done"]), "{acts:?}");
    assert!(
        has(&["operator.call", "refused", "\"Revoke\"", "needs admin"]),
        "{acts:?}"
    );
    for act in ["entry.create", "entry.import"] {
        assert!(has(&[act, "refused", "for an admin"]), "{act}: {acts:?}");
    }

    ca.admin.remove_operator(&name, "left").await.unwrap();
    let error = remote.entries().await.unwrap_err().to_string();
    assert!(error.contains("no operator"), "{error}");
    ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_operator_and_a_node_administer_nothing() {
    let mut ca = Ca::start().await;
    let folder = tempfile::tempdir().unwrap();
    let address = ca.address.to_string();
    let (name, bob) = operator(&mut ca, folder.path(), "bob").await;
    ca.admin.put_operator(&name, Role::Admin, "").await.unwrap();
    let mut remote = Admin::connect_remote(&address, &bob).await.unwrap();
    remote.status().await.unwrap();
    let subject = Subject::spiffe_id(&name).unwrap();
    ca.admin.revoke(&subject, "key leaked").await.unwrap();
    let error = remote.status().await.unwrap_err().to_string();
    assert!(error.contains("revoked"), "{error}");

    // The CA's own identities are never operators.
    let reserved = "spiffe://example.org/handfast/node/node-of-bob";
    assert!(
        ca.admin
            .put_operator(reserved, Role::Admin, "")
            .await
            .is_err()
    );
    assert!(
        ca.admin
            .put_operator("spiffe://other.org/x", Role::Admin, "")
            .await
            .is_err()
    );
    assert!(
        ca.admin
            .put_operator("uid:x", Role::Admin, "")
            .await
            .is_err()
    );
    ca.stop().await;
}

const SOCKET: &str = "HANDFAST_TEST_SOCKET";
/// Of nobody on this machine.
const STRANGER: u32 = 54_321;

/// What another user of this machine may do, asked by a process of theirs.
#[tokio::test]
#[ignore = "a part of the test below, which runs it as another user"]
async fn as_another_user() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut admin = match Admin::connect(Path::new(&socket)).await {
        Ok(admin) => admin,
        Err(error) => return println!("said: closed: {error}"),
    };
    let read = admin.entries().await.map(|entries| entries.len());
    let wrote = admin.create_entry(&wanted("theirs")).await;
    println!("said: read {read:?}");
    println!(
        "said: wrote {:?}",
        wrote.map(drop).map_err(|error| error.to_string())
    );
}

fn ask_as(uid: u32, socket: &Path) -> String {
    use std::os::unix::process::CommandExt;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "operators::as_another_user",
            "--ignored",
            "--nocapture",
        ])
        .env(SOCKET, socket)
        .current_dir("/")
        .uid(uid)
        .gid(uid);
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("said: "))
        .collect();
    assert!(
        !said.is_empty(),
        "{text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    said.join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_of_the_machine_may_do_what_their_uid_was_given() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let mut ca = Ca::start().await;
    let folder = ca.folder.path().to_owned();
    // The way to the socket is open; the CA's folder beside it is not.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.join("run/ca.sock");
    let mode = || std::fs::metadata(&socket).unwrap().mode() & 0o777;
    assert_eq!(mode(), 0o600, "closed while no uid has a role");
    assert!(ask_as(STRANGER, &socket).contains("closed"));

    // Once any uid has a role, all may knock, and hear who they are not.
    let uid = format!("uid:{STRANGER}");
    ca.admin
        .put_operator("uid:4711", Role::Admin, "a test")
        .await
        .unwrap();
    assert_eq!(mode(), 0o666);
    let said = ask_as(STRANGER, &socket);
    assert!(
        said.contains("is no operator") && !said.contains("read Ok"),
        "{said}"
    );

    ca.admin
        .put_operator(&uid, Role::Auditor, "a test")
        .await
        .unwrap();
    let said = ask_as(STRANGER, &socket);
    assert!(
        said.contains("read Ok(0)") && said.contains("needs registrar"),
        "{said}"
    );

    ca.admin
        .put_operator(&uid, Role::Registrar, "a test")
        .await
        .unwrap();
    let said = ask_as(STRANGER, &socket);
    assert!(
        said.contains("read Ok(0)") && said.contains("wrote Ok"),
        "{said}"
    );
    let mut acts = Vec::new();
    let filter = Filter {
        by: Some(uid.clone()),
        ..Filter::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        acts.push(record.act);
        Ok(())
    };
    ca.admin.audit(&filter, take).await.unwrap();
    assert!(acts.contains(&"entry.create".to_owned()), "{acts:?}");

    for name in [uid.as_str(), "uid:4711"] {
        ca.admin.remove_operator(name, "a test").await.unwrap();
    }
    assert!(ask_as(STRANGER, &socket).contains("closed"));
    assert_eq!(mode(), 0o600);
}
