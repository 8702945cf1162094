//! `handfast svid`: the identity documents that this node holds.

use clap::{Args, Subcommand};
use handfast_agent::admin::{Request, SvidInfo};

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;

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
}

/// Runs the command.
pub async fn run(args: SvidArgs) -> anyhow::Result<()> {
    let Command::List { output } = args.command;
    let svids: Vec<SvidInfo> = args.socket.ask(&Request::SvidList).await?;
    output.print(
        &svids,
        &["SPIFFE ID", "KIND", "SERIAL", "NOT AFTER"],
        svids.iter().map(|svid| {
            vec![
                svid.spiffe_id.clone(),
                svid.kind.clone(),
                svid.serial.clone(),
                crate::output::timestamp(svid.not_after),
            ]
        }),
    )
}
