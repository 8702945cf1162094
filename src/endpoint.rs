//! `handfast endpoint`: workloads of this node.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use handfast_agent::admin::{EndpointInfo, Request};
use handfast_agent::endpoint::NamespaceName;

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;

/// Attach, list and detach the workloads of this node
#[derive(Debug, Args)]
pub struct EndpointArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach a network namespace as a workload
    ///
    /// A namespace that is linked to this node already (by a CNI) keeps its link. One that is not gets a routed
    /// veth pair with the addresses given. Its identity is that of the entry whose selectors match, for
    /// example one made with: handfast entry create --selector netns:NAME
    Add {
        /// The network namespace, as `ip netns list` shows it
        #[arg(long, value_name = "NAME", value_parser = NamespaceName::new)]
        netns: NamespaceName,
        /// What to call the endpoint [default: the namespace's name]
        #[arg(long)]
        name: Option<String>,
        /// An address for the workload, within the node's prefixes; repeat for IPv4 and IPv6
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// A label that entries may select the endpoint by (label:KEY=VALUE); repeat for more
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The workloads of this node
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Detach a workload: its addresses are withdrawn from every peer
    Remove {
        /// The endpoint's name
        name: String,
    },
}

/// Runs the command.
pub async fn run(args: EndpointArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Add {
            netns,
            name,
            addresses,
            labels,
            output,
        } => {
            let request = Request::EndpointAdd {
                name,
                netns,
                labels: labels.into_iter().collect(),
                addresses,
            };
            let endpoint: EndpointInfo = args.socket.ask(&request).await?;
            print(output, std::slice::from_ref(&endpoint))?;
            if endpoint.spiffe_id.is_none() {
                eprintln!(
                    "endpoint {} has no identity yet: no entry's selectors match it; \
                     make one on the CA with: handfast entry create --selector netns:{} …",
                    endpoint.name, endpoint.netns
                );
            }
        }
        Command::List { output } => {
            let endpoints: Vec<EndpointInfo> = args.socket.ask(&Request::EndpointList).await?;
            print(output, &endpoints)?;
        }
        Command::Remove { name } => {
            let _: EndpointInfo = args
                .socket
                .ask(&Request::EndpointRemove { name: name.clone() })
                .await?;
            println!("endpoint {name} removed; its addresses are being withdrawn from the peers");
        }
    }
    Ok(())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

fn print(output: OutputArgs, endpoints: &[EndpointInfo]) -> anyhow::Result<()> {
    output.print(
        &endpoints,
        &[
            "ID",
            "NAME",
            "NETNS",
            "ADDRESSES",
            "IDENTITY",
            "LABELS",
            "ANNOUNCED TO",
        ],
        endpoints.iter().map(|endpoint| {
            vec![
                endpoint.id.to_string(),
                endpoint.name.clone(),
                endpoint.netns.clone(),
                join(endpoint.addresses.iter()),
                endpoint.spiffe_id.clone().unwrap_or_else(|| "none".into()),
                join(endpoint.labels.iter().map(|(k, v)| format!("{k}={v}"))),
                join(endpoint.announced_to.iter()),
            ]
        }),
    )
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(",")
}
