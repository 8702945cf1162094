//! `handfast ca`: make, run and look at the authority.

mod audit;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use handfast_ca::authority::{self, Setup};
use handfast_ca::client::admin::{Admin, DEFAULT_SOCKET};
use handfast_ca::server::{Options, Server};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use crate::metrics::{self, Metrics};
use crate::output::{OutputArgs, timestamp};

/// The certificate authority: one per trust domain
#[derive(Debug, Args)]
pub struct CaArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA: its root, its issuing CA and an empty registry; all of it, or nothing
    #[command(
        after_help = "Example:\n  handfast ca init --trust-domain example.org --prefix-range 10.0.0.0/8 --prefix-range fd00::/16"
    )]
    Init {
        #[command(flatten)]
        dir: Dir,
        /// The name of the trust domain: SPIFFE IDs begin with spiffe://<NAME>/
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// Nodes get the prefixes of their workloads out of these; give it again for more
        #[arg(long, value_name = "CIDR", required = true)]
        prefix_range: Vec<IpNet>,
    },
    /// Serve agents (TLS) and operators (Unix socket) until SIGTERM or Ctrl-C
    Serve {
        #[command(flatten)]
        dir: Dir,
        /// Where agents reach it; must lie outside of all nodes' prefixes
        #[arg(long, default_value = "0.0.0.0:7251", value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Also send the audit log to the syslog collector at this socket (usually /dev/log)
        #[arg(long, value_name = "PATH")]
        syslog: Option<PathBuf>,
        /// Serve Prometheus metrics, /healthz and /readyz here (IP:PORT), or not (off)
        #[arg(long, default_value = "127.0.0.1:9751", value_name = "IP:PORT|off")]
        metrics: metrics::Place,
        #[command(flatten)]
        socket: CaSocket,
    },
    /// How the running CA is: keys, nodes, entries, alarms
    Status {
        #[command(flatten)]
        socket: CaSocket,
        #[command(flatten)]
        output: OutputArgs,
    },
    Audit(audit::AuditArgs),
}

/// The option that names the CA's folder.
#[derive(Debug, Args)]
struct Dir {
    /// The CA's folder: keys and registry, closed to everybody but its owner
    #[arg(long, default_value = "/var/lib/handfast/ca", value_name = "DIR")]
    dir: PathBuf,
}

/// The option of every command that asks the running CA.
#[derive(Clone, Debug, Args)]
pub struct CaSocket {
    /// The CA's administrative socket
    #[arg(long, env = "HANDFAST_CA_SOCKET", global = true, default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

impl CaSocket {
    /// Opens a conversation.
    pub async fn connect(&self) -> Result<Admin, handfast_ca::Error> {
        Admin::connect(&self.admin_socket).await
    }
}

/// Runs the command.
pub async fn run(args: CaArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Init {
            dir,
            trust_domain,
            prefix_range,
        } => init(dir.dir, &trust_domain, prefix_range).await,
        Command::Serve {
            dir,
            listen,
            syslog,
            metrics,
            socket,
        } => {
            let options = Options {
                syslog,
                ..Options::new(dir.dir, listen, socket.admin_socket)
            };
            serve(&options, metrics).await
        }
        Command::Status { socket, output } => status(&socket, output).await,
        Command::Audit(args) => audit::run(args).await,
    }
}

async fn init(dir: PathBuf, trust_domain: &str, prefix_ranges: Vec<IpNet>) -> anyhow::Result<()> {
    let setup = Setup::new(dir, authority::trust_domain(trust_domain)?, prefix_ranges);
    let fingerprint = authority::init(&setup).await.context("no CA was made")?;
    println!(
        "made the CA of {} in {}",
        setup.trust_domain,
        setup.dir.display()
    );
    println!("root certificate: {fingerprint}");
    println!("next: handfast ca serve --dir {}", setup.dir.display());
    Ok(())
}

async fn serve(options: &Options, metrics: metrics::Place) -> anyhow::Result<()> {
    // Before anything is open: a signal that comes early is not lost.
    let shutdown = shutdown()?;
    let metrics = Metrics::bind(metrics).await?;
    let server = Server::bind(options)
        .await
        .context("the CA does not start")?;
    let health = server.health();
    metrics.serve(move || health.check());
    eprintln!(
        "serving agents on {}, operators on {}",
        server.local_addr(),
        options.admin_socket.display()
    );
    Ok(server.run(shutdown).await?)
}

fn shutdown() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn status(socket: &CaSocket, output: OutputArgs) -> anyhow::Result<()> {
    let status = socket.connect().await?.status().await?;
    let lines = [
        ("trust domain", status.trust_domain.clone()),
        ("listening on", status.listen.clone()),
        ("version", status.version.clone()),
        ("root", status.root_fingerprint.clone()),
        ("root until", timestamp(status.root_not_after_ms / 1000)),
        (
            "issuing CA until",
            timestamp(status.issuing_not_after_ms / 1000),
        ),
        ("prefix ranges", status.prefix_ranges.join(", ")),
        (
            "nodes",
            format!(
                "{} ({} joined, {} connected)",
                status.nodes, status.nodes_joined, status.nodes_connected
            ),
        ),
        ("entries", status.entries.to_string()),
        ("policies", status.policies.to_string()),
        ("revocations", status.denials.to_string()),
        ("open tokens", status.tokens_open.to_string()),
        ("alarms", status.alarms.to_string()),
        ("sequence", status.sequence.to_string()),
    ];
    output.print(
        &status,
        &["WHAT", "VALUE"],
        lines
            .into_iter()
            .map(|(what, value)| vec![what.to_owned(), value]),
    )
}
