//! `handfast ca backup`: the registry, and if asked the keys, in one file.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use handfast_ca::backup::{Writer, write_keys};

use super::{CaSocket, Dir};

/// Write the running CA's registry into a file, with its keys if asked
///
/// The file holds nodes, entries, policies, revocations and certificates as they are at one moment. Private keys are in
/// it only with --keys, each sealed by a passphrase. Take a backup after each rotation of the root: an older one names
/// a root that agents no longer trust.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca backup /mnt/backup/ca-2026-01-31\n  handfast ca backup /mnt/backup/ca-2026-01-31 --keys --passphrase-file /root/backup.passphrase"
)]
pub struct BackupArgs {
    /// The file that is written; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The private keys too, sealed by the passphrase
    #[arg(long, requires = "passphrase_file")]
    keys: bool,
    /// A file whose first line is the passphrase; it also opens a root's key that is sealed already
    #[arg(long, value_name = "FILE", requires = "keys")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    socket: CaSocket,
}

/// Runs the command.
pub async fn run(args: BackupArgs) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    let mut writer = Writer::create(&args.file).context("no backup was written")?;
    admin
        .backup(&mut writer, args.keys)
        .await
        .context("no backup was written")?;
    let keys = match &args.passphrase_file {
        Some(passphrase) => {
            write_keys(&mut writer, &args.dir.dir, passphrase).context("no backup was written")?
        }
        None => 0,
    };
    let bytes = writer.finish().context("no backup was written")?;
    outln!(
        "wrote {} ({bytes} bytes, {keys} sealed keys)",
        args.file.display()
    );
    Ok(())
}
