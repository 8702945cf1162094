//! `handfast agent`: this machine as a node of the mesh.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use handfast_agent::admin::Request;
use handfast_agent::config::{AgentConfig, Choice, CniPlace, DefaultAuthentication, Encryption};
use handfast_agent::identity::{IdentityError, K8sPsatFile, Method, NodeStore, X509PopFiles};
use handfast_agent::shell::Readiness;
use handfast_ca::bundle::{Fingerprint, TrustBundle};
use handfast_ca::client::CaTrust;

use crate::metrics::{Metrics, Place};

/// This machine as a node: join the mesh, run the agent, leave without a trace
#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the mesh with a token file from `handfast token create`, a certificate of another CA, or a token of Kubernetes
    ///
    /// Makes the node's key on this machine, gets its SVID from the CA, and keeps both in the data directory. A
    /// token works once; afterwards the file can be deleted. A certificate (--x509pop-cert) or a token that the cluster
    /// projects into the agent's pod (--k8s-token) works as often as needed: the agent uses it by itself if the CA
    /// evicts the node.
    Join(JoinArgs),
    /// Run the agent in the foreground, until SIGTERM or Ctrl-C
    ///
    /// Stopping or killing it cuts nothing: the kernel goes on enforcing and encrypting, and the next run takes
    /// over what it finds. To take everything away: handfast agent detach
    Run(Foreground),
    /// Take every program, rule and device of handfast away; traffic goes on without it
    Detach(RunArgs),
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// The token file
    #[arg(
        value_name = "FILE",
        required_unless_present = "standing",
        conflicts_with = "standing"
    )]
    file: Option<PathBuf>,
    /// PEM file with the chain of a certificate that a CA gave this machine which the mesh's CA knows, leaf first
    #[arg(long = "x509pop-cert", value_name = "FILE", group = "standing", requires_all = ["key", "ca_address"])]
    certificate: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long = "x509pop-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// File with the service account token that Kubernetes projects into this pod for the CA's audience
    #[arg(
        long,
        value_name = "FILE",
        group = "standing",
        conflicts_with = "certificate",
        requires = "ca_address"
    )]
    k8s_token: Option<PathBuf>,
    /// The Kubernetes node that this is; the CA refuses a token of a pod on another one
    #[arg(long, value_name = "NAME", requires = "k8s_token")]
    k8s_node: Option<String>,
    /// HOST:PORT of the mesh's CA
    #[arg(long, value_name = "HOST:PORT", requires = "standing")]
    ca_address: Option<String>,
    /// The mesh's trust domain
    #[arg(long, value_name = "NAME", requires = "standing")]
    trust_domain: Option<String>,
    /// Fingerprint of the mesh's root, as `handfast ca status` shows it
    #[arg(
        long,
        value_name = "sha256:HEX",
        requires = "standing",
        conflicts_with = "bundle"
    )]
    root: Option<Fingerprint>,
    /// Trust bundle of the mesh's CA (SPIFFE JSON, from `handfast bundle show`) instead of a fingerprint
    #[arg(long, value_name = "FILE", requires = "standing")]
    bundle: Option<PathBuf>,
    /// Do nothing if this machine has joined already
    #[arg(long, conflicts_with = "again")]
    unless_joined: bool,
    /// Attest again as the node that this machine is already, after an eviction; the agent must not run
    #[arg(long)]
    again: bool,
    /// Where key and SVID are kept (made with mode 0700)
    #[arg(long, default_value = "/var/lib/handfast/agent", value_name = "DIR")]
    data_dir: PathBuf,
    /// The agent's --run-dir, to see that it does not run; with --again
    #[arg(
        long,
        default_value = "/run/handfast",
        value_name = "DIR",
        requires = "again"
    )]
    run_dir: PathBuf,
}

impl JoinArgs {
    fn method(&self) -> anyhow::Result<Method> {
        let Some(ca_address) = self.ca_address.clone() else {
            let file = self.file.clone().context("name the token file")?;
            return Ok(Method::Token { file });
        };
        let trust = self.trust()?;
        if let Some(token) = &self.k8s_token {
            return Ok(Method::K8sPsat {
                file: K8sPsatFile {
                    token: std::path::absolute(token)?,
                    node: self.k8s_node.clone(),
                },
                ca_address,
                trust,
            });
        }
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else {
            anyhow::bail!("by what is this machine to join? nothing was changed");
        };
        Ok(Method::X509Pop {
            files: X509PopFiles {
                certificate: std::path::absolute(certificate)?,
                key: std::path::absolute(key)?,
            },
            ca_address,
            trust,
        })
    }

    /// How the CA is recognised.
    fn trust(&self) -> anyhow::Result<CaTrust> {
        let trust_domain = self
            .trust_domain
            .as_deref()
            .context("--trust-domain is needed to recognise the CA; nothing was changed")?;
        let trust_domain = handfast_ca::authority::trust_domain(trust_domain)?;
        Ok(match (&self.root, &self.bundle) {
            (Some(root), _) => CaTrust::Root(trust_domain, *root),
            (None, Some(path)) => {
                let text = std::fs::read(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                CaTrust::Bundle(TrustBundle::from_spiffe_json(trust_domain, &text)?.bundle)
            }
            (None, None) => anyhow::bail!(
                "how is the CA to be recognised? give --root or --bundle; nothing was changed"
            ),
        })
    }
}

#[derive(Debug, Args)]
struct Foreground {
    #[command(flatten)]
    node: RunArgs,
    /// Serve Prometheus metrics, /healthz and /readyz here (IP:PORT), or not (off)
    #[arg(long, default_value = "127.0.0.1:9750", value_name = "ADDRESS")]
    metrics: Place,
}

/// What names a node's files, devices and ports.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where key and SVID are kept
    #[arg(long, default_value = "/var/lib/handfast/agent", value_name = "DIR")]
    data_dir: PathBuf,
    /// Sockets and what must not outlive a boot
    #[arg(long, default_value = "/run/handfast", value_name = "DIR")]
    run_dir: PathBuf,
    /// Where eBPF programs and maps are pinned, on a bpffs
    #[arg(long, default_value = "/sys/fs/bpf/handfast", value_name = "DIR")]
    bpf_dir: PathBuf,
    /// TCP port of sessions with other nodes
    #[arg(long, default_value_t = 7250, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    session_port: u16,
    /// What carries packets between nodes; must be the same on all of them
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    encryption: Kind,
    /// UDP port of the WireGuard device; the next port is for the device that takes over when keys change
    #[arg(long, default_value_t = 51872, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65534))]
    wireguard_port: u16,
    /// Name of the WireGuard device; with 1 for the last 0, or 1 after it, that of the second one
    #[arg(long, default_value = "hf-wg0", value_name = "NAME")]
    wireguard_device: String,
    /// Whose WireGuard to use
    #[arg(long, value_enum, default_value_t, value_name = "WHOSE")]
    wireguard: Implementation,
    /// Send a packet to every peer at least this often (seconds), where a firewall or NAT forgets quiet flows
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    persistent_keepalive: Option<u16>,
    /// Name of the XFRM device, with --encryption ipsec
    #[arg(long, default_value = "hf-xfrm0", value_name = "NAME")]
    ipsec_device: String,
    /// Largest packet inside the tunnel, in bytes, instead of what the underlay leaves
    #[arg(long, value_name = "BYTES")]
    tunnel_mtu: Option<u32>,
    /// Name of the device that held packets wait in
    #[arg(long, default_value = "hf-hold0", value_name = "NAME")]
    hold_device: String,
    /// Routing table for the prefixes of other nodes
    #[arg(long, default_value_t = 7250, value_name = "TABLE")]
    routing_table: u32,
    /// Run beside Cilium or Calico's eBPF dataplane: its host routing is switched off, so that packets pass the gates
    #[arg(long)]
    accept_host_routing: bool,
    /// What a flow between managed addresses needs that no policy speaks of
    #[arg(long, value_enum, default_value_t)]
    default_authentication: Default,
    /// Socket of the SPIFFE Workload API and Envoy's SDS; agent.sock in the run directory if not given
    #[arg(long, value_name = "PATH")]
    workload_socket: Option<PathBuf>,
    /// A policy file or folder beside the policies from the CA; repeat for more
    #[arg(long = "policy", value_name = "PATH")]
    policies: Vec<PathBuf>,
    /// Keep the CNI plugin in the network configuration of this folder (usually /etc/cni/net.d): no pod starts ungated
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the runtime finds plugins
    #[arg(
        long,
        default_value = "/opt/cni/bin",
        value_name = "DIR",
        requires = "cni_conf_dir"
    )]
    cni_bin_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum, std::default::Default)]
enum Default {
    /// It passes, encrypted, and the identities are proven in the background
    #[default]
    Background,
    /// It passes only between proven identities
    Required,
}

/// What carries packets between nodes.
#[derive(Clone, Copy, Debug, ValueEnum, std::default::Default)]
pub enum Kind {
    /// The kernel's WireGuard, or a userspace implementation where it has none
    #[default]
    Wireguard,
    /// The kernel's ESP in tunnel mode with AES-256-GCM; needs XFRM devices
    Ipsec,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Encryption::from(*self).fmt(f)
    }
}

impl From<Kind> for Encryption {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Wireguard => Self::Wireguard,
            Kind::Ipsec => Self::Ipsec,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum, std::default::Default)]
enum Implementation {
    /// The kernel's where it has one, else a userspace one
    #[default]
    Auto,
    /// The kernel's, or an error
    Kernel,
    /// A userspace one: what WG_USERSPACE_IMPLEMENTATION names, or wireguard-go
    Userspace,
}

/// Runs the command.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Join(args) => {
            let method = args.method()?;
            if args.unless_joined {
                match NodeStore::open(&args.data_dir) {
                    Err(IdentityError::NotJoined(_)) => {}
                    opened => {
                        opened?;
                        outln!("this machine has joined already; nothing was changed");
                        return Ok(());
                    }
                }
            }
            let _lock = match args.again {
                true => handfast_agent::shell::hold_off(&args.run_dir)?,
                false => None,
            };
            let joined =
                handfast_agent::identity::join(&method, &args.data_dir, args.again).await?;
            outln!(
                "joined as {} (SVID until {}); start the agent with: handfast agent run",
                joined.spiffe_id,
                crate::output::timestamp(joined.not_after)
            );
            Ok(())
        }
        Command::Run(args) => {
            let metrics = Metrics::bind(args.metrics).await?;
            handfast_agent::metrics::describe();
            let readiness = Readiness::default();
            let asked = readiness.clone();
            metrics.serve(move || asked.check());
            Ok(handfast_agent::shell::run(args.node.into(), readiness).await?)
        }
        Command::Detach(args) => {
            let config = AgentConfig::from(args);
            let socket = config.admin_socket();
            let removed: Vec<String> = match handfast_agent::admin::Client::connect(&socket).await {
                Ok(mut client) => client.ask(&Request::Detach).await?,
                // No agent runs: what it left in the kernel is taken away from here.
                Err(_) => handfast_agent::shell::detach(&config).await?,
            };
            for what in &removed {
                outln!("removed {what}");
            }
            if removed.is_empty() {
                outln!("nothing of handfast was attached");
            }
            Ok(())
        }
    }
}

impl From<RunArgs> for AgentConfig {
    fn from(args: RunArgs) -> Self {
        Self {
            data_dir: args.data_dir,
            workload_socket: args
                .workload_socket
                .unwrap_or_else(|| args.run_dir.join("agent.sock")),
            run_dir: args.run_dir,
            bpf_dir: args.bpf_dir,
            session_port: args.session_port,
            encryption: args.encryption.into(),
            wireguard_port: args.wireguard_port,
            wireguard_device: args.wireguard_device,
            wireguard: match args.wireguard {
                Implementation::Auto => Choice::Auto,
                Implementation::Kernel => Choice::Kernel,
                Implementation::Userspace => Choice::Userspace,
            },
            persistent_keepalive: args.persistent_keepalive,
            ipsec_device: args.ipsec_device,
            tunnel_mtu: args.tunnel_mtu,
            hold_device: args.hold_device,
            routing_table: args.routing_table,
            beside_host_routing: args.accept_host_routing,
            default_authentication: match args.default_authentication {
                Default::Background => DefaultAuthentication::Background,
                Default::Required => DefaultAuthentication::Required,
            },
            policy_paths: args.policies,
            cni: args.cni_conf_dir.map(|configurations| CniPlace {
                configurations,
                programs: args.cni_bin_dir,
            }),
        }
    }
}
