//! `handfast token`: what a node joins with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use handfast_ca::NodeName;
use handfast_ca::client::admin::TokenRequest;
use handfast_ca::token::TokenFile;
use ipnet::IpNet;

use crate::ca::CaSocket;
use crate::output::timestamp;

/// Join tokens: each works once, for one node
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token file for a node, and register the node if it is new
    #[command(
        after_help = "Example:\n  handfast token create --node web1 --prefix 10.1.0.0/24 --underlay 192.0.2.10 \\\n      --ca-address 192.0.2.1:7251 --out web1.join\nThen carry the file to the node, and run there:\n  handfast agent join web1.join"
    )]
    Create(Create),
}

#[derive(Debug, Args)]
struct Create {
    /// The node that may use it
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// Addresses of the node's workloads, out of the CA's ranges; again for more. A node that
    /// is known keeps what it has if none is given
    #[arg(long, value_name = "CIDR")]
    prefix: Vec<IpNet>,
    /// Where other nodes reach this one; port 7250 if none is given; again for more
    #[arg(long, value_name = "IP[:PORT]")]
    underlay: Vec<String>,
    /// Where the node reaches this CA
    #[arg(long, value_name = "HOST:PORT")]
    ca_address: String,
    /// How long the token may be used (30m, 12h, 7d)
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// The node starts as joining: cleartext toward it is counted, not dropped
    #[arg(long)]
    joining: bool,
    /// Where to write the token; it must not exist. It is as good as a password until it is used
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command.
pub async fn run(args: TokenArgs) -> anyhow::Result<()> {
    let Command::Create(create) = args.command;
    // First, so that a token which cannot be kept is not made.
    let file = TokenFile::create(&create.out)?;
    let request = TokenRequest {
        node: create.node,
        prefixes: create.prefix,
        underlay: create.underlay,
        ca_address: create.ca_address,
        ttl: create.ttl,
        joining: create.joining,
    };
    let token = args.socket.connect().await?.create_token(&request).await?;
    file.write(&token)
        .context("the token was made and is lost; it ends by itself, make another one")?;
    outln!(
        "wrote {}: {} may join with it once, until {}",
        create.out.display(),
        token.node,
        timestamp(token.expires_at_ms / 1000)
    );
    outln!(
        "next, on {}: handfast agent join {}",
        token.node,
        create.out.display()
    );
    Ok(())
}
