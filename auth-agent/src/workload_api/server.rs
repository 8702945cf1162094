//! Serves the socket: what is on it, within which bounds, and how it ends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use super::admission::Admission;
use super::caller::Callers;
use super::limits::Ledger;
use super::proto::DESCRIPTORS;
use super::proto::envoy::service::secret::v3::secret_discovery_service_server as sds;
use super::proto::spiffe_workload_api_server::{SERVICE_NAME, SpiffeWorkloadApiServer};
use super::sds::Sds;
use super::spiffe::{WorkloadApi, check_header};
use super::{Limits, Peer, Source, listen, metrics};

/// Calls on one connection at a time.
const MAX_STREAMS: u32 = 64;
/// The longest message that a caller may send.
const MAX_MESSAGE: usize = 64 * 1024;
/// All headers of a call.
const MAX_HEADERS: u32 = 16 * 1024;
/// Frames that the authority's filter and HTTP/2 agree on.
const MAX_FRAME: u32 = 16 * 1024;
/// Bytes of a question to reflection or health.
const MAX_QUESTION: usize = 4096;
/// Bytes that a caller may send ahead.
const WINDOW: u32 = 64 * 1024;
/// After its end has been told to all, the endpoint waits so long for connections to close.
const FAREWELL: Duration = Duration::from_secs(2);

/// A running endpoint.
#[derive(Debug)]
pub struct Endpoint {
    path: PathBuf,
    stop: watch::Sender<()>,
    running: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Serves the Workload API and SDS on a Unix socket at `path`, which everybody on the node may connect to. A stale
/// socket there is replaced. To be called inside a tokio runtime.
///
/// # Errors
/// The folder cannot be made or written, something that is no socket is in the way, or the path is longer than a
/// socket's may be (107 bytes).
pub fn serve(path: &Path, source: Arc<dyn Source>, limits: Limits) -> io::Result<Endpoint> {
    metrics::describe();
    listen::raise_descriptor_limit();
    if !Peer::is_exact() {
        tracing::warn!(
            "this kernel does not name the process of a socket (SO_PEERPIDFD, Linux 6.5): callers of the Workload API are \
             found by process number, which is safe but for numbers that come round between connecting and being accepted"
        );
    }
    let listener = listen::bind(path)?;
    let (stop, stopping) = watch::channel(());
    let ledger = Ledger::new(limits);
    let callers = Callers::new(source, stopping.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let workload_api = SpiffeWorkloadApiServer::new(WorkloadApi::new(callers.clone()))
        .max_decoding_message_size(MAX_MESSAGE);
    let secrets = sds::SecretDiscoveryServiceServer::new(Sds::new(callers))
        .max_decoding_message_size(MAX_MESSAGE);
    // What these are asked is a name.
    let health = health.max_decoding_message_size(MAX_QUESTION);
    let v1 = reflection().build_v1().map_err(io::Error::other)?;
    let v1alpha = reflection().build_v1alpha().map_err(io::Error::other)?;
    let router = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        // What a caller sends and nobody has read yet.
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(MAX_HEADERS)
        .max_frame_size(MAX_FRAME)
        .layer(Admission(Arc::clone(&ledger)))
        .add_service(InterceptedService::new(workload_api, check_header))
        .add_service(secrets)
        .add_service(health)
        .add_service(v1.max_decoding_message_size(MAX_QUESTION))
        .add_service(v1alpha.max_decoding_message_size(MAX_QUESTION));
    let connections = listen::connections(listener, ledger);
    let running = tokio::spawn(async move {
        for service in [SERVICE_NAME, sds::SERVICE_NAME] {
            let serving = tonic_health::ServingStatus::Serving;
            reporter.set_service_status(service, serving).await;
        }
        let mut stopping = stopping;
        let stopped = async move {
            let _ = stopping.changed().await;
        };
        router
            .serve_with_incoming_shutdown(connections, stopped)
            .await
    });
    tracing::info!(path = %path.display(), "the Workload API is served");
    Ok(Endpoint {
        path: path.to_owned(),
        stop,
        running,
    })
}

impl Endpoint {
    /// Ends every stream with Unavailable, takes the socket away and waits a little for callers to leave.
    pub async fn stop(mut self) {
        // Who tries again at once shall find nothing rather than a server that takes no more.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the Workload API socket was gone");
        }
        drop(self.stop);
        if tokio::time::timeout(FAREWELL, &mut self.running)
            .await
            .is_err()
        {
            self.running.abort();
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
