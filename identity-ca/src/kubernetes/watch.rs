//! Watches that go on whatever the API server says: they begin anew within seconds, and with a new list wherever what they
//! saw last is too old.

use std::fmt::Debug;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// What the API server says of a version that it no longer knows.
const GONE: u16 = 410;

/// Everything that happens to objects of a kind, for ever. What went wrong is told, too; the watch goes on.
pub(super) fn watch<K>(
    api: Api<K>,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || -> BoxStream<'static, watcher::Result<Event<K>>> {
        watcher(api.clone(), config.clone())
            .backoff(Retry::default())
            .boxed()
    };
    let first = begin();
    stream::unfold((begin, first), |(begin, mut events)| async move {
        let event = events.next().await?;
        if is_gone(&event) {
            // The library would ask for the same version again. Others may be told the same at this moment.
            tokio::time::sleep(Retry::default().next().unwrap_or(FIRST)).await;
            events = begin();
        }
        Some((event, (begin, events)))
    })
}

/// Was the watch refused before it began, because it would begin too early? (Said later, it is an event of the watch, after
/// which the library lists anew by itself.)
fn is_gone<K>(event: &watcher::Result<Event<K>>) -> bool {
    matches!(event, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == GONE)
}

/// Twice as long each time, and by chance up to half of it less, so that not everybody comes back at once.
#[derive(Debug, Default)]
struct Retry(u32);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST.saturating_mul(1 << self.0.min(8)).min(LONGEST);
        self.0 = self.0.saturating_add(1);
        Some(wait.mul_f64(rand::random_range(0.5..=1.0)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::Client;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API server that has a list of nothing, and of no watch will know where it begins.
    async fn forgetful() -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    asked.push(stream.read_u8().await.unwrap());
                }
                let watches = String::from_utf8(asked).unwrap().contains("watch=true");
                let (status, body) = match watches {
                    true => (
                        "410 Gone",
                        json!({
                            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired",
                            "code": 410, "message": "too old resource version: 5 (9)",
                        }),
                    ),
                    false => (
                        "200 OK",
                        json!({
                            "apiVersion": "v1", "kind": "NamespaceList", "items": [],
                            "metadata": {"resourceVersion": "5"},
                        }),
                    ),
                };
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        Client::try_from(config).unwrap()
    }

    #[tokio::test]
    async fn a_watch_that_is_refused_as_too_old_lists_anew() {
        let api: Api<Namespace> = Api::all(forgetful().await);
        let events: Vec<_> = watch(api, Config::default()).take(6).collect().await;
        let seen: Vec<_> = events
            .iter()
            .map(|event| match event {
                Ok(Event::Init) => "list",
                Ok(Event::InitDone) => "listed",
                Err(_) if is_gone(event) => "too old",
                other => panic!("{other:?}"),
            })
            .collect();
        let once = ["list", "listed", "too old"];
        assert_eq!(seen, [once, once].concat());
    }
}
