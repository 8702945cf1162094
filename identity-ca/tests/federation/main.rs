//! Two trust domains and their federation: SPIFFE's rules F-1 to F-7 over real connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../common/mod.rs"]
mod common;

mod handshake;
mod postgres;
mod side;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handfast_ca::audit::{Filter, Outcome};
use handfast_ca::bundle::TrustBundle;
use handfast_ca::client::federation::NewFederation;
use handfast_ca::client::rotation::{NewRotation, Rotation};
use handfast_ca::rotation::{Stage, What};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use handshake::handshake;
use side::{HINT, Side, WebPki, Workload, issuer};

const OURS: &str = "example.org";
const THEIRS: &str = "partner.example";

type Change<'a> = &'a dyn Fn(&mut NewFederation);

async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    for _ in 0..400 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 20 s");
}

async fn rotate(side: &mut Side) -> Rotation {
    let order = NewRotation {
        what: What::Root,
        goal: Stage::Revoked,
        reason: "a test".to_owned(),
        compromised: false,
        root: None,
    };
    let id = side.ca.admin.rotate(order).await.unwrap().id;
    let admin = side.ca.admin.clone();
    eventually("the rotation ends", || {
        let mut admin = admin.clone();
        async move {
            let ended = admin.rotations().await.unwrap().ended;
            ended
                .into_iter()
                .find(|rotation| rotation.id == id && rotation.stage == "revoked")
        }
    })
    .await
}

async fn knows(side: &mut Side, bundle: &TrustBundle) {
    let admin = side.ca.admin.clone();
    eventually("the bundle is fetched", || {
        let mut admin = admin.clone();
        async move {
            let known = admin
                .federation(bundle.trust_domain().as_str())
                .await
                .unwrap()
                .bundle?;
            (known.sequence() == bundle.sequence()).then_some(())
        }
    })
    .await;
}

fn words(error: impl std::fmt::Display, expected: &[&str]) {
    let text = error.to_string();
    for word in expected {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

/// Handshakes in both directions until it is told to stop; all that failed.
async fn traffic(
    one: Arc<Workload>,
    other: Arc<Workload>,
    stop: Arc<AtomicBool>,
) -> (usize, Vec<String>) {
    let (mut good, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        for (client, server) in [(&one, &other), (&other, &one)] {
            match handshake(client, server).await {
                Ok(()) => good += 1,
                Err(error) => failed.push(error),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (good, failed)
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_f6_two_trust_domains_authenticate_to_each_other_through_a_rotation() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    let (here, there) = (ours.workload(THEIRS).await, theirs.workload(OURS).await);
    assert!(
        handshake(&here, &there).await.is_err(),
        "strangers, before they federate"
    );
    // F-1: a client of both profiles, an endpoint of either.
    ours.federate_by_spiffe(&mut theirs).await;
    theirs.federate_by_web(&ours).await;
    eventually("the workloads know each other", || async {
        let good = handshake(&here, &there).await.is_ok() && handshake(&there, &here).await.is_ok();
        good.then_some(())
    })
    .await;
    let (here, there) = (Arc::new(here), Arc::new(there));
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn(traffic(
        Arc::clone(&here),
        Arc::clone(&there),
        Arc::clone(&stop),
    ));
    let before = issuer(&here.svid().0);
    let rotation = rotate(&mut ours).await;
    let bundle = ours.bundle().await;
    knows(&mut theirs, &bundle).await;
    stop.store(true, Ordering::SeqCst);
    let (good, failed) = traffic.await.unwrap();
    assert!(
        failed.is_empty(),
        "{} of {good} failed: {:?}",
        failed.len(),
        failed.first()
    );
    assert!(good > 100, "{good} handshakes");
    assert_ne!(issuer(&here.svid().0), before, "the SVID was replaced");
    // F-6: published long before its first use.
    let at = |step: &str| {
        rotation
            .steps
            .iter()
            .find(|one| one.step == step)
            .unwrap()
            .at_ms
    };
    let lead = at("activated") - at("prepared");
    assert!(lead >= 3 * HINT.as_millis() as u64, "{lead} ms");
    // F-7: replaced, not merged.
    let known = theirs.known(OURS).await.unwrap();
    assert_eq!(
        known.fingerprints().collect::<Vec<_>>(),
        bundle.fingerprints().collect::<Vec<_>>()
    );
    assert_eq!(known.roots().count(), 1);
    drop((here, there));
    ours.ca.stop().await;
    theirs.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_what_a_relationship_needs_is_asked_for() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    let good = NewFederation {
        trust_domain: THEIRS.to_owned(),
        url: format!("https://127.0.0.1:{}/", theirs.port),
        profile: "https_spiffe".to_owned(),
        endpoint_spiffe_id: format!("spiffe://{THEIRS}/handfast/ca"),
        bundle: Some(theirs.bundle().await),
    };
    let other = ours.bundle().await;
    let bad: [(Change<'_>, &[&str]); 7] = [
        (&|new| new.bundle = None, &["--bundle", "recognise"]),
        (
            &|new| new.bundle = Some(other.clone()),
            &["another trust domain"],
        ),
        (
            &|new| new.trust_domain = "Partner".to_owned(),
            &["lower case"],
        ),
        (&|new| new.url = "http://127.0.0.1/".to_owned(), &["https"]),
        (
            &|new| new.profile = "ftp".to_owned(),
            &["https_web or https_spiffe"],
        ),
        (&|new| new.endpoint_spiffe_id.clear(), &["needs the ID"]),
        (
            &|new| {
                new.trust_domain = OURS.to_owned();
                new.bundle = Some(other.clone());
                new.endpoint_spiffe_id = format!("spiffe://{OURS}/handfast/ca");
            },
            &["our own"],
        ),
    ];
    for (change, expected) in bad {
        let mut new = good.clone();
        change(&mut new);
        words(
            ours.ca.admin.create_federation(new).await.unwrap_err(),
            expected,
        );
    }
    assert!(ours.ca.admin.federations().await.unwrap().is_empty());
    ours.ca.admin.create_federation(good.clone()).await.unwrap();
    words(
        ours.ca.admin.create_federation(good).await.unwrap_err(),
        &["exists already", "delete"],
    );
    ours.ca.stop().await;
    theirs.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_domain_that_entries_federate_with_is_not_forgotten_by_mistake() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    ours.federate_by_spiffe(&mut theirs).await;
    let workload = ours.workload(THEIRS).await;
    let domain = spiffe::TrustDomain::new(THEIRS).unwrap();
    eventually("the workload has the bundle", || async {
        workload.domains().bundle(&domain).map(drop)
    })
    .await;
    let admin = &mut ours.ca.admin;
    assert_eq!(
        admin
            .delete_federation(THEIRS, "", false, true)
            .await
            .unwrap(),
        1
    );
    words(
        admin
            .delete_federation(THEIRS, "over", false, false)
            .await
            .unwrap_err(),
        &["1 entries", "--force"],
    );
    words(
        admin
            .delete_federation(THEIRS, " ", true, false)
            .await
            .unwrap_err(),
        &["--reason"],
    );
    assert_eq!(
        admin
            .delete_federation(THEIRS, "over", true, false)
            .await
            .unwrap(),
        1
    );
    words(
        admin
            .delete_federation(THEIRS, "over", true, false)
            .await
            .unwrap_err(),
        &["no federation"],
    );
    eventually("the workload has lost it", || async {
        workload.domains().bundle(&domain).is_none().then_some(())
    })
    .await;
    ours.ca.stop().await;
    theirs.ca.stop().await;
}

/// What an endpoint answers to these bytes.
async fn ask(web: &WebPki, port: u16, request: &str) -> String {
    let mut roots = rustls::RootCertStore::empty();
    let root = rustls_pki_types::CertificateDer::from_pem_file(&web.roots).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, tcp).await.unwrap();
    // Who sends too much is not heard to the end.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    // A server that ends a bad connection need not say good-bye.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn f3_the_endpoint_gives_the_latest_bundle_to_everybody() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let get = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = ask(&web, ours.port, get).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        head.to_lowercase()
            .contains("content-type: application/json"),
        "{head}"
    );
    let read =
        TrustBundle::from_spiffe_json(spiffe::TrustDomain::new(OURS).unwrap(), body.as_bytes());
    let read = read.unwrap();
    let bundle = ours.bundle().await;
    assert!(read.ignored.is_empty());
    assert_eq!(read.bundle.sequence(), bundle.sequence());
    assert_eq!(read.bundle.refresh_hint(), Some(HINT.as_secs()));
    assert!(read.bundle.roots().eq(bundle.roots()));
    assert_eq!(read.bundle.jwt_keys().len(), bundle.jwt_keys().len());
    for (request, expected) in [
        (get.replace("GET", "POST"), "405"),
        (get.replace("GET", "DELETE"), "405"),
        (get.replace(" / ", " /../etc/passwd "), "404"),
        ("rubbish\r\n\r\n".to_owned(), "400"),
        (
            format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10)),
            "431",
        ),
    ] {
        let answer = ask(&web, ours.port, &request).await;
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.contains(expected), "{expected}: {line:?}");
    }
    ours.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f4_after_the_first_fetch_the_latest_bundle_recognises_the_endpoint() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    ours.federate_by_spiffe(&mut theirs).await;
    let first = theirs.bundle().await;
    // Nothing of the bundle that was carried over is left at the end.
    rotate(&mut theirs).await;
    let last = theirs.bundle().await;
    assert!(
        first
            .fingerprints()
            .all(|old| last.fingerprints().all(|new| new != old))
    );
    knows(&mut ours, &last).await;
    let again = ours.ca.admin.refresh_federation(THEIRS).await.unwrap();
    assert_eq!(
        (again.sequence, again.problem.as_str()),
        (Some(last.sequence()), "")
    );
    ours.ca.stop().await;
    theirs.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f7_the_latest_bundle_survives_restarts_and_an_endpoint_that_is_away() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    ours.federate_by_spiffe(&mut theirs).await;
    let bundle = theirs.bundle().await;
    knows(&mut ours, &bundle).await;
    theirs.ca.stop().await;
    let mut ours = ours.restart().await;
    let error = ours.ca.admin.refresh_federation(THEIRS).await.unwrap_err();
    words(error, &["bundle endpoint", "127.0.0.1"]);
    let known = ours.ca.admin.federation(THEIRS).await.unwrap();
    assert!(known.bundle.unwrap().roots().eq(bundle.roots()));
    assert!(!known.problem.is_empty(), "what is wrong is shown");
    let workload = ours.workload(THEIRS).await;
    eventually("workloads still get it", || async {
        workload.domains().bundle(bundle.trust_domain()).map(drop)
    })
    .await;
    ours.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f7_an_older_bundle_is_never_taken_for_a_newer_one() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    ours.federate_by_spiffe(&mut theirs).await;
    let bundle = theirs.bundle().await;
    let newer = bundle.clone().with_sequence(bundle.sequence() + 1_000_000);
    ours.ca.admin.set_bundle(&newer, "a test").await.unwrap();
    let error = ours.ca.admin.refresh_federation(THEIRS).await.unwrap_err();
    words(error, &["lower", "handfast bundle set"]);
    assert_eq!(
        ours.known(THEIRS).await.unwrap().sequence(),
        newer.sequence()
    );
    // An operator's word goes back, as after their restore from a backup.
    ours.ca.admin.set_bundle(&bundle, "restored").await.unwrap();
    ours.ca.admin.refresh_federation(THEIRS).await.unwrap();
    ours.ca.stop().await;
    theirs.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_bundle_in_the_place_of_one_that_stands_needs_a_reason() {
    let web = WebPki::new();
    let mut ours = Side::start(OURS, &web, true).await;
    let mut theirs = Side::start(THEIRS, &web, false).await;
    let bundle = theirs.bundle().await;
    let other = bundle.clone().with_sequence(bundle.sequence() + 1);
    // Where none stands nothing is lost, nor by the same one again.
    ours.ca.admin.set_bundle(&bundle, "").await.unwrap();
    ours.ca.admin.set_bundle(&bundle, "").await.unwrap();
    for none in ["", "  "] {
        let error = ours.ca.admin.set_bundle(&other, none).await.unwrap_err();
        words(error, &["say why", "--reason", "nothing was changed"]);
    }
    assert_eq!(ours.known(THEIRS).await.unwrap(), bundle);
    ours.ca
        .admin
        .set_bundle(&other, "carried over")
        .await
        .unwrap();
    assert_eq!(ours.known(THEIRS).await.unwrap(), other);

    let mut told = Vec::new();
    let filter = Filter {
        act: Some("bundle.set".to_owned()),
        ..Filter::default()
    };
    let take = |record: handfast_ca::audit::Record| {
        let word = |name: &str| {
            record
                .detail
                .get(name)
                .and_then(|value| value.as_str())
                .map(str::to_owned)
        };
        told.push((record.outcome, word("reason")));
        Ok(())
    };
    ours.ca.admin.audit(&filter, take).await.unwrap();
    let refused = told.iter().filter(|one| one.0 == Outcome::Refused).count();
    assert_eq!((told.len(), refused), (5, 2), "{told:?}");
    assert_eq!(told[4].1.as_deref(), Some("carried over"));
    ours.ca.stop().await;
    theirs.ca.stop().await;
}
