//! `handfast pair`: which identities have proven themselves to each other.

use clap::{Args, Subcommand};
use handfast_agent::admin::{PairInfo, Request};

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;

/// Proven pairs of identities on this node
#[derive(Debug, Args)]
pub struct PairArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The pairs that are recorded in the kernel's map
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Forget all pairs: flows that need a proof wait until it is given anew
    Flush,
}

/// Runs the command.
pub async fn run(args: PairArgs) -> anyhow::Result<()> {
    match args.command {
        Command::List { output } => {
            let pairs: Vec<PairInfo> = args.socket.ask(&Request::PairList).await?;
            output.print(
                &pairs,
                &["LOCAL", "REMOTE", "PEER", "EPOCH", "EXPIRES IN"],
                pairs.iter().map(|pair| {
                    vec![
                        pair.local.clone(),
                        pair.remote.clone(),
                        pair.peer.clone(),
                        pair.epoch.to_string(),
                        duration(pair.expires_in_s),
                    ]
                }),
            )
        }
        Command::Flush => {
            let count: u64 = args.socket.ask(&Request::PairFlush).await?;
            println!("{count} pairs forgotten; those that policy wants are being proven anew");
            Ok(())
        }
    }
}

/// Seconds in the form that people read: `23h 59m`.
pub fn duration(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}
