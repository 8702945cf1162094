//! Verdicts for people: the last ones remembered, new ones handed to whoever watches.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

use crate::admin::{ObserveFilter, Observed};
use crate::metrics;

/// Verdicts that are remembered for a watcher who comes later.
const REMEMBERED: usize = 2048;

/// The last verdicts, and who watches.
#[derive(Debug)]
pub(super) struct History {
    last: VecDeque<Observed>,
    watchers: broadcast::Sender<Observed>,
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            last: VecDeque::with_capacity(REMEMBERED),
            watchers: broadcast::Sender::new(REMEMBERED),
        }
    }

    /// Takes a verdict in; a watcher that is too slow misses some, never the other way round.
    pub(super) fn record(&mut self, event: Observed) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(event.clone());
        // Nobody watching is the usual case.
        let _ = self.watchers.send(event);
    }

    /// What a watcher gets: what is remembered, then (with `follow`) what comes.
    pub(super) fn watch(&self, filter: ObserveFilter) -> mpsc::Receiver<Value> {
        let (sender, receiver) = mpsc::channel(64);
        let remembered: Vec<Observed> = self
            .last
            .iter()
            .filter(|event| matches(&filter, event))
            .cloned()
            .collect();
        let mut coming = self.watchers.subscribe();
        tokio::spawn(async move {
            for event in remembered {
                if send(&sender, &event).await.is_err() {
                    return;
                }
            }
            if !filter.follow {
                return;
            }
            loop {
                let event = tokio::select! {
                    event = coming.recv() => event,
                    () = sender.closed() => return,
                };
                match event {
                    Ok(event) if matches(&filter, &event) => {
                        if send(&sender, &event).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        metrics::watcher_lagged(missed);
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        receiver
    }
}

async fn send(sender: &mpsc::Sender<Value>, event: &Observed) -> Result<(), ()> {
    let value = serde_json::to_value(event).map_err(drop)?;
    sender.send(value).await.map_err(drop)
}

fn matches(filter: &ObserveFilter, event: &Observed) -> bool {
    let end = |wanted: &Option<String>, address: std::net::IpAddr, identity: &Option<String>| {
        wanted.as_ref().is_none_or(|wanted| {
            address.to_string().contains(wanted.as_str())
                || identity
                    .as_ref()
                    .is_some_and(|id| id.contains(wanted.as_str()))
        })
    };
    end(&filter.from, event.tuple.source, &event.from)
        && end(&filter.to, event.tuple.destination, &event.to)
        && filter
            .verdict
            .as_ref()
            .is_none_or(|verdict| *verdict == event.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Tuple;

    fn event(verdict: &str, from: &str) -> Observed {
        Observed {
            time: 0.0,
            verdict: verdict.into(),
            reason: "test".into(),
            gate: "to-tunnel".into(),
            direction: "egress".into(),
            tuple: Tuple {
                source: "10.0.0.1".parse().unwrap(),
                source_port: 1,
                destination: "10.0.0.2".parse().unwrap(),
                destination_port: 2,
                protocol: "tcp".into(),
            },
            from: Some(from.into()),
            to: None,
            rule: None,
        }
    }

    #[tokio::test]
    async fn a_watcher_gets_what_is_remembered_and_then_what_comes_filtered() {
        let mut history = History::new();
        history.record(event("dropped", "spiffe://td/a"));
        history.record(event("forwarded", "spiffe://td/b"));
        let mut watcher = history.watch(ObserveFilter {
            verdict: Some("dropped".into()),
            follow: true,
            ..ObserveFilter::default()
        });
        assert_eq!(watcher.recv().await.unwrap()["from"], "spiffe://td/a");
        history.record(event("dropped", "spiffe://td/c"));
        assert_eq!(watcher.recv().await.unwrap()["from"], "spiffe://td/c");
    }

    #[tokio::test]
    async fn without_follow_the_stream_ends() {
        let mut history = History::new();
        history.record(event("held", "spiffe://td/a"));
        let mut watcher = history.watch(ObserveFilter::default());
        assert!(watcher.recv().await.is_some());
        assert!(watcher.recv().await.is_none());
    }
}
