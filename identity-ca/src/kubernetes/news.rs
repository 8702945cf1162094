//! Events: what whoever wrote an object is told of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};

/// One event.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where API servers before 1.21 have events about what is in no namespace; others have them in `default`.
const OF_NO_NAMESPACE: &str = "kube-system";
/// What a note has at most, with room for the last character.
const NOTE: usize = 1000;

/// Tells it.
#[derive(Clone)]
pub(super) struct News {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
}

impl News {
    pub(super) fn new(client: Client, reporter: Reporter) -> Self {
        Self {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
        }
    }

    /// Tells whoever looks at the object; nobody waits for it.
    pub(super) fn publish(&self, event: Event, about: ObjectReference) {
        let news = self.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(PATIENCE, news.tell(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%error, "an event was not published"),
                Err(_) => tracing::info!("an event was not published in time"),
            }
        });
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
