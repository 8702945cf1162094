//! A caller of the Workload API: `handfast svid fetch`, and tests.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use super::proto::{JwtsvidRequest, JwtsvidResponse, X509svidRequest, X509svidResponse};

/// Where a workload is told to find the endpoint (W-15).
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// A connection to an endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    calls: SpiffeWorkloadApiClient<Channel>,
}

impl Client {
    /// Connects to the Unix socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            calls: SpiffeWorkloadApiClient::new(channel(path).await?),
        })
    }

    /// The caller's X509-SVIDs as they are now.
    ///
    /// # Errors
    /// No entry matches the caller, or the endpoint has none for now.
    pub async fn x509_svids(&self) -> Result<X509svidResponse, Status> {
        let call = call(X509svidRequest {});
        let mut stream = self.calls.clone().fetch_x509svid(call).await?.into_inner();
        let first = stream.message().await?;
        first.ok_or_else(|| Status::unavailable("the stream ended before it began"))
    }

    /// JWT-SVIDs for `audiences`; of one identity, or of all that the caller has.
    ///
    /// # Errors
    /// As [`Client::x509_svids`]; no audience is named, or the identity is not the caller's.
    pub async fn jwt_svids(
        &self,
        audiences: Vec<String>,
        spiffe_id: Option<String>,
    ) -> Result<JwtsvidResponse, Status> {
        let call = call(JwtsvidRequest {
            audience: audiences,
            spiffe_id: spiffe_id.unwrap_or_default(),
        });
        let response = self.calls.clone().fetch_jwtsvid(call).await?;
        Ok(response.into_inner())
    }
}

/// The path of a socket as [`SOCKET_VARIABLE`] gives it: `unix:///path` (W-15).
///
/// # Errors
/// It is of another form. `tcp://` is one that handfast does not serve: over it nobody knows who calls.
pub fn socket_path(address: &str) -> Result<PathBuf, String> {
    let path = address.strip_prefix("unix://").or_else(|| {
        let path = address.strip_prefix("unix:")?;
        path.starts_with('/').then_some(path)
    });
    match path {
        Some(path) if path.starts_with('/') && !path.contains(['?', '#']) => Ok(path.into()),
        _ => Err(format!(
            "{address:?} is no socket's address; write unix:///run/handfast/agent.sock"
        )),
    }
}

/// A channel to the Unix socket at `path`.
///
/// # Errors
/// Nobody listens there.
pub async fn channel(path: &Path) -> io::Result<Channel> {
    // Once by hand, for an error that says what is wrong.
    UnixStream::connect(path).await?;
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)
}

/// A call with the security header (W-7).
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", header);
    request
}
