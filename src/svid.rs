//! `handfast svid`: the identity documents that this node holds, and those of the calling process.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use handfast_agent::admin::{Request, SvidInfo};
use handfast_agent::workload_api::client::{Client, JwtFetched, SOCKET_VARIABLE, socket_path};
use serde_json::json;

use crate::admin_socket::AdminSocket;
use crate::output::{OutputArgs, timestamp};

/// SVIDs of this node and of its workloads
#[derive(Debug, Args)]
pub struct SvidArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The SVIDs that the agent holds, and when each ends
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The SVIDs of this process, as a workload gets them over the SPIFFE Workload API
    Fetch {
        #[command(subcommand)]
        what: Fetch,
    },
}

#[derive(Debug, Subcommand)]
enum Fetch {
    /// X509-SVIDs with their bundles; keys are shown nowhere, only written (--write)
    X509 {
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// JWT-SVIDs for an audience; tokens are secrets, and are shown unless they are written (--write)
    Jwt {
        /// Whom the token is for; repeat for several
        #[arg(long, required = true, value_name = "NAME")]
        audience: Vec<String>,
        /// One of this process's identities; a token for each if not given
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Where SVIDs come from, and go.
#[derive(Debug, Args)]
struct From {
    /// The Workload API's socket
    #[arg(
        long,
        env = SOCKET_VARIABLE,
        default_value = "unix:///run/handfast/agent.sock",
        value_parser = socket_path,
        value_name = "unix:///PATH"
    )]
    socket: PathBuf,
    /// Write them to this folder, readable by the owner only: svid.N.pem, svid.N.key, bundle.N.pem,
    /// federated_bundle.N.M.pem, jwt_svid.N.token
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// Runs the command.
pub async fn run(args: SvidArgs) -> anyhow::Result<()> {
    match args.command {
        Command::List { output } => list(&args.socket, &output).await,
        Command::Fetch { what } => match what {
            Fetch::X509 { from, output } => x509(&from, &output).await,
            Fetch::Jwt {
                audience,
                spiffe_id,
                from,
                output,
            } => jwt(audience, spiffe_id, &from, &output).await,
        },
    }
}

async fn list(socket: &AdminSocket, output: &OutputArgs) -> anyhow::Result<()> {
    let svids: Vec<SvidInfo> = socket.ask(&Request::SvidList).await?;
    output.print(
        &svids,
        &["SPIFFE ID", "KIND", "SERIAL", "NOT AFTER"],
        svids.iter().map(|svid| {
            vec![
                svid.spiffe_id.clone(),
                svid.kind.clone(),
                svid.serial.clone(),
                timestamp(svid.not_after),
            ]
        }),
    )
}

async fn x509(from: &From, output: &OutputArgs) -> anyhow::Result<()> {
    let fetched = Client::connect(&from.socket).await?.x509_svids().await?;
    if let Some(folder) = &from.write {
        tell(folder, fetched.write(folder)?.len());
    }
    let shown: Vec<_> = fetched
        .svids
        .iter()
        .map(|svid| {
            json!({
                "spiffe_id": svid.spiffe_id, "hint": svid.hint, "serial": svid.serial,
                "not_after": svid.not_after, "chain": svid.chain, "bundle": svid.bundle,
                "federated": fetched.federated,
            })
        })
        .collect();
    output.print(
        &shown,
        &["SPIFFE ID", "HINT", "SERIAL", "NOT AFTER"],
        fetched.svids.iter().map(|svid| {
            vec![
                svid.spiffe_id.clone(),
                svid.hint.clone(),
                svid.serial.clone(),
                timestamp(svid.not_after),
            ]
        }),
    )
}

async fn jwt(
    audience: Vec<String>,
    spiffe_id: Option<String>,
    from: &From,
    output: &OutputArgs,
) -> anyhow::Result<()> {
    let client = Client::connect(&from.socket).await?;
    let svids = client.jwt_svids(audience, spiffe_id).await?;
    let token = |svid: &JwtFetched| match &from.write {
        Some(_) => "(written)".to_owned(),
        None => svid.token.to_string(),
    };
    if let Some(folder) = &from.write {
        tell(folder, JwtFetched::write(&svids, folder)?.len());
    }
    let shown: Vec<_> = svids
        .iter()
        .map(|svid| json!({ "spiffe_id": svid.spiffe_id, "hint": svid.hint, "token": token(svid) }))
        .collect();
    output.print(
        &shown,
        &["SPIFFE ID", "HINT", "TOKEN"],
        svids
            .iter()
            .map(|svid| vec![svid.spiffe_id.clone(), svid.hint.clone(), token(svid)]),
    )
}

fn tell(folder: &Path, files: usize) {
    eprintln!("{files} files written to {}", folder.display());
}
