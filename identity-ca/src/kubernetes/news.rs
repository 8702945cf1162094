//! Events: what whoever wrote an object is told of it, in the order in which it happened, and though the API server is
//! slow or away for a while.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// One attempt.
const PATIENCE: Duration = Duration::from_secs(5);
/// What failed is tried again after this, and after twice that.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// An event that could not be told for so long is given up: others wait behind it.
const LIMIT: Duration = Duration::from_secs(300);
/// Events that wait.
const WAITING: usize = 1024;
/// Where API servers before 1.21 have events about what is in no namespace; others have them in `default`.
const OF_NO_NAMESPACE: &str = "kube-system";
/// What a note has at most, with room for the last character.
const NOTE: usize = 1000;

/// Takes events, and has them told.
#[derive(Clone)]
pub(super) struct News {
    waiting: mpsc::Sender<(Event, ObjectReference)>,
}

impl News {
    pub(super) fn new(client: Client, reporter: Reporter) -> Self {
        let (waiting, told) = mpsc::channel(WAITING);
        let teller = Teller {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
        };
        tokio::spawn(teller.run(told));
        Self { waiting }
    }

    /// Tells whoever looks at the object; nobody waits for it.
    pub(super) fn publish(&self, event: Event, about: ObjectReference) {
        if let Err(error) = self.waiting.try_send((event, about)) {
            tracing::warn!(%error, "an event was not published");
        }
    }
}

/// Tells events one after another, so that what was mended is never followed by its mistake.
struct Teller {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
}

impl Teller {
    /// Until nobody has events any more.
    async fn run(self, mut waiting: mpsc::Receiver<(Event, ObjectReference)>) {
        while let Some((event, about)) = waiting.recv().await {
            let began = Instant::now();
            let mut pause = PAUSE;
            loop {
                let told = tokio::time::timeout(PATIENCE, self.tell(&event, &about)).await;
                let (problem, refused) = match told {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => (super::chain(&error), refused(&error)),
                    Err(_) => ("no answer in time".to_owned(), false),
                };
                let object = about.name.as_deref().unwrap_or_default();
                if refused || began.elapsed() >= LIMIT {
                    tracing::warn!(problem, object, "an event was not published");
                    break;
                }
                tracing::info!(problem, object, "an event waits to be published");
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }

    async fn tell(&self, event: &Event, about: &ObjectReference) -> kube::Result<()> {
        match self.recorder.publish(event, about).await {
            Err(kube::Error::Api(status)) if status.code == 422 && about.namespace.is_none() => {
                let events: Api<Written> = Api::namespaced(self.client.clone(), OF_NO_NAMESPACE);
                let written = self.written(event, about);
                events
                    .create(&PostParams::default(), &written)
                    .await
                    .map(drop)
            }
            told => told,
        }
    }

    fn written(&self, event: &Event, about: &ObjectReference) -> Written {
        let now = Timestamp::now();
        // Names of events are those of objects and may not be longer.
        let name: String = about
            .name
            .iter()
            .flat_map(|name| name.chars())
            .take(200)
            .collect();
        let name = name.trim_end_matches(['.', '-']);
        let type_ = match event.type_ {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        Written {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(OF_NO_NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            regarding: Some(about.clone()),
            type_: Some(type_.to_owned()),
            reason: Some(event.reason.clone()),
            note: event.note.clone(),
            action: Some(event.action.clone()),
            reporting_controller: Some(self.reporter.controller.clone()),
            reporting_instance: self.reporter.instance.clone(),
            ..Written::default()
        }
    }
}

/// Would the API server say the same again? It asks itself to be tried again, or to be asked by somebody it knows by then.
fn refused(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429)
        }
        _ => false,
    }
}

/// An event's note has at most a kilobyte.
pub(super) fn note(text: &str) -> String {
    let mut note = String::new();
    for character in text.chars() {
        if note.len() + character.len_utf8() > NOTE {
            note.push('…');
            break;
        }
        note.push(character);
    }
    note
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Takes one request and answers it; its body.
    async fn answer(listener: &TcpListener, status: u16) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut said = String::new();
        let length = |said: &str| {
            let (head, body) = said.split_once("\r\n\r\n")?;
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1)?.lines().next()?;
            Some((length.parse::<usize>().unwrap(), body.len()))
        };
        while length(&said).is_none_or(|(whole, there)| there < whole) {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "{said}");
            said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        let body = said.split_once("\r\n\r\n").unwrap().1.to_owned();
        let answer = match status {
            201 => body.clone(),
            code => {
                format!(r#"{{"kind":"Status","status":"Failure","message":"no","code":{code}}}"#)
            }
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        stream.write_all((head + &answer).as_bytes()).await.unwrap();
        body
    }

    #[tokio::test]
    async fn an_event_that_the_api_server_could_not_take_is_told_later_and_before_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let news = News::new(client, "test".into());
        for reason in ["Forbidden", "Refused", "Accepted"] {
            let event = Event {
                type_: EventType::Warning,
                reason: reason.to_owned(),
                note: None,
                action: "Check".to_owned(),
                secondary: None,
            };
            let about = ObjectReference {
                name: Some("web".to_owned()),
                namespace: Some("shop".to_owned()),
                ..ObjectReference::default()
            };
            news.publish(event, about);
        }
        let answers = [
            (403, "Forbidden"),
            (503, "Refused"),
            (429, "Refused"),
            (201, "Refused"),
            (201, "Accepted"),
        ];
        for (status, expected) in answers {
            let said = answer(&listener, status).await;
            let event: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!(event["reason"], expected, "{event}");
        }
    }
}
