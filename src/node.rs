//! `handfast node`: the nodes of the registry.

use clap::{Args, Subcommand};
use handfast_ca::model::Node;

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
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs the command.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let Command::List { output } = args.command;
    let nodes = args.socket.connect().await?.nodes().await?;
    output.print(
        &nodes,
        &[
            "NAME",
            "STATE",
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

fn state(node: &Node) -> &'static str {
    match (node.revoked, node.joined_at_ms, node.managed) {
        (true, _, _) => "revoked",
        (false, None, _) => "expected",
        (false, Some(_), false) => "joining",
        (false, Some(_), true) => "managed",
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    values
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
