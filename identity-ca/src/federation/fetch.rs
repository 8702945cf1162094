//! Fetching a bundle: one GET over HTTPS, bounded in time, size and redirects.

use std::sync::PoisonError;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Position};

pub(crate) use super::tls::web_roots;
use super::tls::{self, Refused};
use super::{Endpoint, Profile};
use crate::Error;
use crate::bundle::{MAX_JSON, Read, TrustBundle};
use crate::verify::Verifier;

/// For all of it, redirects too.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;

/// What an endpoint is recognised by.
pub(crate) enum Trust {
    /// The Web PKI's roots.
    Web(RootCertStore),
    /// The latest bundle of the endpoint's trust domain (F-4).
    Spiffe(Verifier),
}

/// Fetches the bundle of a trust domain (F-3).
pub(crate) async fn fetch(
    trust_domain: &spiffe::TrustDomain,
    endpoint: &Endpoint,
    trust: &Trust,
) -> Result<Read, Error> {
    let text = timeout(PATIENCE, follow(endpoint, trust)).await;
    let text = text.map_err(|_| unreachable(endpoint, "no bundle came within 10 s"))??;
    TrustBundle::from_spiffe_json(trust_domain.clone(), &text)
}

/// F-5: redirects lead to the next URL for this once; the rules stay the same.
async fn follow(endpoint: &Endpoint, trust: &Trust) -> Result<Bytes, Error> {
    let mut at = endpoint.clone();
    for _ in 0..=MAX_REDIRECTS {
        let response = get(&at, trust).await?;
        let status = response.status();
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let nowhere = || unreachable(&at, format!("it answers {status} and says not where"));
            at = at.redirected(location.ok_or_else(nowhere)?)?;
            continue;
        }
        if status != StatusCode::OK {
            return Err(unreachable(&at, format!("it answers {status}")));
        }
        let body = Limited::new(response.into_body(), MAX_JSON).collect().await;
        return body
            .map(|body| body.to_bytes())
            .map_err(|error| unreachable(&at, format!("its bundle did not come whole: {error}")));
    }
    Err(unreachable(endpoint, "it redirects without end"))
}

async fn get(endpoint: &Endpoint, trust: &Trust) -> Result<Response<Incoming>, Error> {
    let url = endpoint.url();
    let failed = |problem: String| unreachable(endpoint, problem);
    let name = match url.host() {
        Some(Host::Domain(domain)) => {
            ServerName::try_from(domain.to_owned()).map_err(|error| failed(error.to_string()))?
        }
        Some(Host::Ipv4(address)) => ServerName::from(std::net::IpAddr::from(address)),
        Some(Host::Ipv6(address)) => ServerName::from(std::net::IpAddr::from(address)),
        None => return Err(failed("it names no host".to_owned())),
    };
    let (config, refused) = match (endpoint.profile(), trust) {
        (Profile::Web, Trust::Web(roots)) => (tls::web(roots.clone())?, Refused::default()),
        (Profile::Spiffe(id), Trust::Spiffe(verifier)) => {
            tls::spiffe(verifier.clone(), id.clone())?
        }
        _ => {
            return Err(Error::Protocol(
                "the wrong trust for an endpoint".to_owned(),
            ));
        }
    };
    let host = url
        .host_str()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let tcp = TcpStream::connect((host, port)).await;
    let tcp = tcp.map_err(|error| failed(error.to_string()))?;
    let stream = TlsConnector::from(config).connect(name, tcp).await;
    let stream = stream.map_err(|error| {
        let rejection = refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match rejection {
            Some(rejection) => failed(format!("it is not who it should be: {rejection}")),
            None => failed(format!("TLS: {error}")),
        }
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(error.to_string()))?;
    // Ends with the answer, or with the time that all of it has.
    tokio::spawn(timeout(PATIENCE, connection));
    let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("handfast/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let response = sender.send_request(request).await;
    response.map_err(|error| failed(error.to_string()))
}

fn unreachable(endpoint: &Endpoint, problem: impl Into<String>) -> Error {
    Error::Unreachable {
        address: format!("the bundle endpoint {}", endpoint.url()),
        problem: problem.into(),
    }
}
