//! `handfast ca`: make, run and look at the authority.

mod audit;
mod backup;
mod init;
mod lifetime;
mod partners;
mod policies;
mod restore;
mod root;
mod rotate;
mod server;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use handfast_ca::client::admin::Status;
use handfast_ca::client::rotation::Rotation;
use handfast_ca::server::{Options, Server};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub use crate::ca_socket::{CaSocket, SocketPath};
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
    Init(init::InitArgs),
    /// Serve agents (TLS) and operators (Unix socket) until SIGTERM or Ctrl-C
    Serve {
        #[command(flatten)]
        dir: Dir,
        /// Where agents reach it; must lie outside of all nodes' prefixes
        #[arg(long, default_value = "0.0.0.0:7251", value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Where agents of all servers are told to find this one; what it listens on, if that is one address
        #[arg(long, value_name = "HOST:PORT")]
        advertise: Option<String>,
        /// Also send the audit log to the syslog collector at this socket (usually /dev/log)
        #[arg(long, value_name = "PATH")]
        syslog: Option<PathBuf>,
        /// How long it goes on signing when it cannot reach its store, and may have missed a revocation
        #[arg(long, default_value = "15m", value_name = "TIME", value_parser = sign_without_store)]
        sign_without_store: Duration,
        #[command(flatten)]
        lifetimes: lifetime::LifetimeArgs,
        /// Serve Prometheus metrics, /healthz and /readyz here (IP:PORT), or not (off)
        #[arg(long, default_value = "127.0.0.1:9751", value_name = "IP:PORT|off")]
        metrics: metrics::Place,
        #[command(flatten)]
        passphrase: root::Passphrase,
        #[command(flatten)]
        partners: partners::Partners,
        #[command(flatten)]
        socket: SocketPath,
    },
    /// How the running CA is: keys, nodes, entries, alarms
    Status {
        #[command(flatten)]
        socket: CaSocket,
        #[command(flatten)]
        output: OutputArgs,
    },
    Audit(audit::AuditArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Rotate(rotate::RotateArgs),
    Root(root::RootArgs),
    Server(server::ServerArgs),
}

/// The option that names the CA's folder.
#[derive(Debug, Args)]
struct Dir {
    /// The CA's folder: keys and registry, closed to everybody but its owner
    #[arg(long, default_value = "/var/lib/handfast/ca", value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the command.
pub async fn run(args: CaArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Init(args) => init::run(args).await,
        Command::Serve {
            dir,
            listen,
            advertise,
            syslog,
            sign_without_store,
            lifetimes,
            metrics,
            passphrase,
            partners,
            socket,
        } => {
            let mut options = Options {
                syslog,
                advertise,
                sign_without_store,
                lifetimes: lifetimes.seconds(),
                passphrase_file: passphrase.passphrase_file,
                ..Options::new(dir.dir, listen, socket.admin_socket)
            };
            partners.apply(&mut options)?;
            options.check_policies = Some(Arc::new(policies::Checker::default()));
            serve(&options, metrics).await
        }
        Command::Status { socket, output } => status(&socket, output).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Backup(args) => backup::run(args).await,
        Command::Restore(args) => restore::run(args).await,
        Command::Rotate(args) => rotate::run(args).await,
        Command::Root(args) => root::run(args).await,
        Command::Server(args) => server::run(args).await,
    }
}

/// From 10 s, which a change of the database's leader may take, to a day.
fn sign_without_store(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
    allowed
        .contains(&time)
        .then_some(time)
        .ok_or_else(|| "choose from 10s to 1d".to_owned())
}

async fn serve(options: &Options, metrics: metrics::Place) -> anyhow::Result<()> {
    // Before anything is open: a signal that comes early is not lost.
    let shutdown = shutdown()?;
    allow_many_files();
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

/// A connection of each agent takes a file: as many as the system allows this process. With fewer it serves fewer.
fn allow_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    if most > 0 {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
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
    let mut admin = socket.connect().await?;
    let status = admin.status().await?;
    let rotations = admin.rotations().await?.live;
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
        (
            "recovery",
            match status.recovery.as_str() {
                "" => "none".to_owned(),
                reason => reason.to_owned(),
            },
        ),
        ("sequence", status.sequence.to_string()),
    ];
    let under_way = rotations.iter().map(|rotation| {
        let waits = match rotation.stragglers.as_slice() {
            [] => String::new(),
            [one] => format!("; waits: {}", one.reason),
            [one, more @ ..] => format!("; waits: {}; and {} more", one.reason, more.len()),
        };
        let what = format!("rotation of {}", rotation.what);
        let goes = format!("{}, goes to {}", rotation.stage, rotation.goal);
        vec![what, format!("{goes}{waits}")]
    });
    let alarms = status.newest_alarms.iter().map(|alarm| {
        let at = timestamp(alarm.at_ms / 1000);
        vec!["alarm".to_owned(), format!("{at}: {}", alarm.detail)]
    });
    let rows = lines
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value])
        .chain(under_way)
        .chain(alarms);
    let whole = WholeStatus {
        status: &status,
        rotations: &rotations,
    };
    output.print(&whole, &["WHAT", "VALUE"], rows)
}

/// The status with the rotations that are under way.
#[derive(Serialize)]
struct WholeStatus<'a> {
    #[serde(flatten)]
    status: &'a Status,
    rotations: &'a [Rotation],
}
