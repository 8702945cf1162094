//! What a call must have before anything of it is read: a place, and how much it may send by when.
//!
//! This stands in front of every service on the socket, those for reflection and health too. A place is held until the
//! last byte of the answer is written or the caller has gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::limits::{Ledger, Place};
use super::{Peer, metrics};

/// A call's message is there this soon, or of a stream of messages the first one begins.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of messages that say nothing, and questions to health.
const NOTHING: usize = 4 << 10;
/// Audiences of a token.
const AUDIENCES: usize = 16 << 10;
/// A token to be judged, or what an Envoy says of itself.
const LARGE: usize = 64 << 10;

/// Puts [`Admitted`] in front of a service.
#[derive(Debug, Clone)]
pub(super) struct Admission(pub(super) Arc<Ledger>);

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            inner,
            ledger: Arc::clone(&self.0),
        }
    }
}

/// Lets a call through that has a place, within its terms.
#[derive(Debug, Clone)]
pub(super) struct Admitted<S> {
    inner: S,
    ledger: Arc<Ledger>,
}

impl<S, B> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = <Body as http_body::Body>::Data, Error = Status> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Arc<Peer>>();
        let place = match peer.map(|peer| self.ledger.call(peer)) {
            Some(Ok(place)) => place,
            Some(Err(full)) => {
                metrics::refused_call();
                let refusal = Status::unavailable(full.to_string()).into_http();
                return Box::pin(async move { Ok(refusal) });
            }
            None => {
                let refusal = Status::internal("the connection has no peer").into_http();
                return Box::pin(async move { Ok(refusal) });
            }
        };
        let terms = Terms::of(request.uri().path());
        let answer = self
            .inner
            .call(request.map(|body| Body::new(Received::new(body, terms))));
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| {
                let body = Box::pin(body);
                Body::new(Answer {
                    body,
                    _place: place,
                })
            }))
        })
    }
}

/// How much a call may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terms {
    /// One message, of this many bytes with what frames it.
    Whole(usize),
    /// Messages as they come, each bounded by its service.
    Stream,
}

impl Terms {
    fn of(path: &str) -> Self {
        match path.rsplit('/').next().unwrap_or_default() {
            "StreamSecrets" | "DeltaSecrets" | "ServerReflectionInfo" => Self::Stream,
            "FetchJWTSVID" => Self::Whole(AUDIENCES),
            "ValidateJWTSVID" | "FetchSecrets" => Self::Whole(LARGE),
            _ => Self::Whole(NOTHING),
        }
    }
}

/// What a caller sends, as far as it keeps to its terms.
struct Received {
    body: Body,
    /// Bytes that may still come; none: as many as it likes.
    left: Option<usize>,
    stream: bool,
    /// Runs while something is overdue.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Received {
    fn new(body: Body, terms: Terms) -> Self {
        Self {
            body,
            left: match terms {
                Terms::Whole(bytes) => Some(bytes),
                Terms::Stream => None,
            },
            stream: terms == Terms::Stream,
            deadline: Some(Box::pin(tokio::time::sleep(PATIENCE))),
        }
    }
}

impl http_body::Body for Received {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let Some(deadline) = &mut this.deadline else {
                return Poll::Pending;
            };
            ready!(deadline.as_mut().poll(context));
            let late = format!("nothing came within {} s", PATIENCE.as_secs());
            return Poll::Ready(Some(Err(Status::deadline_exceeded(late))));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            if let Some(left) = &mut this.left {
                match left.checked_sub(data.len()) {
                    Some(still) => *left = still,
                    None => {
                        let refusal = "the request is longer than this method takes";
                        return Poll::Ready(Some(Err(Status::out_of_range(refusal))));
                    }
                }
            }
            if this.stream && !data.is_empty() {
                this.deadline = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer with the place of its call.
struct Answer<B> {
    body: Pin<Box<B>>,
    _place: Place,
}

impl<B: http_body::Body> http_body::Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.body.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_has_its_bound_and_what_nobody_knows_the_least() {
        let of = |path| Terms::of(path);
        assert_eq!(
            of("/SpiffeWorkloadAPI/FetchX509SVID"),
            Terms::Whole(NOTHING)
        );
        assert_eq!(
            of("/SpiffeWorkloadAPI/ValidateJWTSVID"),
            Terms::Whole(LARGE)
        );
        assert_eq!(
            of("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"),
            Terms::Stream
        );
        assert_eq!(of("/no/such"), Terms::Whole(NOTHING));
        assert_eq!(of(""), Terms::Whole(NOTHING));
    }
}
