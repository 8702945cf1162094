//! `handfast ca restore`: a CA from a backup, and the end of its wait.

use std::path::PathBuf;

use clap::Args;
use handfast_ca::backup::{Restore, restore};

use super::{CaSocket, Dir};
use crate::output::timestamp;

/// Make a CA from a backup: a new folder, all of it or nothing
///
/// Nothing goes back in time: numbers begin above all that were ever given, open join tokens are void, and the CA signs
/// nothing until more than half of its nodes' agents have shown the newest deny list that they have. Agents need no
/// visit if the CA answers at its old address.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca restore /mnt/backup/ca-2026-01-31 --passphrase-file /root/backup.passphrase\n  handfast ca restore --finish --reason 'half of the nodes are gone for good'"
)]
pub struct RestoreArgs {
    /// The backup
    #[arg(
        value_name = "FILE",
        required_unless_present = "finish",
        conflicts_with = "finish"
    )]
    file: Option<PathBuf>,
    /// The server's name; without it as in the backup
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// A file whose first line opens the backup's keys, and seals the root's key in the folder
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The root's private key (PEM), if it is not in the backup; without it the issuing CA's request is to be signed
    /// where the root is
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// End the wait of the running CA, whoever it has heard: whom it has not heard of may come back
    #[arg(long, requires = "reason")]
    finish: bool,
    /// Why, for the audit log
    #[arg(long, requires = "finish", value_parser = crate::reason::read)]
    reason: Option<String>,
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    socket: CaSocket,
}

/// Runs the command.
pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let Some(backup) = args.file else {
        return finish(&args.socket, &args.reason.unwrap_or_default()).await;
    };
    let order = Restore {
        backup,
        dir: args.dir.dir,
        server: args.server,
        passphrase_file: args.passphrase_file,
        root_key: args.root_key,
    };
    let restored = restore(&order).await?;
    outln!(
        "restored the CA of {} as it was at {} into {}",
        restored.trust_domain,
        timestamp(restored.at_ms / 1000),
        order.dir.display()
    );
    outln!("root certificate: {}", restored.root);
    outln!(
        "{} nodes had joined: more than half must come before it signs (`handfast ca status` tells)",
        restored.nodes
    );
    let dir = order.dir.display();
    if restored.waits_for_root {
        outln!(
            "next: have {dir}/request.csr signed with `handfast ca root sign` where the root's key is, then `handfast ca root install --dir {dir} ANSWER`"
        );
    } else {
        let passphrase = super::root::serve_option(order.passphrase_file.as_deref());
        outln!("next: handfast ca serve --dir {dir}{passphrase}");
    }
    Ok(())
}

async fn finish(socket: &CaSocket, reason: &str) -> anyhow::Result<()> {
    if socket.connect().await?.finish_recovery(reason).await? {
        outln!("the CA signs again");
    } else {
        outln!("the CA was not waiting; nothing was changed");
    }
    Ok(())
}
