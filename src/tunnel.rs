//! `handfast tunnel`: sessions with peers and the tunnels bound to them.

use clap::{Args, Subcommand};
use handfast_agent::admin::{PeerInfo, Request};

use crate::admin_socket::AdminSocket;
use crate::output::OutputArgs;
use crate::pair::duration;

/// Sessions with peers and the tunnels bound to them
#[derive(Debug, Args)]
pub struct TunnelArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every peer: its session, its tunnel, what went through
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs the command.
pub async fn run(args: TunnelArgs) -> anyhow::Result<()> {
    let Command::Status { output } = args.command;
    let peers: Vec<PeerInfo> = args.socket.ask(&Request::TunnelStatus).await?;
    let some = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let wire = |peer: &PeerInfo, value: Option<String>| match peer.tunnel_answers {
        true => some(value),
        false => "unknown".into(),
    };
    output.print(
        &peers,
        &[
            "PEER",
            "SESSION",
            "EPOCH",
            "EXPIRES IN",
            "PREFIXES",
            "ENDPOINT",
            "LAST HANDSHAKE",
            "RECEIVED",
            "SENT",
        ],
        peers.iter().map(|peer| {
            vec![
                peer.name.clone(),
                peer.state.clone(),
                peer.epoch.to_string(),
                some(peer.expires_in_s.map(duration)),
                peer.prefixes.join(","),
                wire(peer, peer.tunnel_endpoint.clone()),
                wire(
                    peer,
                    peer.last_handshake_s
                        .map(|s| format!("{} ago", duration(s))),
                ),
                wire(peer, peer.received_bytes.map(|bytes| bytes.to_string())),
                wire(peer, peer.sent_bytes.map(|bytes| bytes.to_string())),
            ]
        }),
    )
}
