//! `handfast token`: what a node joins with.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use handfast_ca::NodeName;
use handfast_ca::client::admin::{Admin, TokenRequest};
use handfast_ca::model::{Node, SESSION_PORT, TokenId, TokenRecord};
use handfast_ca::token::TokenFile;
use ipnet::IpNet;
use serde::Serialize;

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

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
    /// Tokens that were made and not used: open, or void and why
    List {
        /// Those of this node
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        /// Also those that were used or have expired
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make tokens void that were lost: nobody joins with them any more
    #[command(
        after_help = "A token that was used is spent: what it let in is a node (`handfast node evict`, `handfast revoke --node`).\n\nExample:\n  handfast token delete 6b51d431df5d7f14 --reason \"lost in the post\""
    )]
    Delete(Delete),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "node"])))]
struct Delete {
    /// The tokens, as `token list` shows them: all of them or, on an error, none
    #[arg(value_name = "TOKEN")]
    ids: Vec<TokenId>,
    /// All that are open for this node
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Why; kept with the token and in the CA's audit log
    #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
    reason: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct Create {
    /// The node that may use it
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// Addresses of the node's workloads, out of the CA's ranges; again for more. A node that
    /// is known keeps what it has if none is given
    #[arg(long, value_name = "CIDR", value_parser = crate::prefix::read)]
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
    /// Where to write the token; it must not exist; - for standard output. It is as good as a password until it is used
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command.
pub async fn run(args: TokenArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Create(create) => self::create(&args.socket, create).await,
        Command::List { node, all, output } => list(&args.socket, node, all, output).await,
        Command::Delete(order) => delete(&mut args.socket.connect().await?, order).await,
    }
}

async fn list(
    socket: &CaSocket,
    node: Option<NodeName>,
    all: bool,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let mut admin = socket.connect().await?;
    let now = admin.status().await?.now_ms;
    let tokens = admin.tokens().await?.into_iter();
    let shown: Vec<Listed> = tokens
        .filter(|token| node.as_ref().is_none_or(|node| token.node == *node))
        .map(|token| Listed {
            state: token.state(now),
            token,
        })
        .filter(|one| all || matches!(one.state, "open" | "void"))
        .collect();
    output.print(
        &shown,
        &["TOKEN", "NODE", "STATE", "MADE", "UNTIL", "WHY"],
        shown.iter().map(|Listed { state, token }| {
            let used = token.used_at_ms.map(|ms| timestamp(ms / 1000));
            vec![
                token.id.to_string(),
                token.node.to_string(),
                (*state).to_owned(),
                timestamp(token.created_at_ms / 1000),
                timestamp(token.expires_at_ms / 1000),
                used.map_or_else(|| token.void.clone(), |at| format!("used at {at}")),
            ]
        }),
    )
}

/// A token with its state in one word.
#[derive(Serialize)]
struct Listed {
    state: &'static str,
    #[serde(flatten)]
    token: TokenRecord,
}

async fn delete(admin: &mut Admin, order: Delete) -> anyhow::Result<()> {
    let now = admin.status().await?.now_ms;
    let known = admin.tokens().await?;
    let mut ids = order.ids;
    if let Some(node) = &order.node {
        let open = known
            .iter()
            .filter(|token| token.node == *node && token.state(now) == "open");
        ids = open.map(|token| token.id).collect();
        if ids.is_empty() {
            outln!("no token of {node} is open; nothing was changed");
            return Ok(());
        }
    }
    if order.dry_run {
        for id in &ids {
            let Some(token) = known.iter().find(|token| token.id == *id) else {
                bail!("there is no token {id}; nothing was changed");
            };
            let fate = match token.state(now) {
                "open" => "would be deleted",
                "used" => "was used: it cannot be deleted",
                _ => "is of no use already",
            };
            outln!("token {id} of {} {fate}", token.node);
        }
        outln!("nothing was changed");
        return Ok(());
    }
    let deleted = admin.delete_tokens(&ids, &order.reason).await?;
    for id in &ids {
        match deleted.iter().find(|token| token.id == *id) {
            Some(token) => outln!("token {id} of {}: deleted", token.node),
            None => outln!("token {id} was of no use already; nothing was changed"),
        }
    }
    Ok(())
}

async fn create(socket: &CaSocket, create: Create) -> anyhow::Result<()> {
    // First, so that a token which cannot be kept is not made.
    let file = match create.out.as_os_str() == "-" {
        true => None,
        false => Some(TokenFile::create(&create.out)?),
    };
    let request = TokenRequest {
        node: create.node,
        prefixes: create.prefix,
        underlay: create.underlay,
        ca_address: create.ca_address,
        ttl: create.ttl,
        joining: create.joining,
    };
    let mut admin = socket.connect().await?;
    let nodes = admin.nodes().await?;
    if let Some((node, address)) = taken(&nodes, &request) {
        bail!(
            "underlay address {address} is that of node {node}, which is reached there; nothing was changed. If {node} is gone for good, revoke it first (`handfast revoke --node {node}`)"
        );
    }
    let known = nodes.iter().find(|node| node.name == request.node);
    let out = known.and_then(|node| match node {
        node if node.banned => Some("banned (`handfast node unban`)"),
        node if node.revoked => Some("revoked (`handfast revoke --undo --node`)"),
        _ => None,
    });
    if let Some(out) = out {
        eprintln!(
            "note: {} is {out}: the token buys nothing until that is lifted",
            request.node
        );
    }
    let token = admin.create_token(&request).await?;
    let Some(file) = file else {
        out!("{}", *token.to_text()?);
        return Ok(());
    };
    file.write(&token)
        .context("the token was made and is lost; it ends by itself, make another one")?;
    outln!(
        "wrote {}: {} may join with it once, until {} (token {}; if it gets lost: handfast token delete)",
        create.out.display(),
        token.node,
        timestamp(token.expires_at_ms / 1000),
        token.secret.id()
    );
    outln!(
        "next, on {}: handfast agent join {}",
        token.node,
        create.out.display()
    );
    Ok(())
}

/// Another node that is reached where the new one would be: to the peers of both they would be one. (A cluster gives an
/// address again that a node of the past had; an operator who does has most likely mistyped it.)
fn taken<'a>(nodes: &'a [Node], request: &TokenRequest) -> Option<(&'a NodeName, SocketAddr)> {
    let wanted: Vec<SocketAddr> = request
        .underlay
        .iter()
        .filter_map(|text| {
            let plain = text.parse::<IpAddr>().ok();
            plain
                .map(|ip| SocketAddr::new(ip, SESSION_PORT))
                .or_else(|| text.parse().ok())
        })
        .collect();
    let others = nodes
        .iter()
        .filter(|node| node.name != request.node && !node.revoked && !node.banned);
    others
        .flat_map(|node| node.underlay.iter().map(move |at| (&node.name, *at)))
        .find(|(_, at)| wanted.contains(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, revoked: bool) -> Node {
        Node {
            spiffe_id: format!("spiffe://example.org/handfast/node/{name}")
                .parse()
                .unwrap(),
            name: name.parse().unwrap(),
            prefixes: Vec::new(),
            underlay: vec!["192.0.2.10:7250".parse().unwrap()],
            managed: true,
            assignment: 1,
            joined_at_ms: None,
            seen_at_ms: None,
            acknowledged: 0,
            problem: String::new(),
            revoked,
            evicted: false,
            banned: false,
            attestation: String::new(),
            authorities_in_use: Vec::new(),
        }
    }

    #[test]
    fn an_underlay_address_of_another_node_is_found() {
        let request = |name: &str, underlay: &str| TokenRequest {
            node: name.parse().unwrap(),
            prefixes: Vec::new(),
            underlay: vec![underlay.to_owned()],
            ca_address: "192.0.2.1:7251".to_owned(),
            ttl: Duration::from_secs(60),
            joining: false,
        };
        let there = [node("web1", false)];
        for same in ["192.0.2.10", "192.0.2.10:7250"] {
            assert!(taken(&there, &request("web2", same)).is_some(), "{same}");
            assert!(taken(&there, &request("web1", same)).is_none(), "its own");
        }
        for other in ["192.0.2.11", "192.0.2.10:7260", "[2001:db8::1]"] {
            assert!(taken(&there, &request("web2", other)).is_none(), "{other}");
        }
        let gone = [node("web1", true)];
        assert!(taken(&gone, &request("web2", "192.0.2.10")).is_none());
    }
}
