//! The handfast command line: one file per noun, thin; the libraries below do the work.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod admin_socket;
mod endpoint;
mod observe;
mod output;
mod pair;
mod status;
mod svid;
mod tunnel;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Proves who is at both ends of every flow, and encrypts it with keys born from that proof
///
/// Exit status: 0 if the command did what it says, 1 on failure, 2 on wrong usage.
#[derive(Debug, Parser)]
#[command(name = "handfast", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Endpoint(endpoint::EndpointArgs),
    Svid(svid::SvidArgs),
    Pair(pair::PairArgs),
    Tunnel(tunnel::TunnelArgs),
    Status(status::StatusArgs),
    Observe(observe::ObserveArgs),
    Verify(verify::VerifyArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Endpoint(args) => endpoint::run(args).await,
        Command::Svid(args) => svid::run(args).await,
        Command::Pair(args) => pair::run(args).await,
        Command::Tunnel(args) => tunnel::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Observe(args) => observe::run(args).await,
        Command::Verify(args) => verify::run(args).await,
    }
}
