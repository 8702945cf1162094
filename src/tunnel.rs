//! `handfast tunnel`: the tunnels between this node and its peers.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::{Args, Subcommand};
use handfast_agent::admin::{PeerInfo, Request, RotationInfo, WireInfo, WireVerdict};

use crate::admin_socket::AdminSocket;
use crate::output::{Format, OutputArgs};
use crate::pair::duration;

/// How often is asked whether peers have followed.
const LOOK: Duration = Duration::from_millis(500);

/// The tunnels between this node and its peers: how they stand, new keys, what the wire shows
#[derive(Debug, Args)]
pub struct TunnelArgs {
    #[command(flatten)]
    socket: AdminSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every peer: its session, the tunnel bound to it, how old its keys are, what went through and what was lost
    ///
    /// The JSON and YAML forms have all fields; errors and drops are counted by device, refused packets by peer where
    /// the tunnel can tell.
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change this node's keys toward all peers, without losing a packet
    ///
    /// WireGuard: a new static key on a second device, to which peers move when both nodes are ready; the device before
    /// goes when it is empty. IPsec: the next keys of each session, in both directions. Peers that cannot follow
    /// within their session get a new one.
    RotateKeys {
        /// Say what has begun, and do not wait until peers have followed
        #[arg(long)]
        no_wait: bool,
        /// How long to wait for them, in seconds
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Send probes to peers and look at the wire: encrypted packets must be seen, and nothing that can be read
    ///
    /// Probes are UDP datagrams to port 9 (discard) from a workload here to one of the peer's, where two have been
    /// announced to each other; policy decides on them as on any packet. Exit status 1 if anything readable was seen,
    /// or a probe was not seen encrypted.
    Verify {
        /// Only this peer (name or SPIFFE ID)
        peer: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Runs the command.
pub async fn run(args: TunnelArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Status { output } => status(&args.socket, output).await,
        Command::RotateKeys {
            no_wait,
            timeout,
            output,
        } => {
            let patience = (!no_wait).then(|| Duration::from_secs(timeout));
            rotate(&args.socket, patience, output).await
        }
        Command::Verify { peer, output } => verify(&args.socket, peer, output).await,
    }
}

async fn status(socket: &AdminSocket, output: OutputArgs) -> anyhow::Result<()> {
    let peers: Vec<PeerInfo> = socket.ask(&Request::TunnelStatus).await?;
    output.print(
        &peers,
        &[
            "PEER",
            "KIND",
            "DEVICE",
            "SESSION",
            "EPOCH",
            "EXPIRES IN",
            "KEYS' AGE",
            "LAST HANDSHAKE",
            "ENDPOINT",
            "RECEIVED",
            "SENT",
            "REFUSED",
            "ERRORS",
            "DROPS",
        ],
        peers.iter().map(row),
    )
}

fn row(peer: &PeerInfo) -> Vec<String> {
    let some = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let wire = |value: Option<String>| match peer.tunnel_answers {
        true => some(value),
        false => "unknown".into(),
    };
    let count = |value: Option<u64>| wire(value.map(|count| count.to_string()));
    let session = match peer.bound {
        Some(false) => format!("{}, tunnel not bound to it", peer.state),
        _ => peer.state.clone(),
    };
    vec![
        peer.name.clone(),
        peer.kind.clone(),
        match &peer.other_device {
            Some(other) => format!("{} ({other})", some(peer.device.clone())),
            None => some(peer.device.clone()),
        },
        session,
        peer.epoch.to_string(),
        some(peer.expires_in_s.map(duration)),
        some(peer.keys_age_s.map(duration)),
        wire(
            peer.last_handshake_s
                .map(|s| format!("{} ago", duration(s))),
        ),
        wire(peer.tunnel_endpoint.clone()),
        count(peer.received_bytes),
        count(peer.sent_bytes),
        count(peer.refused_packets),
        count(peer.device_errors),
        count(peer.device_drops),
    ]
}

async fn rotate(
    socket: &AdminSocket,
    patience: Option<Duration>,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let begun: RotationInfo = socket.ask(&Request::TunnelRotate).await?;
    let followed = match patience {
        Some(patience) => follow(socket, &begun, patience).await,
        None => Ok(()),
    };
    let verb = match (patience, &followed) {
        (Some(_), Ok(())) => "changed",
        _ => "changing",
    };
    if output.output == Format::Table {
        match &begun.new_key {
            Some(key) => outln!("{verb}: this node's WireGuard key is {key}"),
            None => outln!("{verb}: ESP keys"),
        }
        outln!("peers: {}", list(&begun.peers));
        if begun.new_key.is_none() && !begun.by_new_session.is_empty() {
            outln!("by a new session: {}", list(&begun.by_new_session));
        }
    } else {
        output.print(&begun, &[], [])?;
    }
    followed
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}

/// Until every peer that took part has moved to the new key and the former one has gone.
async fn follow(
    socket: &AdminSocket,
    begun: &RotationInfo,
    patience: Duration,
) -> anyhow::Result<()> {
    let Some(key) = &begun.new_key else {
        return Ok(());
    };
    let deadline = Instant::now() + patience;
    loop {
        let peers: Vec<PeerInfo> = socket.ask(&Request::TunnelStatus).await?;
        let behind = peers.iter().filter(|peer| {
            let moved = peer.own_key.as_ref() == Some(key) && peer.other_device.is_none();
            peer.device.is_some() && !moved
        });
        let behind: Vec<&str> = behind.map(|peer| peer.name.as_str()).collect();
        if behind.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "these peers have not followed in {} s: {}; they go on under the former key until they do, or until \
                 their session ends (handfast tunnel status)",
                patience.as_secs(),
                behind.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn verify(
    socket: &AdminSocket,
    peer: Option<String>,
    output: OutputArgs,
) -> anyhow::Result<()> {
    let seen: Vec<WireInfo> = socket.ask(&Request::TunnelVerify { peer }).await?;
    output.print(
        &seen,
        &[
            "PEER",
            "KIND",
            "VERDICT",
            "PROBES",
            "ENCRYPTED OUT",
            "ENCRYPTED IN",
            "READABLE",
            "DETAIL",
        ],
        seen.iter().map(|wire| {
            vec![
                wire.name.clone(),
                wire.kind.clone(),
                match wire.verdict {
                    WireVerdict::Ok => "ok".into(),
                    WireVerdict::Failed => "FAILED".into(),
                    WireVerdict::Unknown => "unknown".into(),
                },
                wire.probes.to_string(),
                wire.encrypted_sent.to_string(),
                wire.encrypted_received.to_string(),
                wire.readable.to_string(),
                wire.detail.clone(),
            ]
        }),
    )?;
    let failed = seen.iter().any(|wire| wire.verdict == WireVerdict::Failed);
    ensure!(!failed, "the wire does not show what it should");
    Ok(())
}
