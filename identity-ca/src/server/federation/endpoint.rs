//! Our bundle, for whoever federates with us.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Bytes;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;

use super::super::listen;
use super::super::state::State;
use crate::Error;
use crate::federation::FederationConfig;
use crate::federation::serve::{self, FileCertificate};

/// An endpoint that is bound, with what it shows if that is not our SVID.
pub(in crate::server) struct Bound {
    listener: TcpListener,
    files: Option<FileCertificate>,
}

impl Bound {
    pub(in crate::server) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }
}

/// Binds the endpoint, if one is wanted: what can fail fails at the start.
pub(in crate::server) async fn bind(config: &FederationConfig) -> Result<Option<Bound>, Error> {
    let Some(address) = config.endpoint else {
        return Ok(None);
    };
    let files = match &config.web_certificate {
        Some((chain, key)) => Some(FileCertificate::open(chain, key)?),
        None => None,
    };
    let listener = listen::tcp(address).await?;
    Ok(Some(Bound { listener, files }))
}

/// Serves until it is dropped.
pub(in crate::server) async fn serve(state: Arc<State>, bound: Bound) {
    let certificate: Arc<dyn ResolvesServerCert> = match bound.files {
        Some(files) => Arc::new(files),
        None => Arc::<super::super::state::OwnCertificate>::clone(&state.certificate),
    };
    let hint = state.federation.refresh_hint.as_secs();
    let current: serve::Current = Arc::new(move || {
        let bundle = state.now().bundle.as_ref().clone().with_refresh_hint(hint);
        Bytes::from(bundle.to_spiffe_json().to_string())
    });
    if let Err(error) = serve::serve(bound.listener, certificate, current).await {
        tracing::error!(%error, "the bundle endpoint has ended");
    }
}
