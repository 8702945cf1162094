//! `handfast ca server`: the servers that share one store.

use clap::{Args, Subcommand};

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Servers of this CA: several share a PostgreSQL database, each with an issuing CA of its own
#[derive(Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All servers, where agents find them, and when they were last heard
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Strike a server that is gone off the list, with its issuing CA and its JWT key
    Remove {
        /// Its name, as `ca server list` shows it
        name: String,
        /// Why; kept in the audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: String,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs the command.
pub async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    match args.command {
        Command::List { output } => {
            let servers = admin.servers().await?;
            output.print(
                &servers,
                &[
                    "SERVER",
                    "STATE",
                    "ADDRESS",
                    "VERSION",
                    "STARTED",
                    "LAST HEARD",
                ],
                servers.iter().map(|server| {
                    let state = match (server.this, server.alive) {
                        (true, _) => "this",
                        (false, true) => "alive",
                        (false, false) => "lost",
                    };
                    vec![
                        server.name.clone(),
                        state.to_owned(),
                        server.address.clone(),
                        server.version.clone(),
                        timestamp(server.started_at_ms / 1000),
                        timestamp(server.seen_at_ms / 1000),
                    ]
                }),
            )
        }
        Command::Remove {
            name,
            reason,
            dry_run,
        } => {
            if dry_run {
                let servers = admin.servers().await?;
                let found = servers.iter().find(|server| server.name == name);
                let server = found.ok_or_else(|| anyhow::anyhow!("there is no server {name}"))?;
                let heard = timestamp(server.seen_at_ms / 1000);
                outln!("{name}, last heard {heard}, would be removed; nothing was changed");
                return Ok(());
            }
            admin.remove_server(&name, &reason).await?;
            outln!("{name} is removed; agents go to the other servers");
            Ok(())
        }
    }
}
