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

#[macro_use]
mod output;

mod admin_socket;
mod agent;
mod bundle;
mod ca;
mod ca_socket;
mod check;
mod cni;
mod demo;
mod endpoint;
mod entry;
mod federation;
mod metrics;
mod node;
mod observe;
mod operator;
mod pair;
mod policy;
mod prefix;
mod reason;
mod revoke;
mod status;
mod svid;
mod token;
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
    Ca(ca::CaArgs),
    Operator(operator::OperatorArgs),
    Token(token::TokenArgs),
    Node(node::NodeArgs),
    Entry(entry::EntryArgs),
    Bundle(bundle::BundleArgs),
    Federation(federation::FederationArgs),
    Revoke(revoke::RevokeArgs),
    Agent(agent::AgentArgs),
    Endpoint(endpoint::EndpointArgs),
    Cni(cni::CniArgs),
    Svid(svid::SvidArgs),
    Pair(pair::PairArgs),
    Policy(policy::PolicyArgs),
    Tunnel(tunnel::TunnelArgs),
    Check(check::CheckArgs),
    Verify(verify::VerifyArgs),
    Status(status::StatusArgs),
    Observe(observe::ObserveArgs),
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    if cni::is_called() {
        return cni::as_plugin();
    }
    let cli = Cli::parse();
    if matches!(&cli.command, Command::Cni(args) if args.is_plugin()) {
        return cni::as_plugin();
    }
    log_to_stderr(&cli.command);
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)))
        .and_then(|()| output::finish());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", whole(&error));
            ExitCode::FAILURE
        }
    }
}

/// Daemons log what they do; commands only what is wrong. HANDFAST_LOG says otherwise (`debug`, `handfast_agent=trace`).
fn log_to_stderr(command: &Command) {
    let usual = match command {
        // What a database remarks on our statements is noise to who runs a CA.
        Command::Agent(_) | Command::Ca(_) => "info,sqlx=warn",
        _ => "warn",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("HANDFAST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written (its reader went, the disk is full) ends no daemon.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Ca(args) => ca::run(args).await,
        Command::Operator(args) => operator::run(args).await,
        Command::Token(args) => token::run(args).await,
        Command::Node(args) => node::run(args).await,
        Command::Entry(args) => entry::run(args).await,
        Command::Bundle(args) => bundle::run(args).await,
        Command::Federation(args) => federation::run(args).await,
        Command::Revoke(args) => revoke::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Endpoint(args) => endpoint::run(args).await,
        Command::Cni(args) => cni::run(args),
        Command::Svid(args) => svid::run(args).await,
        Command::Pair(args) => pair::run(args).await,
        Command::Policy(args) => policy::run(args).await,
        Command::Tunnel(args) => tunnel::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Observe(args) => observe::run(args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}

/// An error with its causes, each said once: some texts have their cause in them.
fn whole(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            said.push_str(": ");
            said.push_str(&cause);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_cause_is_said_once() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let client = handfast_agent::admin::ClientError::Connect {
            path: "/run/none".into(),
            source: missing(),
        };
        let said = super::whole(&client.into());
        assert_eq!(said.matches("entity not found").count(), 1, "{said}");
        let outer = Err::<(), _>(missing()).context("cannot read it");
        assert_eq!(
            super::whole(&outer.unwrap_err()),
            "cannot read it: entity not found"
        );
    }
}
