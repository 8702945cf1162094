//! `handfast ca restore`: a CA from a backup, and the end of its wait.

use std::path::{Path, PathBuf};

use clap::Args;
use handfast_ca::backup::{Restore, examine, restore};

use super::{CaSocket, Dir};
use crate::output::timestamp;

/// Make a CA from a backup: a new folder, all of it or nothing
///
/// Nothing goes back in time: numbers begin above all that were ever given, open join tokens are void, and the CA signs
/// nothing until more than half of its nodes' agents have shown the newest deny list that they have. Agents need no
/// visit if the CA answers at its old address.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca restore /mnt/backup/ca-2026-01-31 --passphrase-file /root/backup.passphrase\n  handfast ca restore /mnt/backup/ca-2026-01-31 --dry-run\n  handfast ca restore --finish --reason 'half of the nodes are gone for good'"
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
    /// Read the backup to its end, say what is in it, and make nothing
    #[arg(long, conflicts_with_all = ["finish", "server", "root_key", "passphrase_file"])]
    dry_run: bool,
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
    if args.dry_run {
        return tell(&backup);
    }
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
        "{} nodes count: more than half must come before it signs (`handfast ca status` tells)",
        restored.nodes
    );
    let dir = order.dir.display();
    if restored.waits_for_root {
        outln!(
            "next: have {dir}/request.csr signed where the root's key is (`handfast ca root sign --dir ROOT --server NAME request.csr --out issuing.crt`), then here `handfast ca root install --dir {dir} issuing.crt` and `handfast ca serve --dir {dir}`"
        );
    } else {
        let passphrase = super::root::serve_option(order.passphrase_file.as_deref());
        outln!("next: handfast ca serve --dir {dir}{passphrase}");
    }
    Ok(())
}

fn tell(backup: &Path) -> anyhow::Result<()> {
    let held = examine(backup)?;
    outln!(
        "{} is whole: the CA of {} (server {}) as it was at {}",
        backup.display(),
        held.trust_domain,
        held.server,
        timestamp(held.at_ms / 1000)
    );
    for (table, rows) in &held.rows {
        outln!("{table}: {rows}");
    }
    match held.keys.as_slice() {
        [] => outln!("no keys: the root's key must come from elsewhere"),
        keys => outln!("sealed keys: {}", keys.join(", ")),
    }
    outln!("nothing was restored");
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
