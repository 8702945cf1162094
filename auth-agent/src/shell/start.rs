//! How a node starts, so that nothing ever passes ungated: identity, kernel, tunnel (down), gates, tunnel up,
//! routes; then what an earlier run left; only then the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handfast_bpf::Events;
use handfast_ca::verify::NodeSvid;
use handfast_encrypt::Routes;
use nix::fcntl::{Flock, FlockArg};
use rustls_pki_types::UnixTime;
use tokio::sync::mpsc;

use super::agent::{Agent, workload};
use super::alarms::Alarms;
use super::awaited::Awaited;
use super::gates::Gates;
use super::identities::private_key;
use super::memory::Memory;
use super::net::{FromNet, Net};
use super::observations::Observations;
use super::observe::History;
use super::park::Park;
use super::policy::PolicyTable;
use super::readiness::Readiness;
use super::running_pods::RunningPods;
use super::stored::Stored;
use super::tunnel_start::Opened;
use super::tunnel_worker::{Outcome, TunnelWorker};
use super::updates::{Unsettled, deny_event};
use super::verify::Questions;
use super::{
    RunError, cni, detach, forwarding, forwarding_path, policies, snapshot_path, tunnel_start,
};
use crate::admin::{self, Asked};
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::core::{Config, Core, Local};
use crate::endpoint::EndpointRecords;
use crate::files;
use crate::identity::{
    AuditHeads, Beginning, Credentials, FromCa, Knowledge, Link, NodeStore, Reattest, Svids,
    Workloads,
};
use crate::tls::SessionTls;
use crate::wire::BootId;
use crate::workload_api::{self, Limits};

/// Messages that wait for the loop, from each neighbour.
const QUEUE: usize = 256;
/// For the CA's name; a start goes on without its address.
const RESOLVED: Duration = Duration::from_secs(5);

/// A node that is ready, and where its inputs come from.
pub(super) struct Started {
    pub(super) agent: Agent,
    pub(super) net: mpsc::Receiver<FromNet>,
    pub(super) ca: mpsc::Receiver<FromCa>,
    pub(super) admin: mpsc::Receiver<Asked>,
    pub(super) kernel: Events,
    pub(super) tunnels: mpsc::Receiver<Outcome>,
    pub(super) workload_api: workload_api::Endpoint,
    pub(super) lock: Flock<File>,
}

/// Brings a node up to the point where it takes inputs.
pub(super) async fn start(config: AgentConfig, readiness: Readiness) -> Result<Started, RunError> {
    require_root()?;
    tunnel_start::refuse_same_names(&config)?;
    tunnel_start::refuse_host_routing(&config).await?;
    let store = NodeStore::open(&config.data_dir)?;
    let identity = Arc::new(store.identity()?);
    let verifier = store.trust()?;
    let node = verifier
        .node(&identity.chain, UnixTime::now())
        .map_err(RunError::OwnSvid)?;
    let knowledge = store.knowledge()?;
    policies::refuse_unreadable(&config, !knowledge.local_policies.is_empty())?;
    let ca_address = store.ca_address()?;
    let foreign = store.foreign()?;
    let audit_heads = AuditHeads::new(store.audit_heads(verifier.bundle())?);
    open_run_dir(&config)?;
    cni::place_program(&config)?;
    let lock = lock(&config.run_dir)?;
    let endpoints = EndpointRecords::open(&config.run_dir)?;

    let tls = Arc::new(SessionTls::new(Arc::new(
        rustls::time_provider::DefaultTimeProvider,
    )));
    tls.set_verifier(verifier.clone());
    tls.set_credentials(identity.chain.clone(), private_key(&identity))?;
    let (net, net_events) = Net::new(Arc::clone(&tls));
    // The port is taken before the kernel is touched, so that a second agent fails without a trace; accepted
    // connections wait for the loop.
    net.listen(config.session_port)
        .map_err(|source| RunError::Listen {
            what: format!(
                "TCP port {} (sessions; see --session-port)",
                config.session_port
            ),
            source,
        })?;

    tunnel_start::refuse_others(&config).await?;

    let (ca_sender, ca_events) = mpsc::channel(QUEUE);
    let credentials = Credentials {
        verifier: verifier.clone(),
        identity: Arc::clone(&identity),
    };
    let ca = Link::start(knowledge.servers(&ca_address), credentials, ca_sender);
    let clock = Clock::new();
    let mut svids = Svids::new(&identity.chain, node.not_after, clock.now().wall);
    svids.retire(&knowledge.retired);
    ca.node_uses(svids.authorities());
    let beginning = Beginning {
        folder: Some(config.run_dir.join("svids")),
        ..Beginning::of(&node, &verifier, &knowledge, &foreign)
    };
    let (workloads, not_kept) = Workloads::start(beginning, ca.clone());
    workloads.set_endpoints(endpoints.all().to_vec());
    // Workloads do not wait for the gates: what an earlier run has left for them is served at once.
    let source = Arc::new(workloads.clone());
    let workload_api = workload_api::serve(&config.workload_socket, source, Limits::default())
        .map_err(|source| RunError::Listen {
            what: format!("{} (workloads)", config.workload_socket.display()),
            source,
        })?;

    let gates = Gates::open(&config)?;
    let kernel_events = gates.events()?;
    let underlay = underlay_addresses(&knowledge, &node, &ca_address).await;
    let raised = raise(&config, &gates, underlay).await;
    let (opened, park, routes) = match raised {
        Ok(raised) => raised,
        // What an earlier run left goes on as it was.
        Err(error) if gates.adopted() => return Err(error),
        Err(error) => {
            if let Err(left) = detach::undo(&config).await {
                tracing::warn!(error = %left, "what was begun could not be taken away: handfast agent detach does");
            }
            return Err(error);
        }
    };

    let (admin_sender, admin_requests) = mpsc::channel(QUEUE);
    let socket = config.admin_socket();
    admin::serve(&socket, admin_sender)
        .await
        .map_err(|source| RunError::Listen {
            what: socket.display().to_string(),
            source,
        })?;
    let (connection, netlink, _) =
        rtnetlink::new_connection().map_err(RunError::io("open a netlink socket"))?;
    tokio::spawn(connection);

    let local = Local {
        id: node.spiffe_id.to_string(),
        name: node.name.to_string(),
        boot_id: boot_id()?,
        prefixes: node.prefixes.clone(),
        tunnel_kind: tunnel_start::kind(&opened.current.device()),
        tunnel_key: *opened.current.public_key().as_bytes(),
        tunnel_port: opened.current.port(),
    };
    let snapshot_path = snapshot_path(&config);
    let snapshot = Stored::read(&snapshot_path)?;
    let core = Core::new(Config::new(seed()?), local, snapshot);
    let standing = core.view().peers;
    let standing = standing.iter().filter(|peer| peer.session.is_some());
    let (tunnels, tunnel_outcomes) = TunnelWorker::start(
        opened.devices,
        opened.current,
        opened.keys,
        &standing.map(|peer| peer.number).collect(),
    );
    let mut agent = Agent {
        started: Instant::now(),
        readiness,
        core,
        stored: Stored::new(snapshot_path),
        svids,
        foreign,
        audit_heads,
        workloads,
        reattest: Reattest::default(),
        policy: PolicyTable::new(config.default_authentication),
        tunnels,
        tunnels_unrestored: BTreeSet::new(),
        filter: None,
        running_pods: RunningPods::default(),
        awaited: Awaited::default(),
        observations: Observations::default(),
        memory: Memory::new(),
        questions: Questions::default(),
        history: History::new(),
        alarms: Alarms::default(),
        policy_version: 0,
        policy_error: None,
        unsettled: Unsettled::default(),
        bearers: BTreeMap::new(),
        ca_connected: false,
        config,
        clock,
        store,
        node,
        identity,
        verifier,
        knowledge,
        ca,
        ca_address,
        tls,
        net,
        gates,
        park,
        routes,
        endpoints,
        netlink,
    };
    if let Some(problem) = not_kept {
        agent.alarm(format!(
            "workloads' SVIDs are not kept for a restart of the agent: {problem}"
        ));
    }
    resume(&mut agent).await?;
    Ok(Started {
        agent,
        net: net_events,
        ca: ca_events,
        admin: admin_requests,
        kernel: kernel_events,
        tunnels: tunnel_outcomes,
        workload_api,
        lock,
    })
}

/// Devices and routes, with gates on them before anything can pass.
async fn raise(
    config: &AgentConfig,
    gates: &Gates,
    underlay: Vec<IpAddr>,
) -> Result<(Opened, Park, Routes), RunError> {
    let opened = tunnel_start::open(config, underlay).await?;
    let park = Park::open(&config.hold_device)?;
    gates.attach_hold(park.ifindex())?;
    for tunnel in opened.devices.values() {
        gates.attach_tunnel(tunnel.device().index)?;
        tunnel.up().await?;
    }
    let turned = forwarding::enable().map_err(RunError::io("turn forwarding on"))?;
    if !turned.is_empty() {
        files::write_json(&forwarding_path(config), &turned)?;
    }
    let routes = Routes::open(tunnel_start::route_options(config)).await?;
    Ok((opened, park, routes))
}

/// Takes up what the CA said last and what an earlier run left in the kernel.
async fn resume(agent: &mut Agent) -> Result<(), RunError> {
    agent.gates.forget_unknown(agent.endpoints.all())?;
    let installed = agent.gates.policy_entries(agent.endpoints.all())?;
    agent.policy.adopt(installed, agent.gates.cidrs());
    for (number, known) in agent.view().identities {
        agent
            .policy
            .set_identity(number.0, workload(&known.identity)?);
    }
    let deny = agent.verifier.deny_list().clone();
    if deny.number() > 0 {
        let event = deny_event(&deny, &agent.verifier);
        agent.feed(event).await;
    }
    agent.apply_nodes().await?;
    agent.gates.keep_prefixes(agent.core.prefixes())?;
    // Policies before endpoints: an endpoint without them would be open for a moment. A node that has never heard
    // the CA has none to go by, and says nothing of pairs; an empty set would be a guess.
    if agent.knowledge.sequence > 0 || !agent.config.policy_paths.is_empty() {
        agent.resume_policies().await?;
    }
    agent.adopt_endpoints().await
}

/// The folder of sockets. Where workloads' socket lies in it, they must be able to enter; what is in it is private
/// by itself.
fn open_run_dir(config: &AgentConfig) -> Result<(), RunError> {
    files::private_dir(&config.run_dir)?;
    if config.workload_socket.starts_with(&config.run_dir) {
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&config.run_dir, everybody)
            .map_err(RunError::io("open the run directory to workloads"))?;
    }
    Ok(())
}

/// Where the tunnel's packets go, to learn the MTU from: the peers; before any is known, the CA.
async fn underlay_addresses(
    knowledge: &Knowledge,
    node: &NodeSvid,
    ca_address: &str,
) -> Vec<IpAddr> {
    let own = node.spiffe_id.to_string();
    let peers: Vec<IpAddr> = knowledge
        .nodes
        .iter()
        .filter(|known| known.spiffe_id != own)
        .flat_map(|known| known.underlay.iter().map(SocketAddr::ip))
        .collect();
    if !peers.is_empty() {
        return peers;
    }
    // By name in a cluster: its node need not have a default route to ask about instead.
    match tokio::time::timeout(RESOLVED, tokio::net::lookup_host(ca_address)).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        _ => Vec::new(),
    }
}

/// The agent attaches programs and makes devices: root, or nothing.
pub(super) fn require_root() -> Result<(), RunError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(RunError::NotRoot)
    }
}

/// One agent for one run directory.
pub(super) fn lock(run_dir: &Path) -> Result<Flock<File>, RunError> {
    // Others could hold a lock on a file that they may read.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(run_dir.join("agent.lock"))
        .map_err(RunError::io("make the lock file"))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .map_err(RunError::io("make the lock file"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| RunError::AlreadyRunning(run_dir.to_owned()))
}

/// Keeps an agent from starting with this run directory, for what must not be done beside one.
///
/// # Errors
/// One runs.
pub fn hold_off(run_dir: &Path) -> Result<Option<impl Drop + use<>>, RunError> {
    // No agent has run since this machine started.
    if !run_dir.exists() {
        return Ok(None);
    }
    lock(run_dir).map(Some).map_err(|error| match error {
        RunError::AlreadyRunning(dir) => RunError::Refused(format!(
            "an agent runs with {}; stop it first. Nothing was changed",
            dir.display()
        )),
        error => error,
    })
}

/// Random for each boot of this kernel.
fn boot_id() -> Result<BootId, RunError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(RunError::io("read the kernel's boot ID"))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .map(BootId)
        .ok_or_else(|| RunError::Refused(format!("{text:?} is not a boot ID")))
}

fn seed() -> Result<u64, RunError> {
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| RunError::NoRandomness)?;
    Ok(u64::from_ne_bytes(seed))
}
