//! The link to the CA: one task that keeps an update stream open to any of its servers, passes requests on, and
//! tries again for ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use handfast_ca::client::{
    AgentClient, Attestation, CaTrust, IssuedJwt, Joined, NodeIdentity, Refusal, Svid, SvidRequest,
    Update, Updates, attest,
};
use handfast_ca::model::ObservedPair;
use handfast_ca::verify::Verifier;
use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};

use super::Renewal;
use super::acknowledge::{Away, Report, Reporter};

/// The longest wait between two attempts.
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// The first.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// As whom the agent speaks to the CA, and whom it takes for the CA.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Whom it believes.
    pub verifier: Verifier,
    /// Who it is.
    pub identity: Arc<NodeIdentity>,
}

/// What the agent hears of the CA.
#[derive(Debug)]
pub enum FromCa {
    /// A server is reached.
    Connected {
        /// Which, `HOST:PORT`.
        address: String,
    },
    /// None is; the next attempt is due by itself.
    Disconnected(NotReached),
    /// Something has changed.
    Update(Box<Update>),
    /// Answers to requests, one each.
    Issued(Vec<(Renewal, Result<Svid, Refusal>)>),
    /// The whole batch came to nothing, with the reason.
    NotIssued(Vec<Renewal>, String),
    /// The CA signs nothing for this node because the clocks differ, in its words; none: it does again.
    Clocks(Option<String>),
    /// What came of attesting anew.
    Attested(Result<Box<Joined>, String>),
}

/// Why a server is not reached, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotReached {
    /// In words.
    pub reason: String,
    /// The CA spoke, and does not want this node: only a new attestation changes that.
    pub turned_away: bool,
}

enum Command {
    Attest(Arc<dyn Attestation>),
    Renew(Vec<(Renewal, SvidRequest)>),
    Issue(Vec<SvidRequest>, oneshot::Sender<Answers>),
    Observe(
        Vec<ObservedPair>,
        u64,
        oneshot::Sender<Result<(), NotReached>>,
    ),
    Jwt(
        String,
        Vec<String>,
        oneshot::Sender<Result<Result<IssuedJwt, Refusal>, NotReached>>,
    ),
}

type Answers = Result<Vec<Result<Svid, Refusal>>, NotReached>;

/// The agent's end of the link; the task ends when the last clone is dropped.
#[derive(Clone)]
pub struct Link {
    commands: mpsc::UnboundedSender<Command>,
    credentials: Arc<watch::Sender<Credentials>>,
    servers: Arc<watch::Sender<Vec<String>>>,
    report: Arc<watch::Sender<Report>>,
    reached: watch::Receiver<Option<String>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("reached", &*self.reached.borrow())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Starts the task, which knows these servers (`HOST:PORT`) until it is told others.
    pub fn start(
        servers: Vec<String>,
        credentials: Credentials,
        events: mpsc::Sender<FromCa>,
    ) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (credentials, watched_credentials) = watch::channel(credentials);
        let (servers, watched_servers) = watch::channel(servers);
        let (report, _) = watch::channel(Report::default());
        let report = Arc::new(report);
        let (reached, watched_reached) = watch::channel(None);
        tokio::spawn(
            Task {
                servers: watched_servers,
                next_server: 0,
                credentials: watched_credentials,
                commands: receiver,
                events,
                reached,
                report: report.subscribe(),
                clocks_differ: Arc::default(),
            }
            .run(),
        );
        Self {
            commands,
            credentials: Arc::new(credentials),
            servers: Arc::new(servers),
            report,
            reached: watched_reached,
        }
    }

    /// Asks for certificates; the answers come as events. While no server is reached they come back as not issued.
    pub fn renew(&self, batch: Vec<(Renewal, SvidRequest)>) {
        // Fails only when the task has ended, which the loop hears of by its own channel.
        let _ = self.commands.send(Command::Renew(batch));
    }

    /// Asks for certificates and waits for the answers, which come in the order of the requests.
    pub async fn issue(&self, batch: Vec<SvidRequest>) -> Answers {
        let (sender, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Issue(batch, sender));
        sent.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Asks for a JWT-SVID and waits for it.
    pub async fn issue_jwt(
        &self,
        entry: &str,
        audiences: Vec<String>,
    ) -> Result<Result<IssuedJwt, Refusal>, NotReached> {
        let (sender, answer) = oneshot::channel();
        let command = Command::Jwt(entry.to_owned(), audiences, sender);
        self.commands.send(command).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Reports what flows under rules in audit mode did, and waits until the CA has it.
    pub async fn observe(&self, pairs: Vec<ObservedPair>, lost: u64) -> Result<(), NotReached> {
        let (sender, answer) = oneshot::channel();
        let command = Command::Observe(pairs, lost, sender);
        self.commands.send(command).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Proves anew who this node is, which a CA asks for that has evicted it. The outcome comes as an event.
    pub fn attest(&self, by: Arc<dyn Attestation>) {
        let _ = self.commands.send(Command::Attest(by));
    }

    /// An update is applied, or not. Said again to every server that is reached later.
    pub fn acknowledge(&self, sequence: u64, problem: Option<String>) {
        let bundle = self.credentials.borrow().verifier.bundle().sequence();
        self.change_report(|report| report.applied(sequence, problem, bundle));
    }

    /// Workloads that were served before this agent was started have the bundle of this number, and SVIDs that hang on
    /// these, until they ask again: [`Link::workloads_back`].
    pub fn workloads_away(&self, authorities: BTreeSet<Arc<str>>, bundle: u64) {
        self.change_report(|report| report.away = Some(Away::new(authorities, bundle)));
    }

    /// They have what this node has.
    pub fn workloads_back(&self) {
        self.change_report(Report::back);
    }

    /// Tells the CA if what it hears is changed.
    fn change_report(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_if_modified(|report| report.change(change));
    }

    /// What the node's own SVIDs hang on. A change is told to the CA.
    pub fn node_uses(&self, authorities: BTreeSet<Arc<str>>) {
        self.change_report(|report| report.node = authorities);
    }

    /// What its workloads' SVIDs hang on. A change is told to the CA.
    pub fn workloads_use(&self, authorities: BTreeSet<Arc<str>>) {
        self.change_report(|report| report.workloads = authorities);
    }

    /// What all of them hang on.
    pub fn in_use(&self) -> Vec<String> {
        self.report.borrow().in_use()
    }

    /// New credentials. Another identity makes the link anew, beside the old one until it stands.
    pub fn set_credentials(&self, credentials: Credentials) {
        self.credentials.send_replace(credentials);
    }

    /// Other servers, for the next time that one is looked for.
    pub fn set_servers(&self, servers: Vec<String>) {
        if !servers.is_empty() {
            self.servers.send_replace(servers);
        }
    }

    /// The server that is reached; none while there is none.
    pub fn reached(&self) -> watch::Receiver<Option<String>> {
        self.reached.clone()
    }
}

fn stopping() -> NotReached {
    NotReached {
        reason: "the agent is stopping".into(),
        turned_away: false,
    }
}

struct Task {
    servers: watch::Receiver<Vec<String>>,
    /// Position of the server to try.
    next_server: usize,
    credentials: watch::Receiver<Credentials>,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<FromCa>,
    reached: watch::Sender<Option<String>>,
    report: watch::Receiver<Report>,
    /// The clocks differed when something was asked for last.
    clocks_differ: Arc<AtomicBool>,
}

/// Why a connection was left.
enum Left {
    /// The agent stops.
    Stopping,
    /// The connection is gone, or never came to be.
    Again(NotReached),
}

/// An open connection.
struct Connection {
    address: String,
    client: AgentClient,
    updates: Updates,
    /// As whom.
    identity: Arc<NodeIdentity>,
    /// Tells the CA what is applied, while the connection stands.
    _reporter: Reporter,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        // Servers that were tried since one was reached.
        let mut tried = 0_usize;
        loop {
            let reason = match self.connection(&mut tried).await {
                Left::Stopping => return,
                Left::Again(reason) => reason,
            };
            self.reached.send_replace(None);
            if self
                .events
                .send(FromCa::Disconnected(reason))
                .await
                .is_err()
            {
                return;
            }
            // One that was just lost is tried again at once, and so is each of the others; then all of them rest.
            let servers = self.servers.borrow().len().max(1);
            let pause = if tried == 0 {
                backoff = BACKOFF_FIRST;
                BACKOFF_FIRST
            } else if tried.is_multiple_of(servers) {
                let pause = backoff;
                backoff = (backoff * 2).min(BACKOFF_LAST);
                pause
            } else {
                Duration::ZERO
            };
            let jitter = rand::rng().random_range(0.5..1.0);
            if !self.rest(pause.mul_f64(jitter)).await {
                return;
            }
        }
    }

    /// Waits, and refuses what is asked meanwhile. False: the agent stops.
    async fn rest(&mut self, pause: Duration) -> bool {
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return true,
                command = self.commands.recv() => match command {
                    Some(command) => self.refuse(command).await,
                    None => return false,
                },
            }
        }
    }

    /// A CA that was restored asks who was revoked since its backup.
    fn offer_deny_list(&self, client: &AgentClient) {
        let (client, verifier) = (client.clone(), self.credentials.borrow().verifier.clone());
        tokio::spawn(async move {
            match client.offer_deny_list(verifier.deny_list()).await {
                Ok(None) => tracing::info!("the restored CA has heard enough deny lists"),
                Ok(Some(reason)) => tracing::info!(reason, "the CA has our deny list"),
                Err(error) => tracing::warn!(%error, "our deny list was not taken"),
            }
        });
    }

    /// One connection, from its first to its last byte.
    async fn connection(&mut self, tried: &mut usize) -> Left {
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            Err(reason) => {
                *tried += 1;
                self.next_server = self.next_server.wrapping_add(1);
                return Left::Again(reason);
            }
        };
        *tried = 0;
        if !self.announce(&connection).await {
            return Left::Stopping;
        }
        // The deny list that this CA has been offered.
        let mut offered = None;
        // A connection for a newer identity, while it is being made.
        let mut successor: Option<BoxFuture<'static, Result<Connection, NotReached>>> = None;
        loop {
            tokio::select! {
                update = connection.updates.next() => match update {
                    Ok(Some(update)) => {
                        let number = self.credentials.borrow().verifier.deny_list().number();
                        if update.recovering && offered.replace(number) != Some(number) {
                            self.offer_deny_list(&connection.client);
                        }
                        if self.events.send(FromCa::Update(Box::new(update))).await.is_err() {
                            return Left::Stopping;
                        }
                    }
                    Ok(None) => return Left::Again(NotReached {
                        reason: "the CA ended the stream".into(),
                        turned_away: false,
                    }),
                    Err(error) => return Left::Again(not_reached(&error)),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.pass_on(&connection.client, command),
                    None => return Left::Stopping,
                },
                changed = self.credentials.changed() => {
                    if changed.is_err() {
                        return Left::Stopping;
                    }
                    let identity = Arc::clone(&self.credentials.borrow_and_update().identity);
                    if !Arc::ptr_eq(&identity, &connection.identity) {
                        successor = Some(Box::pin(self.open_to(connection.address.clone())));
                    }
                }
                opened = next(&mut successor) => {
                    successor = None;
                    match opened {
                        Ok(opened) => {
                            connection = opened;
                            if !self.announce(&connection).await {
                                return Left::Stopping;
                            }
                        }
                        // The old connection goes on; when it ends, the next is made as whom we are then.
                        Err(reason) => tracing::info!(%reason, "no connection to the CA with the new identity yet"),
                    }
                }
            }
        }
    }

    fn open(&self) -> BoxFuture<'static, Result<Connection, NotReached>> {
        let servers = self.servers.borrow();
        let at = self.next_server.checked_rem(servers.len()).unwrap_or(0);
        match servers.get(at) {
            Some(address) => Box::pin(self.open_to(address.clone())),
            None => Box::pin(std::future::ready(Err(NotReached {
                reason: "no address of the CA is known".into(),
                turned_away: false,
            }))),
        }
    }

    fn open_to(
        &self,
        address: String,
    ) -> impl Future<Output = Result<Connection, NotReached>> + Send + 'static {
        let mut credentials = self.credentials.clone();
        let report = self.report.clone();
        let (clocks_differ, events) = (Arc::clone(&self.clocks_differ), self.events.clone());
        async move {
            let Credentials { verifier, identity } = credentials.borrow_and_update().clone();
            let open = async {
                let client = AgentClient::connect(&address, &verifier, &identity).await?;
                let updates = client.updates().await?;
                Ok((client, updates))
            };
            let opened = open.await;
            compare_clocks(&clocks_differ, &opened, &events).await;
            let (client, updates) = opened.map_err(|error| not_reached(&error))?;
            Ok(Connection {
                _reporter: Reporter::start(client.clone(), report),
                address,
                client,
                updates,
                identity,
            })
        }
    }

    async fn announce(&self, connection: &Connection) -> bool {
        let address = connection.address.clone();
        self.reached.send_replace(Some(address.clone()));
        self.events
            .send(FromCa::Connected { address })
            .await
            .is_ok()
    }

    /// Carries a command out beside the stream, which must not wait for it.
    fn pass_on(&self, client: &AgentClient, command: Command) {
        let (client, events) = (client.clone(), self.events.clone());
        let clocks_differ = Arc::clone(&self.clocks_differ);
        tokio::spawn(async move {
            // Whoever asked may have left: nobody wants the answer then.
            match command {
                // While a connection stands there is no need.
                Command::Attest(_) => {}
                Command::Renew(batch) => {
                    let (renewals, requests): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                    let answers = client.issue(requests).await;
                    compare_clocks(&clocks_differ, &answers, &events).await;
                    let event = match answers {
                        Ok(answers) => FromCa::Issued(renewals.into_iter().zip(answers).collect()),
                        Err(error) => FromCa::NotIssued(renewals, error.to_string()),
                    };
                    let _ = events.send(event).await;
                }
                Command::Issue(batch, answer) => {
                    let answers = client.issue(batch).await;
                    compare_clocks(&clocks_differ, &answers, &events).await;
                    let _ = answer.send(answers.map_err(|error| not_reached(&error)));
                }
                Command::Observe(pairs, lost, answer) => {
                    let told = client.observe(&pairs, lost).await;
                    let _ = answer.send(told.map_err(|error| not_reached(&error)));
                }
                Command::Jwt(entry, audiences, answer) => {
                    let answers = client.issue_jwt(&entry, &audiences).await;
                    let _ = answer.send(answers.map_err(|error| not_reached(&error)));
                }
            }
        });
    }

    /// At the server that is next to be tried, by the bundle that is in force.
    fn attest(&self, by: Arc<dyn Attestation>) {
        let servers = self.servers.borrow();
        let at = self.next_server.checked_rem(servers.len()).unwrap_or(0);
        let Some(address) = servers.get(at).cloned() else {
            return;
        };
        let bundle = self.credentials.borrow().verifier.bundle().clone();
        let events = self.events.clone();
        tokio::spawn(async move {
            let outcome = attest(&address, &CaTrust::Bundle(bundle), &*by).await;
            let outcome = outcome.map(Box::new).map_err(|error| error.to_string());
            // The agent stops: nobody wants the outcome.
            let _ = events.send(FromCa::Attested(outcome)).await;
        });
    }

    async fn refuse(&self, command: Command) {
        let away = || NotReached {
            reason: "the CA is not reached".into(),
            turned_away: false,
        };
        match command {
            Command::Renew(batch) => {
                let renewals = batch.into_iter().map(|(renewal, _)| renewal).collect();
                let _ = self
                    .events
                    .send(FromCa::NotIssued(renewals, away().reason))
                    .await;
            }
            Command::Attest(by) => self.attest(by),
            Command::Issue(_, answer) => drop(answer.send(Err(away()))),
            Command::Observe(_, _, answer) => drop(answer.send(Err(away()))),
            Command::Jwt(_, _, answer) => drop(answer.send(Err(away()))),
        }
    }
}

/// Says when the CA begins, or ceases, to sign nothing because of a clock: whoever asks again and again would not.
async fn compare_clocks<T>(
    differ: &AtomicBool,
    answer: &Result<T, handfast_ca::Error>,
    events: &mpsc::Sender<FromCa>,
) {
    let reason = match answer {
        Ok(_) => None,
        Err(error) if error.is_clock() => Some(error.to_string()),
        Err(_) => return,
    };
    if differ.swap(reason.is_some(), Ordering::AcqRel) != reason.is_some() {
        // The agent stops: nobody wants to hear it.
        let _ = events.send(FromCa::Clocks(reason)).await;
    }
}

/// The outcome of what is being made; never, if nothing is.
async fn next<T>(making: &mut Option<BoxFuture<'static, T>>) -> T {
    match making {
        Some(making) => making.await,
        None => std::future::pending().await,
    }
}

fn not_reached(error: &handfast_ca::Error) -> NotReached {
    NotReached {
        reason: error.to_string(),
        turned_away: error.is_denial(),
    }
}
