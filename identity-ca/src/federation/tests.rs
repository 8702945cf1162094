//! SPIFFE's rules for fetching a bundle by their numbers, against endpoints that do it wrongly.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::{SpiffeId, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::fetch::{Trust, fetch};
use super::*;
use crate::Error;
use crate::bundle::Read;
use crate::certificate::profile::{self, Profile as Leaf, Serial20, Validity};
use crate::deny::DenyList;
use crate::verify::Verifier;

const ID: &str = "spiffe://partner.example/bundle-endpoint";

fn domain() -> TrustDomain {
    TrustDomain::new("partner.example").unwrap()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of the Web PKI, or an X509-SVID of this ID.
fn certified(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    params: &CertificateParams,
) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().unwrap();
    let leaf: CertificateDer<'static> = params.signed_by(&key, issuer).unwrap().into();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Arc::new(CertifiedKey::from_der(vec![leaf], key, &tls::provider()).unwrap())
}

fn web_certificate(issuer: &CertifiedIssuer<'static, KeyPair>, name: &str) -> Arc<CertifiedKey> {
    certified(
        issuer,
        &CertificateParams::new(vec![name.to_owned()]).unwrap(),
    )
}

fn svid(issuer: &CertifiedIssuer<'static, KeyPair>, id: &str) -> Arc<CertifiedKey> {
    let now = crate::now_ms() / 1000;
    let validity = Validity {
        not_before: now - 60,
        not_after: now + 3600,
    };
    let id = SpiffeId::new(id).unwrap();
    let profile = Leaf::Workload { dns_names: &[] };
    let params = profile::leaf(&id, &profile, validity, &Serial20::random()).unwrap();
    certified(issuer, &params)
}

/// An endpoint that gives these answers, one to each request.
struct Scripted {
    address: SocketAddr,
    answers: Arc<Mutex<VecDeque<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    async fn start(certificate: Arc<CertifiedKey>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scripted = Self {
            address: listener.local_addr().unwrap(),
            answers: Arc::default(),
            asked: Arc::default(),
        };
        let (answers, asked) = (Arc::clone(&scripted.answers), Arc::clone(&scripted.asked));
        let resolver = rustls::sign::SingleCertAndKey::from(certificate);
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(tcp).await else {
                    continue;
                };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                asked
                    .lock()
                    .unwrap()
                    .push(String::from_utf8(request).unwrap());
                let answer = answers.lock().unwrap().pop_front().unwrap();
                // Who has heard enough hangs up.
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        scripted
    }

    fn says(&self, answers: impl IntoIterator<Item = String>) {
        *self.answers.lock().unwrap() = answers.into_iter().collect();
        self.asked.lock().unwrap().clear();
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/bundle", self.address.port())
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

const EMPTY: &str = r#"{"keys": [], "spiffe_sequence": 5}"#;

/// A partner on the Web.
struct Web {
    server: Scripted,
    trust: Trust,
}

impl Web {
    async fn start() -> Self {
        let issuer = authority();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(issuer.der().clone()).unwrap();
        Self {
            server: Scripted::start(web_certificate(&issuer, "localhost")).await,
            trust: Trust::Web(roots),
        }
    }

    async fn fetch(&self) -> Result<Read, Error> {
        let endpoint = Endpoint::new(&self.server.url(), "https_web", "").unwrap();
        fetch(&domain(), &endpoint, &self.trust).await
    }

    async fn refused(&self, answers: impl IntoIterator<Item = String>, expected: &str) {
        self.server.says(answers);
        let error = self.fetch().await.unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{expected:?} is missing in: {error}"
        );
    }
}

fn recognising(issuer: &CertifiedIssuer<'static, KeyPair>) -> Trust {
    let bundle = TrustBundle::new(domain(), 1, [issuer.der().to_vec()]).unwrap();
    Trust::Spiffe(Verifier::new(bundle, DenyList::empty()))
}

async fn fetch_spiffe(url: &str, trust: &Trust) -> Result<Read, Error> {
    let endpoint = Endpoint::new(url, "https_spiffe", ID).unwrap();
    fetch(&domain(), &endpoint, trust).await
}

#[test]
fn f1_an_endpoint_is_https_and_names_no_user() {
    assert!(Endpoint::new("https://partner.example:8443/b?x=1", "https_web", "").is_ok());
    assert!(Endpoint::new("https://[2001:db8::1]/", "https_web", "").is_ok());
    let long = format!("https://partner.example/{}", "x".repeat(3000));
    for bad in [
        "http://partner.example/",
        "HTTP://partner.example/",
        "https://user@partner.example/",
        "https://user:word@partner.example/",
        "https://:word@partner.example/",
        "https://",
        "partner.example",
        "file:///etc/passwd",
        "",
        &long,
    ] {
        assert!(Endpoint::new(bad, "https_web", "").is_err(), "{bad}");
    }
}

#[test]
fn f2_https_spiffe_names_the_endpoint_and_https_web_does_not() {
    let url = "https://partner.example/";
    let endpoint = Endpoint::new(url, "https_spiffe", ID).unwrap();
    assert_eq!(endpoint.profile().endpoint_id().unwrap().to_string(), ID);
    for (profile, id) in [
        ("https_spiffe", ""),
        ("https_spiffe", "partner.example"),
        ("https_spiffe", "spiffe://Partner.example/x"),
        ("https_web", ID),
        ("http", ""),
        ("", ""),
    ] {
        assert!(Endpoint::new(url, profile, id).is_err(), "{profile} {id}");
    }
}

#[tokio::test]
async fn f3_a_get_fetches_the_latest_bundle() {
    let web = Web::start().await;
    web.server.says([ok(EMPTY)]);
    let read = web.fetch().await.unwrap();
    assert_eq!(
        (read.bundle.sequence(), read.bundle.trust_domain()),
        (5, &domain())
    );
    let asked = web.server.asked.lock().unwrap().remove(0);
    assert!(asked.starts_with("GET /bundle HTTP/1.1\r\n"), "{asked}");
    assert!(
        asked.contains(&format!("host: localhost:{}", web.server.address.port())),
        "{asked}"
    );
}

#[tokio::test]
async fn f3_what_is_no_bundle_is_refused_and_nothing_grows_without_end() {
    let web = Web::start().await;
    web.refused([ok("")], "not a SPIFFE bundle").await;
    web.refused([ok("<html>")], "not a SPIFFE bundle").await;
    web.refused([ok(r#"{"keys": 3}"#)], "not a SPIFFE bundle")
        .await;
    web.refused(
        [ok(&" ".repeat(crate::bundle::MAX_JSON + 1))],
        "did not come whole",
    )
    .await;
    web.refused(
        ["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()],
        "404",
    )
    .await;
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned();
    web.refused([cut], "did not come whole").await;
    web.refused(["SSH-2.0-OpenSSH\r\n".to_owned()], "bundle endpoint")
        .await;
}

#[tokio::test]
async fn f4_https_web_checks_the_name_against_the_web_pki() {
    let issuer = authority();
    let server = Scripted::start(web_certificate(&issuer, "partner.example")).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    server.says([ok(EMPTY)]);
    let endpoint = Endpoint::new(&server.url(), "https_web", "").unwrap();
    let wrong_name = fetch(&domain(), &endpoint, &Trust::Web(roots)).await;
    assert!(wrong_name.unwrap_err().to_string().contains("localhost"));
    let web = Web::start().await;
    let mut strangers = rustls::RootCertStore::empty();
    strangers.add(authority().der().clone()).unwrap();
    let endpoint = Endpoint::new(&web.server.url(), "https_web", "").unwrap();
    assert!(
        fetch(&domain(), &endpoint, &Trust::Web(strangers))
            .await
            .is_err()
    );
    assert_eq!(
        server.asked() + web.server.asked(),
        0,
        "nothing was asked of strangers"
    );
}

#[tokio::test]
async fn f4_https_spiffe_takes_exactly_the_configured_id() {
    let issuer = authority();
    let good = Scripted::start(svid(&issuer, ID)).await;
    good.says([ok(EMPTY)]);
    // No name is checked: the host may be an address.
    let url = format!("https://127.0.0.1:{}/", good.address.port());
    assert!(fetch_spiffe(&url, &recognising(&issuer)).await.is_ok());
    let stranger = recognising(&authority());
    assert!(fetch_spiffe(&url, &stranger).await.is_err());
    for id in [
        "spiffe://partner.example/bundle-endpoint/x",
        "spiffe://partner.example/Bundle-endpoint",
        "spiffe://other.example/bundle-endpoint",
    ] {
        let other = Scripted::start(svid(&issuer, id)).await;
        let error = fetch_spiffe(&other.url(), &recognising(&issuer))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("not who it should be"),
            "{id}: {error}"
        );
        assert_eq!(other.asked(), 0);
    }
    let web = Scripted::start(web_certificate(&issuer, "localhost")).await;
    assert!(
        fetch_spiffe(&web.url(), &recognising(&issuer))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn f5_redirects_are_followed_for_once_to_urls_of_the_profile() {
    let web = Web::start().await;
    let there = format!("https://localhost:{}/elsewhere", web.server.address.port());
    web.server.says([redirect(&there), ok(EMPTY), ok(EMPTY)]);
    assert!(web.fetch().await.is_ok());
    assert!(web.fetch().await.is_ok());
    let asked = web.server.asked.lock().unwrap().clone();
    assert!(asked[1].starts_with("GET /elsewhere "), "{asked:?}");
    assert!(
        asked[2].starts_with("GET /bundle "),
        "not remembered: {asked:?}"
    );
    web.server.says([redirect("/relative"), ok(EMPTY)]);
    assert!(web.fetch().await.is_ok());
    let http = there.replace("https:", "http:");
    let user = there.replace("https://", "https://user@");
    for bad in [
        http,
        user,
        "ftp://localhost/".to_owned(),
        "https://".to_owned(),
    ] {
        web.refused([redirect(&bad)], "").await;
        assert_eq!(web.server.asked(), 1, "{bad}");
    }
    web.refused((0..9).map(|_| redirect(&there)), "redirects without end")
        .await;
    assert_eq!(web.server.asked(), 6);
    web.refused(
        ["HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_owned()],
        "not where",
    )
    .await;
}

#[tokio::test]
async fn f5_behind_a_redirect_https_spiffe_expects_the_same_id() {
    let issuer = authority();
    let first = Scripted::start(svid(&issuer, ID)).await;
    let same = Scripted::start(svid(&issuer, ID)).await;
    let other = Scripted::start(svid(&issuer, "spiffe://partner.example/web")).await;
    first.says([redirect(&same.url()), redirect(&other.url())]);
    same.says([ok(EMPTY)]);
    let trust = recognising(&issuer);
    assert!(fetch_spiffe(&first.url(), &trust).await.is_ok());
    let error = fetch_spiffe(&first.url(), &trust).await.unwrap_err();
    assert!(
        error.to_string().contains("not who it should be"),
        "{error}"
    );
    assert_eq!(other.asked(), 0);
}

#[test]
fn f6_the_lead_is_three_times_the_refresh_hint_where_there_are_partners() {
    let alone = FederationConfig::default();
    assert_eq!(alone.lead(), None);
    let open = FederationConfig {
        endpoint: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..alone
    };
    assert_eq!(open.lead(), Some(Duration::from_secs(900)));
}
