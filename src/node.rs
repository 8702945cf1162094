//! `handfast node`: the nodes of the registry.

use anyhow::ensure;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use handfast_ca::NodeName;
use handfast_ca::client::admin::Admin;
use handfast_ca::model::{Node, NodeAct};

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Nodes that the CA knows
#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All nodes: what they may have, whether they have joined, what they have applied
    List {
        /// Only nodes in this state: expected, joining, managed, evicted, banned or revoked
        #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES), hide_possible_values = true)]
        state: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Put nodes out: each must attest again before it gets anything more
    #[command(
        after_help = "The node's certificate counts no more here; to its peers it does until it ends. To cut it from\nthem now, revoke it (`handfast revoke --node`), or ban it."
    )]
    Evict(Change),
    /// Put nodes out for good: cut now by their peers, never to attest again until that is lifted
    Ban(Change),
    /// Lift bans: the nodes may attest again
    Unban(Change),
    /// From joining to managed: from now on nothing between these nodes and managed ones may go in cleartext
    Enforce {
        #[command(flatten)]
        change: Change,
        /// Back to joining: cleartext between them and others is counted, not dropped
        #[arg(long)]
        undo: bool,
    },
}

#[derive(Debug, Args)]
struct Change {
    /// The nodes, all of them or, on an error, none
    #[arg(required = true, value_name = "NAME")]
    names: Vec<NodeName>,
    /// Why; kept with the node and in the CA's audit log
    #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
    reason: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    match args.command {
        Command::List { state, output } => list(&mut admin, state.as_deref(), output).await,
        Command::Evict(order) => change(&mut admin, NodeAct::Evict, order).await,
        Command::Ban(order) => change(&mut admin, NodeAct::Ban, order).await,
        Command::Unban(order) => change(&mut admin, NodeAct::Unban, order).await,
        Command::Enforce {
            change: order,
            undo: false,
        } => change(&mut admin, NodeAct::Enforce, order).await,
        Command::Enforce {
            change: order,
            undo: true,
        } => change(&mut admin, NodeAct::Relax, order).await,
    }
}

async fn change(admin: &mut Admin, act: NodeAct, order: Change) -> anyhow::Result<()> {
    let (done, refused) = match act {
        NodeAct::Evict => ("evicted", "evicted already"),
        NodeAct::Ban => ("banned", "banned already"),
        NodeAct::Unban => ("allowed to attest again", "not banned"),
        NodeAct::Enforce => ("managed", "managed already"),
        NodeAct::Relax => ("joining", "joining already"),
    };
    if order.dry_run {
        let nodes = admin.nodes().await?;
        for name in &order.names {
            let node = nodes.iter().find(|node| node.name == *name);
            ensure!(
                node.is_some(),
                "there is no node {name}; nothing was changed"
            );
            let node = node.map(state).unwrap_or_default();
            outln!("{name} ({node}) would be {done}");
        }
        outln!("nothing was changed");
        return Ok(());
    }
    let names: Vec<String> = order.names.iter().map(ToString::to_string).collect();
    if admin.change_nodes(act, &order.names, &order.reason).await? {
        outln!("{}: {done}", names.join(", "));
    } else {
        outln!("{}: {refused}; nothing was changed", names.join(", "));
    }
    Ok(())
}

async fn list(admin: &mut Admin, wanted: Option<&str>, output: OutputArgs) -> anyhow::Result<()> {
    let mut nodes = admin.nodes().await?;
    if let Some(wanted) = wanted {
        nodes.retain(|node| state(node) == wanted);
    }
    output.print(
        &nodes,
        &[
            "NAME",
            "STATE",
            "ATTESTED BY",
            "PREFIXES",
            "UNDERLAY",
            "APPLIED",
            "LAST HEARD",
            "PROBLEM",
        ],
        nodes.iter().map(|node| {
            vec![
                node.name.to_string(),
                state(node).to_owned(),
                if node.attestation.is_empty() {
                    "-".to_owned()
                } else {
                    node.attestation.clone()
                },
                joined(&node.prefixes),
                joined(&node.underlay),
                node.acknowledged.to_string(),
                node.seen_at_ms
                    .map_or_else(|| "-".to_owned(), |ms| timestamp(ms / 1000)),
                node.problem.clone(),
            ]
        }),
    )
}

/// What [`state`] says.
const STATES: [&str; 6] = [
    "expected", "joining", "managed", "evicted", "banned", "revoked",
];

/// In one word, the gravest first.
fn state(node: &Node) -> &'static str {
    match node {
        node if node.banned => "banned",
        node if node.revoked => "revoked",
        node if node.evicted => "evicted",
        Node {
            joined_at_ms: None, ..
        } => "expected",
        Node { managed: false, .. } => "joining",
        _ => "managed",
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
