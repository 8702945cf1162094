//! Where roots come from, what seals them, and what happens by itself when time goes by.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handfast_ca::authority::{self, Authority, Lifetime, OfflineRoot, RootSource};
use handfast_ca::certificate::{CsrKey, PrivateKey};
use handfast_ca::client::rotation::Authority as Seen;
use handfast_ca::rotation::{Stage, What};
use handfast_ca::server::{Options, Server};
use tempfile::TempDir;

use super::agent::{Traffic, eventually};
use super::common::{Ca, options, setup};
use super::whole::{agents, order, until};

fn domain() -> spiffe::TrustDomain {
    authority::trust_domain("example.org").unwrap()
}

fn passphrase(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("passphrase");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn active<'a>(authorities: &'a [Seen], kind: &str) -> &'a Seen {
    let mut found = authorities
        .iter()
        .filter(|record| record.kind == kind && record.state == "active");
    found.next().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_stays_offline_signs_what_is_carried_to_it_and_is_rotated_too() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = passphrase(&folder, "correct horse battery\n");
    let offline = folder.path().join("offline");
    let root = OfflineRoot::create(&offline, &domain(), 100_000, Some(sealed.clone())).unwrap();
    assert!(read(&offline.join("root.key")).contains("ENCRYPTED"));

    let dir = folder.path().join("ca");
    let mut wanted = setup(dir.clone());
    wanted.root = RootSource::Offline {
        certificate: offline.join("root.crt"),
    };
    authority::init(&wanted).await.unwrap();
    let refused = Server::bind(&options(&folder, 0))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("request.csr") && refused.contains("root sign"),
        "{refused}"
    );

    // Somebody else's certificate is of no use.
    let stranger = OfflineRoot::create(&folder.path().join("x"), &domain(), 100_000, None).unwrap();
    let request = authority::request(&dir).await.unwrap();
    let foreign = stranger.sign(&request, "ca", 5000).unwrap();
    let error = authority::install(&dir, &foreign)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("nothing was changed"), "{error}");

    let certificate = root.sign(&request, "ca", 5000).unwrap();
    authority::install(&dir, &certificate).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    let agents = agents(&mut ca, 2, 2).await;
    let traffic = Traffic::start(&agents);

    // The next issuing CA: request out, certificate in.
    let (request, server) = ca
        .admin
        .request_issuing("half its life is over")
        .await
        .unwrap();
    let waiting = ca.admin.rotations().await.unwrap().live.remove(0);
    assert_eq!(waiting.stragglers[0].subject, "ca");
    assert!(!waiting.stragglers[0].can_be_forced);
    let certificate = root.sign(&request, &server, 5000).unwrap();
    ca.admin.install_issuing(certificate).await.unwrap();
    until(&mut ca.admin, waiting.id, "revoked").await;

    // The next root, made elsewhere too.
    let next =
        OfflineRoot::create(&ca.folder.path().join("next"), &domain(), 100_000, None).unwrap();
    let mut rotation = order(What::Root, Stage::Revoked);
    rotation.root = Some((next.certificate(), String::new()));
    let refused = ca
        .admin
        .rotate(rotation.clone())
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("cross-sign"), "{refused}");
    rotation.root = Some((
        next.certificate(),
        next.cross_sign(&next.certificate()).unwrap(),
    ));
    assert!(ca.admin.rotate(rotation.clone()).await.is_err());
    let cross = root.cross_sign(&next.certificate()).unwrap();
    rotation.root = Some((next.certificate(), cross));
    let started = ca.admin.rotate(rotation).await.unwrap();
    let (request, _) = ca.admin.request_issuing("").await.unwrap();
    let certificate = next.sign(&request, "ca", 5000).unwrap();
    ca.admin.install_issuing(certificate).await.unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
    traffic.end().await;
    let now = ca.admin.bundle().await.unwrap();
    assert_eq!(now.fingerprints().collect::<Vec<_>>(), [next.fingerprint()]);
    assert!(
        !ca.admin
            .rotations()
            .await
            .unwrap()
            .authorities
            .iter()
            .any(|record| { record.kind == "root" && record.key_here })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_certificate_from_disk_is_taken_with_its_own_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (folder.path().join("ours"), folder.path().join("other"));
    OfflineRoot::create(&ours, &domain(), 100_000, None).unwrap();
    OfflineRoot::create(&other, &domain(), 100_000, None).unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    wanted.root = RootSource::Disk {
        certificate: ours.join("root.crt"),
        key: other.join("root.key"),
    };
    let error = authority::init(&wanted).await.unwrap_err().to_string();
    assert!(
        error.contains("does not belong") && error.contains("nothing was changed"),
        "{error}"
    );
    assert!(!folder.path().join("ca").exists());
    wanted.root = RootSource::Disk {
        certificate: ours.join("root.crt"),
        key: ours.join("root.key"),
    };
    // One that everybody can read may be anybody's.
    let mode = |mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(ours.join("root.key"), mode).unwrap();
    };
    mode(0o644);
    let error = authority::init(&wanted).await.unwrap_err().to_string();
    assert!(
        error.contains("mode 644") && error.contains("chmod 600"),
        "{error}"
    );
    assert!(!folder.path().join("ca").exists());
    mode(0o600);
    let fingerprint = authority::init(&wanted).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    assert!(
        ca.admin
            .bundle()
            .await
            .unwrap()
            .fingerprints()
            .any(|print| print == fingerprint)
    );
    agents(&mut ca, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_root_opens_with_its_passphrase_and_its_successor_is_sealed_too() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = passphrase(&folder, "correct horse battery\n");
    let mut wanted = setup(folder.path().join("ca"));
    wanted.passphrase_file = Some(sealed.clone());
    authority::init(&wanted).await.unwrap();
    let mut options = options(&folder, 0);
    let refused = Server::bind(&options).await.err().unwrap().to_string();
    assert!(refused.contains("--passphrase-file"), "{refused}");
    // What everybody may know is read without it: an auditor has no passphrase.
    let (server, bundle) = Authority::published(&wanted.dir).await.unwrap();
    assert_eq!((server.as_str(), bundle.roots().count()), ("ca", 1));
    options.passphrase_file = Some(sealed.clone());
    passphrase(&folder, "wrong horse battery\n");
    let refused = Server::bind(&options).await.err().unwrap().to_string();
    assert!(refused.contains("does not open"), "{refused}");
    passphrase(&folder, "correct horse battery\n");
    let mut ca = Ca::serve_with(folder, options).await;
    let _agents = agents(&mut ca, 1, 1).await;
    let started = ca
        .admin
        .rotate(order(What::Root, Stage::Revoked))
        .await
        .unwrap();
    until(&mut ca.admin, started.id, "revoked").await;
    let keys = fs::read_dir(ca.folder.path().join("ca/keys")).unwrap();
    let roots: Vec<String> = keys
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("root")
        })
        .map(|path| read(&path))
        .collect();
    assert_eq!(roots.len(), 1);
    assert!(roots[0].contains("ENCRYPTED PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grows_old_is_replaced_by_itself_and_nobody_notices() {
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    wanted.lifetimes.issuing = 16;
    wanted.lifetimes.jwt_key = 20;
    wanted.lifetimes.jwt = 1;
    authority::init(&wanted).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    let before = ca.admin.rotations().await.unwrap().authorities;
    let agents = agents(&mut ca, 2, 2).await;
    let traffic = Traffic::start(&agents);
    // Half of their lives is over after 8 s and 10 s.
    let since = Instant::now();
    let status = loop {
        let status = ca.admin.rotations().await.unwrap();
        let ended = |kind| status.ended.iter().any(|rotation| rotation.what == kind);
        if ended("issuing") && ended("jwt") {
            break status;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    traffic.end().await;
    for kind in ["issuing", "jwt"] {
        assert_ne!(
            active(&before, kind).id,
            active(&status.authorities, kind).id,
            "{kind}"
        );
        let ended = status
            .ended
            .iter()
            .find(|rotation| rotation.what == kind)
            .unwrap();
        assert_eq!(
            (ended.stage.as_str(), ended.steps[0].by.as_str()),
            ("revoked", "schedule")
        );
    }
    assert_eq!(
        active(&before, "root").id,
        active(&status.authorities, "root").id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_before_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    // A quarter is left after 30 s: time enough for a rotation on a busy machine.
    wanted.lifetimes.root = 40;
    authority::init(&wanted).await.unwrap();
    let mut ca = Ca::serve(folder, 0).await;
    let before = ca.admin.bundle().await.unwrap();
    let agents = agents(&mut ca, 2, 2).await;
    let traffic = Traffic::start(&agents);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        ca.admin
            .bundle()
            .await
            .unwrap()
            .fingerprints()
            .eq(before.fingerprints())
    );
    eventually_root(&mut ca, &before).await;
    traffic.end().await;
}

async fn eventually_root(ca: &mut Ca, before: &handfast_ca::bundle::TrustBundle) {
    for _ in 0..1600 {
        let now = ca.admin.bundle().await.unwrap();
        if now.roots().count() == 1 && !now.fingerprints().eq(before.fingerprints()) {
            let ended = &ca.admin.rotations().await.unwrap().ended[0];
            assert_eq!(
                (ended.what.as_str(), ended.steps[0].by.as_str()),
                ("root", "schedule")
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("no new root within its life");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_be_told_how_long_what_it_signs_lives() {
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = setup(folder.path().join("ca"));
    wanted.lifetimes.set(Lifetime::Jwt, 120).unwrap();
    authority::init(&wanted).await.unwrap();
    let mut folder = folder;
    for (lifetimes, seconds) in [(vec![(Lifetime::Jwt, 90)], 90), (Vec::new(), 120)] {
        let options = Options {
            lifetimes,
            ..options(&folder, 0)
        };
        let mut ca = Ca::serve_with(folder, options).await;
        let joined = ca
            .join(&format!("n{seconds}"), &format!("10.{seconds}.0.0/16"))
            .await;
        let entry = ca
            .entry(&format!("spiffe://example.org/{seconds}"), None)
            .await;
        let agent = ca.connect(&joined).await.unwrap();
        let token = agent.issue_jwt(&entry.id, &["db".to_owned()]).await;
        let token = token.unwrap().unwrap();
        assert_eq!(token.not_after - token.issued_at, seconds);
        drop(agent);
        folder = ca.stop().await;
    }
    // What nobody can live with is refused before anything is served.
    let mut options = options(&folder, 0);
    options.lifetimes = vec![(Lifetime::Workload, 1)];
    let error = Server::bind(&options).await.err().unwrap().to_string();
    assert!(error.contains("lifetime of workload SVIDs"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_the_ca_that_signed_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let mut wanted = setup(dir.clone());
    wanted.lifetimes.root = 5000;
    wanted.lifetimes.issuing = 3000;
    wanted.lifetimes.workload = 1_000_000;
    authority::init(&wanted).await.unwrap();
    let ca = Authority::open(&dir).await.unwrap();
    let key = CsrKey::read(&PrivateKey::generate().unwrap().csr().unwrap()).unwrap();
    let id = spiffe::SpiffeId::new("spiffe://example.org/web").unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for life in [None, Some(u64::MAX), Some(4000)] {
        let svid = ca.workload_svid(&key, id.clone(), &[], life).unwrap();
        assert!(svid.not_after <= now + 3000, "{life:?}");
        assert!(svid.not_after > now + 2900, "{life:?}");
    }
    // An issuing CA is cut to its root's life, too.
    let dir = folder.path().join("other");
    let mut wanted = setup(dir.clone());
    wanted.lifetimes.root = 1000;
    wanted.lifetimes.issuing = 90_000;
    authority::init(&wanted).await.unwrap();
    let ca = Authority::open(&dir).await.unwrap();
    let svid = ca.workload_svid(&key, id, &[], Some(90_000)).unwrap();
    assert!(svid.not_after <= now + 1010);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_wiped_when_they_may_sign_no_more() {
    let mut ca = Ca::start().await;
    let keys = ca.folder.path().join("ca/keys");
    let names = || -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&keys)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let _agents = agents(&mut ca, 1, 1).await;
    for what in [What::Jwt, What::Root] {
        let started = ca.admin.rotate(order(what, Stage::Tainted)).await.unwrap();
        until(&mut ca.admin, started.id, "tainted").await;
    }
    eventually("the old keys are gone", || {
        let now = names();
        now.len() == 3 && before.iter().all(|name| !now.contains(name))
    })
    .await;
}
