//! `handfast status`: this node at a glance.

use clap::Args;
use handfast_agent::admin::{Request, Status};

use crate::admin_socket::AdminSocket;
use crate::output::{OutputArgs, timestamp};
use crate::pair::duration;

/// This node at a glance
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let status: Status = args.socket.ask(&Request::Status).await?;
    let mut rows = vec![
        ("node", format!("{} ({})", status.name, status.node)),
        ("version", status.version.clone()),
        ("up", duration(status.uptime_s)),
        ("node SVID until", timestamp(status.node_svid_expires)),
        (
            "CA",
            format!(
                "{} {}, update {}",
                status.ca_address,
                if status.ca_connected {
                    "connected"
                } else {
                    "NOT CONNECTED"
                },
                status.ca_sequence
            ),
        ),
        ("trust bundle", status.bundle_sequence.to_string()),
        ("first SVID ends", timestamp(status.nearest_expiry)),
        (
            "workloads",
            format!(
                "{} SVIDs, {} open streams",
                status.workload_svids, status.workload_streams
            ),
        ),
        (
            "tunnel",
            match status.tunnel.as_str() {
                "ipsec" => "IPsec (kernel)".to_owned(),
                whose => format!("WireGuard ({whose})"),
            },
        ),
        ("key exchange", status.key_exchange.clone()),
        ("endpoints", status.endpoints.to_string()),
        ("sessions", status.sessions.to_string()),
        ("pairs", status.pairs.to_string()),
        ("policy version", status.policy_version.to_string()),
        ("deny list", status.deny_number.to_string()),
    ];
    rows.extend(
        status
            .authorities_in_use
            .iter()
            .map(|authority| ("authority in use", authority.clone())),
    );
    if let Some(error) = &status.policy_error {
        rows.push(("policy error", error.clone()));
    }
    rows.extend(status.alarms.iter().map(|alarm| {
        let text = format!("{}: {}", timestamp(alarm.at), alarm.text);
        ("alarm", text)
    }));
    let counters = status
        .counters
        .iter()
        .map(|(name, count)| vec![name.clone(), count.to_string()]);
    args.output.print(
        &status,
        &["WHAT", "VALUE"],
        rows.into_iter()
            .map(|(name, value)| vec![name.to_owned(), value])
            .chain(counters),
    )
}
