//! `handfast entry`: which workload gets which identity.

use std::time::Duration;

use clap::{Args, Subcommand};
use handfast_ca::client::admin::NewEntry;
use handfast_ca::model::{Entry, Labels};

use crate::ca::CaSocket;
use crate::output::OutputArgs;

/// Registration entries: which workload gets which identity
#[derive(Debug, Args)]
pub struct EntryArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an entry; the nodes that it applies to hear of it at once
    #[command(
        after_help = "Example:\n  handfast entry create --spiffe-id spiffe://example.org/web --selector netns:web --label app=web"
    )]
    Create(Create),
    /// All entries
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete an entry: its identity is not issued or renewed any more. To cut it now, revoke it
    Delete {
        /// The entry, as `entry list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The identity
    #[arg(long, value_name = "ID")]
    spiffe_id: String,
    /// The node that the workload runs on, by SPIFFE ID or name; any if not given
    #[arg(long, default_value = "any", value_name = "NODE")]
    parent_id: String,
    /// What the workload must be (netns:NAME, endpoint:NAME, label:KEY=VALUE); all that are given must match
    #[arg(long, value_name = "KIND:VALUE", required = true)]
    selector: Vec<String>,
    /// A label of the identity, which policy selects by; again for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// How long certificates for the workload itself live (15m, 2h); 1h if not given
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// A DNS name in certificates for the workload itself; again for more
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the command.
pub async fn run(args: EntryArgs) -> anyhow::Result<()> {
    let mut admin = args.socket.connect().await?;
    match args.command {
        Command::Create(create) => {
            let mut labels = Labels::new();
            for (key, value) in create.label {
                if let Some(before) = labels.insert(key.clone(), value.clone()) {
                    anyhow::ensure!(
                        before == value,
                        "label {key} is given as {before:?} and as {value:?}; nothing was changed"
                    );
                }
            }
            let entry = NewEntry {
                spiffe_id: create.spiffe_id,
                parent: Some(create.parent_id).filter(|parent| parent != "any"),
                selectors: create.selector,
                labels,
                ttl: create.ttl,
                dns_names: create.dns_name,
            };
            let entry = admin.create_entry(&entry).await?;
            warn_of_unknown(&entry);
            show(&[entry], create.output)
        }
        Command::List { output } => show(&admin.entries().await?, output),
        Command::Delete { id } => {
            let entry = admin.delete_entry(&id).await?;
            println!("deleted entry {} of {}", entry.id, entry.spiffe_id);
            Ok(())
        }
    }
}

/// A kind that agents of this version cannot look at is taken, since a newer agent may; it must not pass unnoticed.
fn warn_of_unknown(entry: &Entry) {
    for selector in &entry.selectors {
        if !handfast_agent::identity::SELECTOR_KINDS.contains(&selector.kind.as_str()) {
            eprintln!(
                "warning: no agent of this version looks at {selector}: the entry matches no workload there (kinds: {})",
                handfast_agent::identity::SELECTOR_KINDS.join(", ")
            );
        }
    }
}

fn show(entries: &[Entry], output: OutputArgs) -> anyhow::Result<()> {
    let row = |entry: &Entry| {
        let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
        let labels: Vec<String> = entry
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        vec![
            entry.id.clone(),
            entry.spiffe_id.to_string(),
            entry
                .parent_id
                .as_ref()
                .map_or_else(|| "any".to_owned(), ToString::to_string),
            selectors.join(","),
            labels.join(","),
        ]
    };
    output.print(
        &entries,
        &["ENTRY", "SPIFFE ID", "PARENT", "SELECTORS", "LABELS"],
        entries.iter().map(row),
    )
}
