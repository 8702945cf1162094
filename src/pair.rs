//! `handfast pair`: which identities have proven themselves to each other.

use clap::{Args, Subcommand};
use handfast_agent::admin::{PairDetail, ProofInfo, Request};

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
    /// The pairs that are recorded in the kernel's map, the proofs they rest on, and the rules that ask for them
    ///
    /// RULES names the first; JSON and YAML have all, and the proofs' serial numbers. A pair that no rule asks for was
    /// proven ahead. For one flow, and what is missing: handfast verify FROM TO
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
            let pairs = args.socket.connect().await?.pairs().await?;
            output.print(
                &pairs,
                &[
                    "LOCAL",
                    "REMOTE",
                    "PEER",
                    "EPOCH",
                    "EXPIRES IN",
                    "PROOFS END IN",
                    "RULES",
                ],
                pairs.iter().map(row),
            )
        }
        Command::Flush => {
            let count: u64 = args.socket.ask(&Request::PairFlush).await?;
            outln!("{count} pairs forgotten; those that policy wants are being proven anew");
            Ok(())
        }
    }
}

fn row(of: &PairDetail) -> Vec<String> {
    let ends = |proof: &Option<ProofInfo>| {
        let proof = proof.as_ref();
        proof.map_or_else(
            || "unknown".to_owned(),
            |proof| duration(proof.expires_in_s),
        )
    };
    vec![
        of.pair.local.clone(),
        of.pair.remote.clone(),
        of.pair.peer.clone(),
        of.pair.epoch.to_string(),
        duration(of.pair.expires_in_s),
        format!("{}, {}", ends(&of.local_proof), ends(&of.remote_proof)),
        match of.rules.as_slice() {
            [] => "none asks for it".to_owned(),
            [only] => only.clone(),
            [first, more @ ..] => format!("{first} and {} more", more.len()),
        },
    ]
}

/// Seconds in the form that people read: `23h 59m`.
pub fn duration(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}
