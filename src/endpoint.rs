//! `handfast endpoint`: workloads of this node.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, Subcommand};
use handfast_agent::admin::{EndpointInfo, Request};
use handfast_agent::endpoint::{Exempt, Group, NamespaceName};

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;

/// How long the identity of a new workload is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);

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
    /// Attach a workload: a network namespace, or sockets of this machine itself
    ///
    /// A namespace that is linked to this node already (by a CNI) keeps its link. One that is not gets a routed
    /// veth pair with the addresses given. Its identity is that of the entry whose selectors match, for
    /// example one made with: handfast entry create --selector netns:NAME
    ///
    /// Sockets of this machine are told by the control group that they were made in (--unit, --cgroup, or --host for
    /// all). They get an address of their own, which nobody else on the machine can use, and by which alone policy
    /// applies to them: everything else that the machine sends and receives stays as it is. Entries select them by
    /// systemd:id:UNIT, cgroup:PATH, endpoint:NAME or label:KEY=VALUE. The same command again finds the group of a unit
    /// that was started anew; the agent looks by itself every two seconds.
    #[command(group(ArgGroup::new("workload").required(true).args(["netns", "unit", "cgroup", "host"])))]
    Add {
        /// The network namespace, as `ip netns list` shows it
        #[arg(long, value_name = "NAME", value_parser = NamespaceName::new)]
        netns: Option<NamespaceName>,
        /// A systemd unit of this machine that runs, for example web.service
        #[arg(long, value_name = "UNIT", requires = "addresses")]
        unit: Option<String>,
        /// A control group of this machine (version 2): its folder, or its path below the root
        #[arg(long, value_name = "PATH", requires = "addresses")]
        cgroup: Option<PathBuf>,
        /// All sockets of this machine
        #[arg(long, requires = "addresses")]
        host: bool,
        /// A port of the address that policy does not close, for workloads of this machine itself: PROTOCOL/PORT; repeat
        /// for more
        #[arg(
            long,
            value_name = "tcp/PORT",
            default_values = ["tcp/22"],
            conflicts_with_all = ["netns", "no_exempt"]
        )]
        exempt: Vec<Exempt>,
        /// No port of the address stays open whatever policy says, not even SSH
        #[arg(long, conflicts_with = "netns")]
        no_exempt: bool,
        /// What to call the endpoint [default: the name of the namespace, unit or group, or `host`]
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

/// The endpoint with its identity, if it has one soon: an entry may have been made a moment ago.
async fn identified(
    socket: &AdminSocket,
    mut endpoint: EndpointInfo,
) -> anyhow::Result<EndpointInfo> {
    let deadline = Instant::now() + PATIENCE;
    while endpoint.spiffe_id.is_none() && Instant::now() < deadline {
        tokio::time::sleep(AGAIN).await;
        let all: Vec<EndpointInfo> = socket.ask(&Request::EndpointList).await?;
        match all.into_iter().find(|one| one.id == endpoint.id) {
            Some(now) => endpoint = now,
            // Somebody has removed it again.
            None => break,
        }
    }
    Ok(endpoint)
}

/// Runs the command.
pub async fn run(args: EndpointArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Add {
            netns,
            unit,
            cgroup,
            host,
            exempt,
            no_exempt,
            name,
            addresses,
            labels,
            output,
        } => {
            let unit = unit.map(Group::Unit);
            let group = unit
                .or(cgroup.map(Group::Path))
                .or(host.then_some(Group::Machine));
            let keeps = group.is_some() && !no_exempt;
            let request = Request::EndpointAdd {
                name,
                netns,
                group,
                exempt: if keeps { exempt } else { Vec::new() },
                labels: labels.into_iter().collect(),
                addresses,
            };
            let added: EndpointInfo = args.socket.ask(&request).await?;
            let endpoint = identified(&args.socket, added).await?;
            print(output, std::slice::from_ref(&endpoint))?;
            if endpoint.spiffe_id.is_none() {
                let selector = match (&endpoint.netns, &endpoint.cgroup) {
                    (Some(netns), _) => format!("netns:{netns}"),
                    (None, Some(path)) => format!("cgroup:{path}"),
                    (None, None) => format!("endpoint:{}", endpoint.name),
                };
                eprintln!(
                    "endpoint {} has no identity yet: no entry that this node has heard of matches it; if there is \
                     none, make one on the CA with: handfast entry create --selector {selector} …",
                    endpoint.name
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
            outln!("endpoint {name} removed; its addresses are being withdrawn from the peers");
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
            "PLACE",
            "ADDRESSES",
            "IDENTITY",
            "EXEMPT",
            "LABELS",
            "ANNOUNCED TO",
        ],
        endpoints.iter().map(|endpoint| {
            vec![
                endpoint.id.to_string(),
                endpoint.name.clone(),
                place(endpoint),
                join(endpoint.addresses.iter()),
                endpoint.spiffe_id.clone().unwrap_or_else(|| "none".into()),
                join(endpoint.exempt.iter()),
                join(endpoint.labels.iter().map(|(k, v)| format!("{k}={v}"))),
                join(endpoint.announced_to.iter()),
            ]
        }),
    )
}

/// Where it is: its namespace, or the control group of this machine.
fn place(endpoint: &EndpointInfo) -> String {
    match (&endpoint.netns, &endpoint.cgroup) {
        (Some(netns), _) => netns.clone(),
        (None, Some(path)) => format!("cgroup {path}"),
        (None, None) => String::new(),
    }
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(",")
}
