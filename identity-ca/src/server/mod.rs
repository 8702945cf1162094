//! The CA as a service: agents on TCP, operators on a Unix socket, one state behind both.

mod admin;
mod admitting;
mod agents;
mod allowance;
mod attest;
mod audit;
mod backup;
mod clock;
mod connections;
mod crls;
mod damage;
mod federation;
mod handshakes;
mod heads;
mod heard;
mod jwt;
mod kubernetes;
mod listen;
mod nodes;
mod observations;
mod operator;
mod operators;
mod push;
mod quota;
mod recovery;
mod refusals;
mod registry;
mod rotation;
mod serials;
mod share;
mod state;
mod strangers;
mod to_its_end;
mod trial;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tonic::Request;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server as Transport;

pub(crate) use self::kubernetes::Registrar;
use self::state::State;
use self::strangers::{ByCaller, MAX_STRANGERS_MESSAGE};
use self::to_its_end::ToItsEnd;
use crate::attest::{AttestationConfig, Attestors};
use crate::audit::{self as log, Audit};
use crate::authority::{Authority, Lifetime, Lock, SIGN_WITHOUT_STORE, check_folder, open_store};
use crate::federation::FederationConfig;
use crate::kubernetes::{CheckPolicies, Cluster, ClusterConfig};
use crate::model::Role;
use crate::proto::admin_server::AdminServer;
use crate::proto::agents_server::AgentsServer;
use crate::proto::audit_server::AuditServer;
use crate::proto::backup_server::BackupServer;
use crate::proto::federation_server::FederationServer;
use crate::proto::observations_server::ObservationsServer;
use crate::proto::observer_server::ObserverServer;
use crate::proto::operators_server::OperatorsServer;
use crate::proto::policy_trials_server::PolicyTrialsServer;
use crate::proto::registry_server::RegistryServer;
use crate::proto::rotation_server::RotationServer;
use crate::registry::Registry;
use crate::{Error, metrics};

/// The CA's port.
pub const DEFAULT_PORT: u16 = 7251;

/// An operator's message may carry all policy documents.
const MAX_ADMIN_MESSAGE: usize = 40 << 20;
const MAX_AGENT_MESSAGE: usize = 4 << 20;
/// How long calls may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Where a CA is and where it listens.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that `init` made.
    pub dir: PathBuf,
    /// For agents. Must lie outside of all nodes' prefixes.
    pub listen: SocketAddr,
    /// For operators: made with mode 0600; root and the CA's owner may use it.
    pub admin_socket: PathBuf,
    /// The socket of a syslog collector that gets a copy of the audit log.
    pub syslog: Option<PathBuf>,
    /// `HOST:PORT` where agents of all servers are told to find this one; the
    /// address that it listens on if that is one.
    pub advertise: Option<String>,
    /// What seals the root's key.
    pub passphrase_file: Option<PathBuf>,
    /// What nodes may prove themselves with, beside join tokens.
    pub attestation: AttestationConfig,
    /// Our bundle for others, and theirs for us.
    pub federation: FederationConfig,
    /// The Kubernetes cluster that it serves, if any.
    pub kubernetes: Option<ClusterConfig>,
    /// Reads the policies of that cluster.
    pub check_policies: Option<Arc<dyn CheckPolicies>>,
    /// How long it signs without knowing that its store still says what it signs by.
    pub sign_without_store: Duration,
    /// Lifetimes, in seconds, that count here instead of those that the CA was made with.
    pub lifetimes: Vec<(Lifetime, u64)>,
}

impl Options {
    /// Where a CA always is and listens; everything else is off.
    pub fn new(dir: PathBuf, listen: SocketAddr, admin_socket: PathBuf) -> Self {
        Self {
            dir,
            listen,
            admin_socket,
            syslog: None,
            advertise: None,
            passphrase_file: None,
            attestation: AttestationConfig::default(),
            federation: FederationConfig::default(),
            kubernetes: None,
            check_policies: None,
            sign_without_store: SIGN_WITHOUT_STORE,
            lifetimes: Vec::new(),
        }
    }
}

impl Options {
    fn advertised(&self) -> String {
        match &self.advertise {
            Some(address) => address.clone(),
            None if self.listen.ip().is_unspecified() || self.listen.port() == 0 => String::new(),
            None => self.listen.to_string(),
        }
    }
}

/// A CA that is ready to serve: everything that can fail at the start has not.
pub struct Server {
    state: Arc<State>,
    tcp: TcpListener,
    unix: UnixListener,
    socket: listen::SocketFile,
    bundle_endpoint: Option<federation::Bound>,
    cluster: Option<Cluster>,
    dir: PathBuf,
    _lock: Lock,
}

impl Server {
    /// Opens the CA and its sockets.
    pub async fn bind(options: &Options) -> Result<Self, Error> {
        check_folder(&options.dir)?;
        let lock = Lock::take(&options.dir)?;
        let store = open_store(&options.dir).await?;
        if let Some(path) = &options.syslog {
            log::Syslog::check(path)?;
        }
        if let Some(file) = &options.federation.web_roots {
            crate::federation::fetch::web_roots(Some(file))?;
        }
        let passphrase = options.passphrase_file.clone();
        let mut authority = Authority::load(&options.dir, passphrase, &store).await?;
        authority.limit_signing(options.sign_without_store);
        for (what, seconds) in &options.lifetimes {
            authority.set_lifetime(*what, *seconds)?;
        }
        let domain = authority.trust_domain().clone();
        let registry = Registry::new(store, domain, authority.prefix_ranges().to_vec());
        registry.reserve_ca_address(options.listen.ip()).await?;
        let tcp = listen::tcp(options.listen).await?;
        let address = tcp
            .local_addr()
            .map_err(Error::io("cannot use", &options.dir))?;
        let (unix, socket) = listen::unix(&options.admin_socket).await?;
        let audit = Audit::open(
            &options.dir.join(log::FOLDER),
            authority.server(),
            options.syslog.clone(),
        )?;
        rotation::revive(&authority, &registry, &audit).await?;
        let mut attestors = Attestors::open(&options.attestation, authority.trust_domain())?;
        let cluster = match &options.kubernetes {
            Some(config) => Some(Cluster::open(config, options.check_policies.clone()).await?),
            None => None,
        };
        if let Some(cluster) = &cluster {
            attestors = cluster.attestors(attestors, authority.prefix_ranges())?;
        }
        let bundle_endpoint = federation::bind(&options.federation).await?;
        metrics::describe();
        let state = State::open(
            authority,
            registry,
            audit,
            attestors,
            options.federation.clone(),
            address,
            options.admin_socket.clone(),
        )
        .await?;
        state
            .registry
            .enter_server(state.authority.server(), &options.advertised())
            .await?;
        state.open_socket_to_operators();
        metrics::registry(&state.now());
        Ok(Self {
            state,
            tcp,
            unix,
            socket,
            bundle_endpoint,
            cluster,
            dir: options.dir.clone(),
            _lock: lock,
        })
    }

    /// Says whether the server can do its work, for as long as it runs.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.state))
    }

    /// Where agents reach it (the port, if 0 was asked for).
    pub fn local_addr(&self) -> SocketAddr {
        self.state.address()
    }

    /// Where partners fetch our bundle, if they may.
    pub fn bundle_endpoint(&self) -> Option<SocketAddr> {
        self.bundle_endpoint
            .as_ref()
            .and_then(federation::Bound::address)
    }

    /// Serves until `shutdown`; calls that are under way then get 5 s to end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop, stopping) = watch::channel(false);
        let agents = Arc::new(agents::service(Arc::clone(&self.state), stopping.clone()));
        let bounded =
            |most| AgentsServer::from_arc(Arc::clone(&agents)).max_decoding_message_size(most);
        let agents = ByCaller {
            joined: bounded(MAX_AGENT_MESSAGE),
            strangers: bounded(MAX_STRANGERS_MESSAGE),
        };
        let agents = Transport::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(64)
            .add_routes(administration(&self.state, &self.dir))
            .add_service(agents)
            .add_service(ObserverServer::new(observations::service(Arc::clone(
                &self.state,
            ))))
            .serve_with_incoming_shutdown(
                listen::agents(self.tcp, Arc::clone(&self.state))?,
                stopped(stopping.clone()),
            );
        let cluster = self.cluster.map(|cluster| {
            let registrar = Registrar::new(Arc::clone(&self.state));
            tokio::spawn(cluster.keep(registrar, stopped(stopping.clone())))
        });
        let operators = Transport::builder()
            .add_routes(administration(&self.state, &self.dir))
            .serve_with_incoming_shutdown(listen::operators(self.unix), stopped(stopping));
        let upkeep = tokio::spawn(state::upkeep(Arc::clone(&self.state)));
        let clock = tokio::spawn(clock::watch(Arc::clone(&self.state)));
        let share = tokio::spawn(share::keep(Arc::clone(&self.state)));
        let connections = tokio::spawn(connections::keep(Arc::clone(&self.state)));
        let log = self.dir.join(log::FOLDER);
        let crls = tokio::spawn(crls::keep(Arc::clone(&self.state), log));
        let rotations = tokio::spawn(rotation::keep(Arc::clone(&self.state)));
        let trials = tokio::spawn(trial::keep(Arc::clone(&self.state)));
        let fetching = tokio::spawn(federation::poll(Arc::clone(&self.state)));
        let endpoint = self
            .bundle_endpoint
            .map(|bound| tokio::spawn(federation::serve(Arc::clone(&self.state), bound)));
        let mut serving = tokio::spawn(async move { tokio::try_join!(agents, operators) });
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = shutdown => {
                tracing::info!("stopping");
                stop.send_replace(true);
                match tokio::time::timeout(GRACE, &mut serving).await {
                    Ok(ended) => ended,
                    Err(_) => { serving.abort(); Ok(Ok(((), ()))) }
                }
            }
        };
        upkeep.abort();
        clock.abort();
        share.abort();
        connections.abort();
        rotations.abort();
        trials.abort();
        crls.abort();
        fetching.abort();
        if let Some(endpoint) = endpoint {
            endpoint.abort();
        }
        if let Some(cluster) = cluster {
            stop.send_replace(true);
            // It gives its Lease up, within a bound of its own.
            drop(cluster.await);
        }
        self.state.close().await;
        drop(self.socket);
        match ended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Protocol(error.to_string())),
            Err(error) => Err(Error::Protocol(error.to_string())),
        }
    }
}

/// Can the server do its work? Cheap to clone and to ask.
#[derive(Clone)]
pub struct Health(Arc<State>);

impl Health {
    /// The reason if it cannot.
    pub fn check(&self) -> Result<(), String> {
        if self.0.audit.failing() {
            return Err("the audit log cannot be written".to_owned());
        }
        self.0.damage()?;
        if let Some(recovery) = self.0.recovery() {
            return Err(recovery.reason());
        }
        let able = self.0.authority.may_sign();
        able.map_err(|error| error.to_string())?;
        if !self.0.certificate.is_shown() {
            return Err(
                "the CA has no certificate to show to agents yet; it makes one within a moment"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// All that operators may ask, on the socket and from afar. Who has no role at
/// all is turned away before anything of the call is read.
fn administration(state: &Arc<State>, dir: &Path) -> Routes {
    let gate = {
        let state = Arc::clone(state);
        move |request: Request<()>| {
            state.operator(&request, Role::Auditor)?;
            Ok(request)
        }
    };
    let admin = AdminServer::new(admin::service(Arc::clone(state)))
        .max_decoding_message_size(MAX_ADMIN_MESSAGE);
    let registry = RegistryServer::new(registry::service(Arc::clone(state)))
        .max_decoding_message_size(MAX_ADMIN_MESSAGE);
    let operators = OperatorsServer::new(operators::service(Arc::clone(state)));
    let audit = AuditServer::new(audit::service(Arc::clone(state), dir.join(log::FOLDER)));
    let rotation = RotationServer::new(rotation::service(Arc::clone(state)));
    let backup = BackupServer::new(backup::service(Arc::clone(state)));
    let federation = FederationServer::new(federation::service(Arc::clone(state)));
    let observations = ObservationsServer::new(observations::service(Arc::clone(state)));
    let trials = PolicyTrialsServer::new(trial::service(Arc::clone(state)));
    Routes::new(ToItsEnd(InterceptedService::new(admin, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(trials, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(
            observations,
            gate.clone(),
        )))
        .add_service(ToItsEnd(InterceptedService::new(registry, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(operators, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(audit, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(rotation, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(backup, gate.clone())))
        .add_service(ToItsEnd(InterceptedService::new(federation, gate)))
}

/// Returns when the server is told to stop, or is gone.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}
