//! `handfast federation`: foreign trust domains whose workloads ours may know.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use handfast_ca::client::federation::{Federation, NewFederation};

use crate::bundle::{self, Format};
use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Foreign trust domains: their bundles are fetched and given to the workloads whose entries federate with them
#[derive(Debug, Args)]
pub struct FederationArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch a trust domain's bundle from its endpoint, from now on
    #[command(
        after_help = "Example:\n  handfast federation create partner.example --url https://ca.partner.example:8443/ \\\n      --profile https_spiffe --endpoint-spiffe-id spiffe://partner.example/handfast/ca --bundle partner.json\nThen let workloads know its workloads: handfast entry create … --federates-with partner.example"
    )]
    Create(Create),
    /// List the trust domains
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one trust domain
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        trust_domain: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Fetch a bundle now
    Refresh {
        /// The trust domain
        #[arg(value_name = "NAME")]
        trust_domain: String,
    },
    /// Forget a trust domain: its workloads are strangers from now on
    Delete {
        /// Its name
        #[arg(value_name = "NAME")]
        trust_domain: String,
        /// Why; stands in the audit log
        #[arg(long, value_name = "TEXT", required_unless_present = "dry_run", value_parser = crate::reason::read)]
        reason: Option<String>,
        /// Even if entries federate with it
        #[arg(long)]
        force: bool,
        /// Say what would happen, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The foreign trust domain
    #[arg(value_name = "NAME")]
    trust_domain: String,
    /// Where its bundle is
    #[arg(long, value_name = "HTTPS-URL")]
    url: String,
    /// How the endpoint proves itself
    #[arg(long, value_enum)]
    profile: Profile,
    /// Who answers at the URL, with https-spiffe
    #[arg(
        long,
        value_name = "SPIFFE-ID",
        required_if_eq("profile", "https-spiffe")
    )]
    endpoint_spiffe_id: Option<String>,
    /// What the endpoint is recognised by at first, with https-spiffe: the trust domain's bundle
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// How that file is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Spiffe)]
    bundle_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Profile {
    /// By a certificate of the Web PKI for its host
    #[value(alias = "https_web")]
    HttpsWeb,
    /// By an X509-SVID with a given SPIFFE ID
    #[value(alias = "https_spiffe")]
    HttpsSpiffe,
}

/// Runs the command.
pub async fn run(args: FederationArgs) -> anyhow::Result<()> {
    let socket = args.socket;
    match args.command {
        Command::Create(args) => create(&socket, args).await,
        Command::List { output } => list(&socket.connect().await?.federations().await?, output),
        Command::Show {
            trust_domain,
            output,
        } => show(
            &socket.connect().await?.federation(&trust_domain).await?,
            output,
        ),
        Command::Refresh { trust_domain } => {
            let mut admin = socket.connect().await?;
            let one = admin.refresh_federation(&trust_domain).await;
            let one = one.context("the bundle that is known stays in place")?;
            outln!("fetched: {}", known(&one));
            Ok(())
        }
        Command::Delete {
            trust_domain,
            reason,
            force,
            dry_run,
        } => {
            let reason = reason.unwrap_or_default();
            let mut admin = socket.connect().await?;
            let entries = admin
                .delete_federation(&trust_domain, &reason, force, dry_run)
                .await?;
            if dry_run {
                outln!(
                    "would forget {trust_domain}; {entries} entries federate with it; nothing was changed (--dry-run)"
                );
            } else {
                outln!("forgot {trust_domain}; {entries} entries federated with it");
            }
            Ok(())
        }
    }
}

async fn create(socket: &CaSocket, args: Create) -> anyhow::Result<()> {
    let bundle = match &args.bundle {
        Some(file) => Some(bundle::read(file, &args.trust_domain, args.bundle_format)?),
        None => None,
    };
    let profile = match args.profile {
        Profile::HttpsWeb => "https_web",
        Profile::HttpsSpiffe => "https_spiffe",
    };
    let mut admin = socket.connect().await?;
    let created = admin
        .create_federation(NewFederation {
            trust_domain: args.trust_domain.clone(),
            url: args.url,
            profile: profile.to_owned(),
            endpoint_spiffe_id: args.endpoint_spiffe_id.unwrap_or_default(),
            bundle,
        })
        .await?;
    outln!(
        "federated with {}; {}",
        created.trust_domain,
        known(&created)
    );
    // At once, so that a wrong URL or ID shows where it was typed.
    let refreshed = admin.refresh_federation(&args.trust_domain).await;
    let refreshed = refreshed.context(
        "the relationship stands, but its bundle could not be fetched; that is tried again every 30 s",
    )?;
    outln!("fetched: {}", known(&refreshed));
    Ok(())
}

fn known(one: &Federation) -> String {
    match &one.bundle {
        Some(bundle) => bundle::summary(bundle),
        None => "no bundle yet".to_owned(),
    }
}

fn list(all: &[Federation], output: OutputArgs) -> anyhow::Result<()> {
    let rows = all.iter().map(|one| {
        vec![
            one.trust_domain.clone(),
            if one.profile.is_empty() {
                "by hand".to_owned()
            } else {
                one.profile.clone()
            },
            one.sequence
                .map_or("-".to_owned(), |number| number.to_string()),
            one.entries.to_string(),
            moment(one.fetched_ms),
            if one.problem.is_empty() {
                "-".to_owned()
            } else {
                one.problem.clone()
            },
        ]
    });
    let header = [
        "TRUST DOMAIN",
        "PROFILE",
        "SEQUENCE",
        "ENTRIES",
        "FETCHED",
        "PROBLEM",
    ];
    output.print(&all, &header, rows)
}

fn show(one: &Federation, output: OutputArgs) -> anyhow::Result<()> {
    let lines = [
        ("trust domain", one.trust_domain.clone()),
        ("URL", one.url.clone()),
        ("profile", one.profile.clone()),
        ("endpoint SPIFFE ID", one.endpoint_spiffe_id.clone()),
        (
            "sequence",
            one.sequence
                .map_or("-".to_owned(), |number| number.to_string()),
        ),
        ("roots", one.roots.join(", ")),
        ("JWT keys", one.jwt_keys.join(", ")),
        ("fetched every", format!("{} s", one.refresh_hint)),
        ("fetched", moment(one.fetched_ms)),
        ("tried", moment(one.tried_ms)),
        ("problem", one.problem.clone()),
        ("entries", one.entries.to_string()),
    ];
    let rows = lines
        .into_iter()
        .map(|(what, value)| vec![what.to_owned(), value]);
    output.print(one, &["WHAT", "VALUE"], rows)
}

fn moment(ms: u64) -> String {
    if ms == 0 {
        "never".to_owned()
    } else {
        timestamp(ms / 1000)
    }
}
