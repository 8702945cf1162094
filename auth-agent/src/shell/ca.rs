//! The link to the CA: one task that keeps an update stream open, passes requests on, and tries again for ever.

use std::sync::Arc;
use std::time::Duration;

use handfast_ca::client::{AgentClient, NodeIdentity, Refusal, Svid, SvidRequest, Update};
use handfast_ca::verify::Verifier;
use rand::Rng;
use tokio::sync::{mpsc, watch};

use crate::identity::Renewal;

/// The longest wait between two attempts.
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// The first.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// As whom the agent speaks to the CA, and whom it takes for the CA.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) verifier: Verifier,
    pub(super) identity: Arc<NodeIdentity>,
}

/// What the agent's loop hears of the CA.
#[derive(Debug)]
pub(super) enum FromCa {
    Connected,
    Disconnected(String),
    Update(Box<Update>),
    Issued(Vec<(Renewal, Result<Svid, Refusal>)>),
    /// The whole batch, with the reason.
    NotIssued(Vec<Renewal>, String),
}

/// What it says to it.
#[derive(Debug)]
pub(super) enum ToCa {
    Issue(Vec<(Renewal, SvidRequest)>),
    Acknowledge(u64, Option<String>),
}

/// The agent's end of the link.
#[derive(Debug)]
pub(super) struct CaLink {
    commands: mpsc::UnboundedSender<ToCa>,
    credentials: watch::Sender<Credentials>,
}

impl CaLink {
    /// Starts the task. It ends when the link is dropped.
    pub(super) fn start(
        address: String,
        credentials: Credentials,
        events: mpsc::Sender<FromCa>,
    ) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (sender, watched) = watch::channel(credentials);
        tokio::spawn(
            Task {
                address,
                credentials: watched,
                commands: receiver,
                events,
            }
            .run(),
        );
        Self {
            commands,
            credentials: sender,
        }
    }

    /// Says something. While the CA is away, requests come back as not issued and acknowledgements are dropped:
    /// the first update of a new stream is acknowledged again.
    pub(super) fn say(&self, command: ToCa) {
        // Fails only when the task has ended, which the loop hears of by its own channel.
        let _ = self.commands.send(command);
    }

    /// New credentials: the link is made anew with them.
    pub(super) fn set_credentials(&self, credentials: Credentials) {
        self.credentials.send_replace(credentials);
    }
}

struct Task {
    address: String,
    credentials: watch::Receiver<Credentials>,
    commands: mpsc::UnboundedReceiver<ToCa>,
    events: mpsc::Sender<FromCa>,
}

/// Why a connection was left.
enum Left {
    /// The agent stops.
    Stopping,
    /// The connection is gone, or stands on old credentials.
    Again(String),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let reason = match self.connection(&mut backoff).await {
                Left::Stopping => return,
                Left::Again(reason) => reason,
            };
            if self
                .events
                .send(FromCa::Disconnected(reason))
                .await
                .is_err()
            {
                return;
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            let pause = tokio::time::sleep(backoff.mul_f64(jitter));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.commands.recv() => match command {
                        Some(command) => self.refuse(command).await,
                        None => return,
                    },
                }
            }
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
    }

    /// One connection, from its first to its last byte.
    async fn connection(&mut self, backoff: &mut Duration) -> Left {
        let credentials = self.credentials.borrow_and_update().clone();
        let connecting =
            AgentClient::connect(&self.address, &credentials.verifier, &credentials.identity);
        let client = match connecting.await {
            Ok(client) => client,
            Err(error) => return Left::Again(error.to_string()),
        };
        let mut updates = match client.updates().await {
            Ok(updates) => updates,
            Err(error) => return Left::Again(error.to_string()),
        };
        *backoff = BACKOFF_FIRST;
        if self.events.send(FromCa::Connected).await.is_err() {
            return Left::Stopping;
        }
        loop {
            tokio::select! {
                update = updates.next() => match update {
                    Ok(Some(update)) => {
                        if self.events.send(FromCa::Update(Box::new(update))).await.is_err() {
                            return Left::Stopping;
                        }
                    }
                    Ok(None) => return Left::Again("the CA ended the stream".into()),
                    Err(error) => return Left::Again(error.to_string()),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.pass_on(&client, command),
                    None => return Left::Stopping,
                },
                changed = self.credentials.changed() => match changed {
                    Ok(()) => return Left::Again("new credentials".into()),
                    Err(_) => return Left::Stopping,
                },
            }
        }
    }

    /// Carries a command out beside the stream, which must not wait for it.
    fn pass_on(&self, client: &AgentClient, command: ToCa) {
        let (client, events) = (client.clone(), self.events.clone());
        tokio::spawn(async move {
            match command {
                ToCa::Acknowledge(sequence, problem) => {
                    if let Err(error) = client.ack(sequence, problem.as_deref()).await {
                        tracing::debug!(%error, sequence, "the CA did not take an acknowledgement");
                    }
                }
                ToCa::Issue(batch) => {
                    let (renewals, requests): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                    let event = match client.issue(requests).await {
                        Ok(answers) => FromCa::Issued(renewals.into_iter().zip(answers).collect()),
                        Err(error) => FromCa::NotIssued(renewals, error.to_string()),
                    };
                    // The agent stops: nobody wants the answer.
                    let _ = events.send(event).await;
                }
            }
        });
    }

    async fn refuse(&self, command: ToCa) {
        if let ToCa::Issue(batch) = command {
            let renewals = batch.into_iter().map(|(renewal, _)| renewal).collect();
            let event = FromCa::NotIssued(renewals, "the CA is not reached".into());
            let _ = self.events.send(event).await;
        }
    }
}
