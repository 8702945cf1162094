//! The bundle endpoint: our bundle for everybody who asks, over HTTPS (F-1, F-3).

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::tls::provider;
use crate::Error;

/// Everybody may ask, but not all at once, and not for long.
const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(60);
const MAX_HEADERS: usize = 16 << 10;

/// Gives the bundle as it is now, in SPIFFE's JSON form.
pub(crate) type Current = Arc<dyn Fn() -> Bytes + Send + Sync>;

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    certificate: Arc<dyn ResolvesServerCert>,
    current: Current,
) -> Result<(), Error> {
    let acceptor = TlsAcceptor::from(Arc::new(config(certificate)?));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((tcp, from)) => {
                let (acceptor, current) = (acceptor.clone(), Arc::clone(&current));
                tokio::spawn(async move {
                    if let Err(problem) = answer(tcp, acceptor, current).await {
                        tracing::debug!(%from, problem, "bundle endpoint");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back.
                tracing::warn!(%error, "the bundle endpoint cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(tcp: TcpStream, acceptor: TlsAcceptor, current: Current) -> Result<(), String> {
    let stream = timeout(HANDSHAKE, acceptor.accept(tcp)).await;
    let stream = stream
        .map_err(|_| "no handshake within 10 s".to_owned())?
        .map_err(|error| error.to_string())?;
    let service = service_fn(move |request| {
        let response = respond(&request, &current);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let served = timeout(CONNECTION, connection).await;
    served
        .map_err(|_| "open for longer than a minute".to_owned())?
        .map_err(|error| error.to_string())
}

fn respond(request: &Request<Incoming>, current: &Current) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/" {
        return plain(StatusCode::NOT_FOUND, "the bundle is at /\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET the bundle\n");
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    let mut response = Response::new(Full::new(current()));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    response
}

fn config(certificate: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Crypto(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A certificate in files, such as one of the Web PKI: read again when they
/// change, since they live for weeks.
#[derive(Debug)]
pub(crate) struct FileCertificate {
    chain: PathBuf,
    key: PathBuf,
    loaded: RwLock<(Arc<CertifiedKey>, Option<SystemTime>)>,
}

impl FileCertificate {
    pub(crate) fn open(chain: &Path, key: &Path) -> Result<Self, Error> {
        let at = modified(chain);
        Ok(Self {
            loaded: RwLock::new((read(chain, key)?, at)),
            chain: chain.to_owned(),
            key: key.to_owned(),
        })
    }

    /// A pair that cannot be read, half written perhaps, leaves the old one in
    /// its place.
    fn look_again(&self) {
        let at = modified(&self.chain);
        let known = self.loaded.read().unwrap_or_else(PoisonError::into_inner).1;
        if at == known {
            return;
        }
        match read(&self.chain, &self.key) {
            Ok(fresh) => {
                let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
                *loaded = (fresh, at);
            }
            Err(error) => tracing::warn!(%error, "the bundle endpoint keeps its old certificate"),
        }
    }
}

impl ResolvesServerCert for FileCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.look_again();
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&loaded.0))
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .ok()
}

fn read(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, Error> {
    let bad = |path: &Path, problem: String| Error::invalid(path.display().to_string(), problem);
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| bad(chain, format!("no certificate in PEM: {error}")))?;
    let der = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| bad(key, format!("no private key in PEM: {error}")))?;
    let certified = CertifiedKey::from_der(certificates, der, &provider()).map_err(|error| {
        bad(
            key,
            format!("it does not go with {}: {error}", chain.display()),
        )
    })?;
    Ok(Arc::new(certified))
}
