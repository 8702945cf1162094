//! The same calls for two kinds of callers: who has joined may say much at once, who has not only as much as joining
//! takes.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::listen::Peer;

/// What a join or an attestation takes at most, with room for chains of certificates.
pub(super) const MAX_STRANGERS_MESSAGE: usize = 64 << 10;

/// One service with two bounds.
#[derive(Debug, Clone)]
pub(super) struct ByCaller<S> {
    /// For who has shown a node's certificate.
    pub(super) joined: S,
    /// For everybody else.
    pub(super) strangers: S,
}

impl<S: NamedService> NamedService for ByCaller<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for ByCaller<S>
where
    S: Service<http::Request<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.joined.poll_ready(context) {
            Poll::Ready(Ok(())) => self.strangers.poll_ready(context),
            other => other,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let peer = request.extensions().get::<Peer>();
        if peer.is_some_and(|peer| peer.node.is_some()) {
            self.joined.call(request)
        } else {
            self.strangers.call(request)
        }
    }
}
