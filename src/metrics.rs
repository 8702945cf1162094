//! Metrics and health over HTTP, of the CA and of the agent: `/metrics` (Prometheus), `/healthz`, `/readyz`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Scrapers and probes at once; more wait for their turn.
const MAX_CONNECTIONS: usize = 16;
/// A request that takes longer to arrive, or an answer to be taken, ends its connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often old observations leave the histograms' buffers.
const UPKEEP: Duration = Duration::from_secs(5);

/// Upper bounds of the latency histograms' buckets, seconds: 0.1 ms to 10 s.
const BUCKETS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Where metrics are gathered. Made before anything is counted: what is counted earlier is lost.
pub struct Metrics(Option<(PrometheusHandle, TcpListener)>);

impl Metrics {
    /// Takes the address, so that one that is in use is an error at the start.
    pub async fn bind(place: Place) -> anyhow::Result<Self> {
        let Place::At(address) = place else {
            return Ok(Self(None));
        };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve metrics on {address}; --metrics gives another address, --metrics off none"))?;
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
            .context("metrics")?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).context("metrics")?;
        Ok(Self(Some((handle, listener))))
    }

    /// Serves for as long as the process runs. `ready` answers `/readyz`: no reason means yes.
    pub fn serve(self, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let Some((handle, listener)) = self.0 else {
            return;
        };
        let upkeep = handle.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        tokio::spawn(accept(listener, handle, Arc::new(ready)));
    }
}

type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

async fn accept(listener: TcpListener, handle: PrometheusHandle, ready: Ready) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (handle, ready) = (handle.clone(), Arc::clone(&ready));
                tokio::spawn(async move {
                    // A scraper that breaks off is its own business.
                    let _ = tokio::time::timeout(PATIENCE, connection(stream, handle, ready)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    handle: PrometheusHandle,
    ready: Ready,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let response = answer(&request, &handle, &ready);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(64)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(
    request: &Request<Incoming>,
    handle: &PrometheusHandle,
    ready: &Ready,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, handle.render()),
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match ready() {
            Ok(()) => text(StatusCode::OK, "ready\n".to_owned()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// The value of `--metrics`: an address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Served there.
    At(SocketAddr),
    /// Not served.
    Off,
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| "write IP:PORT, or off".to_owned()),
        }
    }
}
