//! What both kinds of SDS stream have in common: requests and states come, responses go.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::super::caller::States;
use super::super::proto::google::rpc;
use super::super::{Material, metrics};
use super::secret::SECRET_TYPE;

/// Names that one stream may ask for.
const MAX_NAMES: usize = 256;
/// The longest name of a secret is a SPIFFE ID (ID-6).
const MAX_NAME: usize = 2048;
/// Of an Envoy's complaint, this much is logged.
const MAX_COMPLAINT: usize = 512;

/// One stream's side of the conversation: values in, values out.
pub(super) trait Session: Default + Send + 'static {
    /// What the proxy sends.
    type Request: Send + 'static;
    /// What it gets.
    type Response: Send + 'static;

    /// Takes a request in. An error ends the stream.
    fn request(&mut self, request: Self::Request) -> Result<(), Status>;

    /// What is to be said now, if anything.
    fn response(&mut self, material: &Material) -> Result<Option<Self::Response>, Status>;
}

/// Holds a session until either side has enough.
pub(super) fn run<S: Session>(
    mut requests: Streaming<S::Request>,
    mut material: Material,
    mut states: States,
) -> impl Stream<Item = Result<S::Response, Status>> {
    // One response waits for the proxy; meanwhile states are passed over, and the newest is next.
    let (sender, responses) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut session = S::default();
        loop {
            let step = tokio::select! {
                () = sender.closed() => return,
                request = requests.message() => match request {
                    Ok(Some(request)) => session.request(request),
                    Ok(None) => return,
                    // Too long, too late or not understood: it hears why.
                    Err(status) => Err(status),
                },
                now = states.next() => now.map(|now| material = now),
            };
            let response = match step.and_then(|()| session.response(&material)) {
                Ok(None) => continue,
                Ok(Some(response)) => Ok(response),
                Err(status) => Err(status),
            };
            let ended = response.is_err();
            if sender.send(response).await.is_err() || ended {
                return;
            }
        }
    });
    ReceiverStream::new(responses)
}

/// A stream carries secrets only.
pub(super) fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET_TYPE {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "this service has resources of type {SECRET_TYPE} only"
    )))
}

/// Bounds what a proxy can make us remember: how many names, and how long.
pub(super) fn check_names<'a>(
    names: impl ExactSizeIterator<Item = &'a String>,
) -> Result<(), Status> {
    if names.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!(
            "more than {MAX_NAMES} secrets on one stream"
        )));
    }
    for name in names {
        if name.len() > MAX_NAME {
            return Err(Status::invalid_argument(format!(
                "the name of a secret is longer than {MAX_NAME} bytes"
            )));
        }
    }
    Ok(())
}

/// A proxy refused what it got: it goes on with what it had.
pub(super) fn refused(version: &str, detail: &rpc::Status) {
    metrics::sds_rejected();
    // One a second is enough to know, and nobody can fill the log.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = crate::clock::boot().as_secs();
    if LAST.swap(now, Ordering::Relaxed) != now {
        let complaint: String = detail.message.chars().take(MAX_COMPLAINT).collect();
        tracing::warn!(
            version,
            code = detail.code,
            complaint,
            "an Envoy refused its secrets"
        );
    }
}
