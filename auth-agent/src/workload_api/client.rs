//! A caller of the Workload API: `handfast svid fetch`, and tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use handfast_ca::bundle::pem;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use super::proto::{JwtsvidRequest, X509svid, X509svidRequest};
use crate::files::{self, FileError};

/// Where a workload is told to find the endpoint (W-15).
pub const SOCKET_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers.
    #[error("no Workload API at {path}: {source}; does `handfast agent run` run here?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// This process has no identity, or not the one that it asked for.
    #[error(
        "{0}; `handfast entry list` on the CA shows what an entry's selectors ask of a process"
    )]
    Denied(String),
    /// The endpoint does not serve this now, or not so.
    #[error("the Workload API answers {code:?}: {message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// What it sent is not what the specification says.
    #[error("the Workload API sent {0}")]
    Malformed(&'static str),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<Status> for FetchError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::Denied(message),
            code => Self::Refused { code, message },
        }
    }
}

/// What a workload has.
#[derive(Debug)]
pub struct X509Fetched {
    /// The first is the default.
    pub svids: Vec<FetchedSvid>,
    /// CAs of other trust domains as PEM, by the trust domain's SPIFFE ID.
    pub federated: BTreeMap<String, String>,
}

/// One identity with its key.
#[derive(Debug)]
pub struct FetchedSvid {
    /// Whose it is.
    pub spiffe_id: String,
    /// Tells several apart; may be empty.
    pub hint: String,
    /// The leaf's serial number, hexadecimal.
    pub serial: String,
    /// Unix seconds.
    pub not_after: u64,
    /// PEM, leaf first.
    pub chain: String,
    /// PEM, PKCS#8.
    pub key: Zeroizing<String>,
    /// The trust domain's CAs, PEM.
    pub bundle: String,
}

/// A JWT-SVID.
#[derive(Debug)]
pub struct JwtFetched {
    /// Whose it is.
    pub spiffe_id: String,
    /// Tells several apart; may be empty.
    pub hint: String,
    /// Compact JWS.
    pub token: Zeroizing<String>,
}

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
    pub async fn connect(path: &Path) -> Result<Self, FetchError> {
        Ok(Self {
            calls: SpiffeWorkloadApiClient::new(channel(path).await?),
        })
    }

    /// The caller's X509-SVIDs as they are now.
    ///
    /// # Errors
    /// No entry matches the caller, or the endpoint has none for now.
    pub async fn x509_svids(&self) -> Result<X509Fetched, FetchError> {
        let call = call(X509svidRequest {});
        let mut stream = self.calls.clone().fetch_x509svid(call).await?.into_inner();
        let first = stream.message().await?;
        let first = first.ok_or(FetchError::Malformed("nothing"))?;
        let federated = first.federated_bundles.into_iter().map(|(name, der)| {
            let bundle = certificates(&der).ok_or(FetchError::Malformed("a malformed bundle"))?;
            Ok((name, bundle))
        });
        Ok(X509Fetched {
            svids: first
                .svids
                .into_iter()
                .map(FetchedSvid::read)
                .collect::<Result<_, _>>()?,
            federated: federated.collect::<Result<_, FetchError>>()?,
        })
    }

    /// JWT-SVIDs for `audiences`; of one identity, or of all that the caller has.
    ///
    /// # Errors
    /// As [`Client::x509_svids`]; no audience is named, or the identity is not the caller's.
    pub async fn jwt_svids(
        &self,
        audiences: Vec<String>,
        spiffe_id: Option<String>,
    ) -> Result<Vec<JwtFetched>, FetchError> {
        let call = call(JwtsvidRequest {
            audience: audiences,
            spiffe_id: spiffe_id.unwrap_or_default(),
        });
        let response = self.calls.clone().fetch_jwtsvid(call).await?.into_inner();
        let svids = response.svids.into_iter().map(|svid| JwtFetched {
            spiffe_id: svid.spiffe_id,
            hint: svid.hint,
            token: Zeroizing::new(svid.svid),
        });
        Ok(svids.collect())
    }
}

impl FetchedSvid {
    fn read(svid: X509svid) -> Result<Self, FetchError> {
        let key = Zeroizing::new(svid.x509_svid_key);
        let malformed = || FetchError::Malformed("a malformed X509-SVID");
        let (_, leaf) = X509Certificate::from_der(&svid.x509_svid).map_err(|_| malformed())?;
        Ok(Self {
            spiffe_id: svid.spiffe_id,
            hint: svid.hint,
            serial: data_encoding::HEXLOWER.encode(leaf.raw_serial()),
            not_after: u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0),
            chain: certificates(&svid.x509_svid).ok_or_else(malformed)?,
            key: Zeroizing::new(pem("PRIVATE KEY", &key)),
            bundle: certificates(&svid.bundle).ok_or_else(malformed)?,
        })
    }
}

impl X509Fetched {
    /// Writes `svid.N.pem`, `svid.N.key`, `bundle.N.pem` and `federated_bundle.N.M.pem` to `folder`, each in one
    /// step and for its owner only. Gives back their paths.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, FetchError> {
        files::private_dir(folder)?;
        let mut written = Vec::new();
        let mut put = |name: String, text: &str| {
            let path = folder.join(name);
            files::write(&path, text.as_bytes())?;
            written.push(path);
            Ok::<(), FileError>(())
        };
        for (number, svid) in self.svids.iter().enumerate() {
            put(format!("svid.{number}.pem"), &svid.chain)?;
            put(format!("svid.{number}.key"), &svid.key)?;
            put(format!("bundle.{number}.pem"), &svid.bundle)?;
            for (other, bundle) in self.federated.values().enumerate() {
                put(format!("federated_bundle.{number}.{other}.pem"), bundle)?;
            }
        }
        Ok(written)
    }
}

impl JwtFetched {
    /// Writes each token to a file `jwt_svid.N.token` in `folder`, as [`X509Fetched::write`] does.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(svids: &[Self], folder: &Path) -> Result<Vec<PathBuf>, FetchError> {
        files::private_dir(folder)?;
        let mut written = Vec::new();
        for (number, svid) in svids.iter().enumerate() {
            let path = folder.join(format!("jwt_svid.{number}.token"));
            files::write(&path, svid.token.as_bytes())?;
            written.push(path);
        }
        Ok(written)
    }
}

/// Concatenated DER as PEM; none if it is not certificates and nothing else.
fn certificates(mut der: &[u8]) -> Option<String> {
    let mut text = String::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        let (one, _) = der.split_at_checked(der.len().checked_sub(rest.len())?)?;
        text.push_str(&pem("CERTIFICATE", one));
        der = rest;
    }
    Some(text)
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
pub async fn channel(path: &Path) -> Result<Channel, FetchError> {
    let unreachable = |source| FetchError::Connect {
        path: path.to_owned(),
        source,
    };
    // Once by hand, for an error that says what is wrong.
    UnixStream::connect(path).await.map_err(unreachable)?;
    let owned = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = owned.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(std::io::Error::other(error)))
}

/// A call with the security header (W-7).
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", header);
    request
}
