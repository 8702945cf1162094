//! Calls that are carried to their end, also when the caller hangs up or has set a deadline: what was changed is also
//! written down. For those who are known: work that nobody waits for is work that strangers could pile up.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// A service whose calls do not end early.
#[derive(Debug, Clone)]
pub(super) struct ToItsEnd<S>(pub(super) S);

impl<S: NamedService> NamedService for ToItsEnd<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for ToItsEnd<S>
where
    S: Service<http::Request<Body>, Error = Infallible>,
    S::Response: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = tokio::spawn(self.0.call(request));
        Box::pin(async move {
            match call.await {
                Ok(answer) => answer,
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            }
        })
    }
}
