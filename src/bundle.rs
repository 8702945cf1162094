//! `handfast bundle`: the roots of the trust domain.

use clap::{Args, Subcommand, ValueEnum};

use crate::ca::CaSocket;

/// The trust bundle: the roots that certificates of this trust domain end in
#[derive(Debug, Args)]
pub struct BundleArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the bundle
    Show {
        /// pem for TLS programs, spiffe for SPIFFE's own JSON form
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        format: Format,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Pem,
    Spiffe,
}

/// Runs the command.
pub async fn run(args: BundleArgs) -> anyhow::Result<()> {
    let Command::Show { format } = args.command;
    let bundle = args.socket.connect().await?.bundle().await?;
    match format {
        Format::Pem => print!("{}", bundle.to_pem()),
        Format::Spiffe => println!(
            "{}",
            serde_json::to_string_pretty(&bundle.to_spiffe_json())?
        ),
    }
    Ok(())
}
