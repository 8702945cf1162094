//! `handfast bundle`: what certificates and tokens are verified with, ours and those of foreign trust domains.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use handfast_ca::authority::trust_domain;
use handfast_ca::bundle::TrustBundle;
use handfast_ca::client::federation::Federation;
use serde::Serialize;

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Trust bundles: what certificates and tokens of a trust domain are verified with
#[derive(Debug, Args)]
pub struct BundleArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a bundle
    Show {
        /// A foreign trust domain; our own if none is given
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<String>,
        /// pem for TLS programs (the roots), spiffe for SPIFFE's own JSON form (JWT keys too)
        #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
        format: Format,
    },
    /// List the bundles that are known here
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Put the bundle of a foreign trust domain in place, whatever stood there
    #[command(
        after_help = "Example:\n  handfast bundle set partner.bundle.json --trust-domain partner.example --format spiffe"
    )]
    Set {
        /// The bundle; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Whose it is
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// pem (roots) or spiffe (SPIFFE's JSON form)
        #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Spiffe)]
        format: Format,
        /// Why; needed if another bundle of it stands there already; stands in the audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: Option<String>,
        /// Say what is in the file, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// How a bundle is written down.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    #[default]
    Pem,
    Spiffe,
}

/// Runs the command.
pub async fn run(args: BundleArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Show {
            trust_domain,
            format,
        } => show(&args.socket, trust_domain.as_deref(), format).await,
        Command::List { output } => list(&args.socket, output).await,
        Command::Set {
            file,
            trust_domain,
            format,
            reason,
            dry_run,
        } => {
            let bundle = read(&file, &trust_domain, format)?;
            if dry_run {
                outln!("{}; nothing was changed (--dry-run)", summary(&bundle));
                return Ok(());
            }
            let mut admin = args.socket.connect().await?;
            admin
                .set_bundle(&bundle, reason.as_deref().unwrap_or_default())
                .await?;
            outln!("set the {}", summary(&bundle));
            Ok(())
        }
    }
}

async fn show(socket: &CaSocket, name: Option<&str>, format: Format) -> anyhow::Result<()> {
    let mut admin = socket.connect().await?;
    let bundle = match name {
        None => admin.bundle().await?,
        Some(name) => {
            let one = admin.federation(name).await?;
            one.bundle.with_context(|| {
                format!(
                    "no bundle of {name} has come yet: {}",
                    waiting_for(&one.problem)
                )
            })?
        }
    };
    match format {
        Format::Pem => out!("{}", bundle.to_pem()),
        Format::Spiffe => {
            outln!(
                "{}",
                serde_json::to_string_pretty(&bundle.to_spiffe_json())?
            );
        }
    }
    Ok(())
}

fn waiting_for(problem: &str) -> &str {
    if problem.is_empty() {
        "it has not been fetched"
    } else {
        problem
    }
}

/// A line of the list.
#[derive(Serialize)]
struct Line {
    trust_domain: String,
    own: bool,
    sequence: Option<u64>,
    roots: Vec<String>,
    jwt_keys: Vec<String>,
    /// Unix milliseconds; zero for our own.
    fetched_ms: u64,
}

impl From<&TrustBundle> for Line {
    fn from(bundle: &TrustBundle) -> Self {
        let keys = bundle.jwt_keys().iter();
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            own: true,
            sequence: Some(bundle.sequence()),
            roots: bundle
                .fingerprints()
                .map(|print| print.to_string())
                .collect(),
            jwt_keys: keys.map(|key| key.key_id().to_owned()).collect(),
            fetched_ms: 0,
        }
    }
}

impl From<Federation> for Line {
    fn from(one: Federation) -> Self {
        Self {
            trust_domain: one.trust_domain,
            own: false,
            sequence: one.sequence,
            roots: one.roots,
            jwt_keys: one.jwt_keys,
            fetched_ms: one.fetched_ms,
        }
    }
}

async fn list(socket: &CaSocket, output: OutputArgs) -> anyhow::Result<()> {
    let mut admin = socket.connect().await?;
    let mut lines = vec![Line::from(&admin.bundle().await?)];
    lines.extend(admin.federations().await?.into_iter().map(Line::from));
    let rows = lines.iter().map(|line| {
        vec![
            line.trust_domain.clone(),
            line.sequence
                .map_or("-".to_owned(), |number| number.to_string()),
            line.roots.len().to_string(),
            line.jwt_keys.len().to_string(),
            match (line.own, line.fetched_ms) {
                (true, _) => "our own".to_owned(),
                (false, 0) => "never".to_owned(),
                (false, at) => timestamp(at / 1000),
            },
        ]
    });
    let header = ["TRUST DOMAIN", "SEQUENCE", "ROOTS", "JWT KEYS", "FETCHED"];
    output.print(&lines, &header, rows)
}

/// Reads the bundle of a trust domain from a file; what of it is of no use is
/// said on standard error.
pub fn read(file: &Path, name: &str, format: Format) -> anyhow::Result<TrustBundle> {
    let domain = trust_domain(name)?;
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input")?
    } else {
        std::fs::read_to_string(file)
            .with_context(|| format!("nothing was changed: cannot read {}", file.display()))?
    };
    let bundle = match format {
        Format::Pem => TrustBundle::from_pem(domain, &text),
        Format::Spiffe => TrustBundle::from_spiffe_json(domain, text.as_bytes()).map(|read| {
            for ignored in &read.ignored {
                eprintln!("{}: {ignored}; it is left out", file.display());
            }
            read.bundle
        }),
    };
    bundle.with_context(|| format!("{}; nothing was changed", file.display()))
}

/// What is in a bundle, in words.
pub fn summary(bundle: &TrustBundle) -> String {
    let (roots, keys) = (bundle.roots().count(), bundle.jwt_keys().len());
    let empty = if bundle.is_empty() {
        ": nobody of it is trusted"
    } else {
        ""
    };
    format!(
        "bundle of {} ({roots} roots, {keys} JWT keys{empty})",
        bundle.trust_domain()
    )
}
