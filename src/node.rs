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
    /// Strike nodes off that are gone for good, with what is kept for them alone
    #[command(
        after_help = "A node goes if it never joined, if it is on the deny list (revoked or banned, which it stays), or if its\nlast certificate has ended. Its prefixes belong to nobody then: what is still sent there leaves as\ntraffic to the outside does, until another node has them.\n\nExample, for a machine that has just died:\n  handfast revoke --node web1 --reason \"disk lost\"\n  handfast node delete web1 --with-entries --reason \"disk lost\""
    )]
    Delete {
        #[command(flatten)]
        change: Change,
        /// Delete the entries along with it that have one of these nodes as their parent; without it they are in the way
        #[arg(long)]
        with_entries: bool,
    },
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
        Command::Delete {
            change: order,
            with_entries,
        } => delete(&mut admin, order, with_entries).await,
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

async fn delete(admin: &mut Admin, order: Change, with_entries: bool) -> anyhow::Result<()> {
    if order.dry_run {
        let nodes = admin.nodes().await?;
        // Who is in the way says so.
        let along = admin
            .would_delete_nodes(&order.names, with_entries, &order.reason)
            .await?;
        for node in nodes.iter().filter(|node| order.names.contains(&node.name)) {
            let heard = node.seen_at_ms.map_or_else(
                || "never heard".to_owned(),
                |ms| format!("last heard {}", timestamp(ms / 1000)),
            );
            outln!("{} ({}, {heard}) would be deleted", node.name, state(node));
        }
        for id in along {
            outln!("entry {id} would be deleted along with it");
        }
        outln!("nothing was changed");
        return Ok(());
    }
    let entries = admin
        .delete_nodes(&order.names, with_entries, &order.reason)
        .await?;
    let names: Vec<String> = order.names.iter().map(ToString::to_string).collect();
    let along = match entries.len() {
        0 => String::new(),
        count => format!(", with {count} of its entries"),
    };
    outln!("{}: deleted{along}", names.join(", "));
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
