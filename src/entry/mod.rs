//! `handfast entry`: which workload gets which identity.

mod file;
mod options;

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use handfast_ca::client::admin::{Admin, NewEntry};
use handfast_ca::client::operators::{EntryFilter, FoundEntry};
use handfast_ca::model::{Entry, Selector};

use self::options::{Clear, Fields, List, Update, labels, unix_ms};
use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

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
    Create {
        /// The identity
        #[arg(long, value_name = "ID")]
        spiffe_id: String,
        /// What the workload must be (netns:NAME, unix:uid:1000, …); all that are given must match
        #[arg(long, value_name = "KIND:VALUE", required = true)]
        selector: Vec<Selector>,
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The entries that fit all that is given
    #[command(
        after_help = "Examples:\n  handfast entry list --parent-id web1\n  handfast entry list --selector unix:uid:1000 --output yaml\n  handfast entry list --expires-within 7d"
    )]
    List(List),
    /// Change an entry: what is given replaces what it had, the rest stays
    Update(Update),
    /// Delete entries, all or none: their identities are not issued or renewed any more. To cut them now, revoke them
    Delete {
        /// The entries, as `entry list` shows them
        #[arg(required = true, value_name = "ENTRY")]
        ids: Vec<String>,
        /// Why; kept in the CA's audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: String,
        /// Say what would be deleted, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Take in entries from files, all or none; what is there already is left as it is
    #[command(
        after_help = "The files are YAML or JSON, a list of entries as `entry export` writes it.\nExample:\n  handfast entry export > entries.yaml\n  handfast entry import entries.yaml --update --dry-run"
    )]
    Import {
        /// Files; - for standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<std::path::PathBuf>,
        /// Change entries that are there (same SPIFFE ID, parent and selectors) and say something else
        #[arg(long)]
        update: bool,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print all entries in the form that `entry import` reads
    Export {
        /// yaml or json
        #[arg(long, value_enum, default_value_t = file::Form::Yaml, value_name = "FORMAT")]
        format: file::Form,
    },
}

/// Runs the command.
pub async fn run(args: EntryArgs) -> anyhow::Result<()> {
    if let Command::Update(asked) = &args.command
        && let Err(usage) = asked.check()
    {
        usage.exit();
    }
    let mut admin = args.socket.connect().await?;
    match args.command {
        Command::Create {
            spiffe_id,
            selector,
            fields,
            output,
        } => {
            selector.iter().try_for_each(possible)?;
            let entry = NewEntry {
                spiffe_id,
                parent: fields.parent_id.filter(|parent| parent != "any"),
                selectors: selector.iter().map(ToString::to_string).collect(),
                labels: labels(fields.label)?,
                ttl: fields.ttl,
                dns_names: fields.dns_name,
                hint: fields.hint.unwrap_or_default(),
                federates_with: fields.federates_with,
                jwt_ttl: fields.jwt_ttl,
                expires_at_ms: fields.expires,
            };
            let entry = admin.create_entry(&entry).await?;
            warn_of_unknown(&mut admin, &entry).await?;
            show(&[entry], output)
        }
        Command::List(asked) => list(&mut admin, asked).await,
        Command::Update(asked) => update(&mut admin, asked).await,
        Command::Delete {
            ids,
            reason,
            dry_run,
        } => delete(&mut admin, &ids, &reason, dry_run).await,
        Command::Import {
            files,
            update,
            dry_run,
        } => {
            let entries = file::read(&files)?;
            for entry in &entries {
                let of = || format!("entry of {}", entry.spiffe_id);
                for text in &entry.selectors {
                    possible(&text.parse()?).with_context(of)?;
                }
            }
            let outcome = admin.import_entries(&entries, update, dry_run).await?;
            let would = if dry_run { "would be " } else { "" };
            outln!(
                "{} {would}created, {} {would}updated, {} as they were{}",
                outcome.created,
                outcome.updated,
                outcome.unchanged,
                if dry_run { "; nothing was changed" } else { "" }
            );
            Ok(())
        }
        Command::Export { format } => file::write(&admin.entries().await?, format),
    }
}

async fn list(admin: &mut Admin, asked: List) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let before = match (asked.expired, asked.expires_within) {
        (true, _) => Some(unix_ms(now)),
        (false, Some(within)) => Some(unix_ms(now + within)),
        (false, None) => None,
    };
    let filter = EntryFilter {
        spiffe_id: asked.spiffe_id,
        parent: asked.parent_id,
        selectors: asked.selector,
        federates_with: asked.federates_with,
        hint: asked.hint,
        expires_before_ms: before,
        node: asked.node,
    };
    let found = admin.find_entries(&filter).await?;
    let rows = found.iter().map(|FoundEntry { entry, owner }| {
        let mut row = row(entry);
        // Which one it is stands among the selectors.
        let kind = owner.as_deref().and_then(|owner| owner.rsplit_once('/'));
        row.push(kind.map_or("-", |(kind, _)| kind).to_owned());
        row
    });
    let header: Vec<_> = HEADER.into_iter().chain(["FOLLOWS"]).collect();
    asked.output.print(&found, &header, rows)
}

async fn update(admin: &mut Admin, asked: Update) -> anyhow::Result<()> {
    let mut entry = admin.entry(&asked.id).await?;
    let fields = asked.fields;
    if let Some(id) = asked.spiffe_id {
        entry.spiffe_id = id.parse().with_context(|| format!("SPIFFE ID {id:?}"))?;
    }
    if !asked.selector.is_empty() {
        asked.selector.iter().try_for_each(possible)?;
        entry.selectors = asked.selector;
    }
    for what in asked.clear {
        match what {
            Clear::Labels => entry.labels.clear(),
            Clear::DnsNames => entry.dns_names.clear(),
            Clear::FederatesWith => entry.federates_with.clear(),
            Clear::Hint => entry.hint.clear(),
            Clear::Ttl => entry.workload_ttl_seconds = None,
            Clear::JwtTtl => entry.jwt_ttl_seconds = None,
            Clear::Expires => entry.expires_at_ms = None,
        }
    }
    if !fields.label.is_empty() {
        entry.labels = labels(fields.label)?;
    }
    if !fields.dns_name.is_empty() {
        entry.dns_names = fields.dns_name;
    }
    if !fields.federates_with.is_empty() {
        let domains = fields.federates_with.iter();
        entry.federates_with = domains
            .map(|name| handfast_ca::authority::trust_domain(name))
            .collect::<Result<_, _>>()?;
    }
    let seconds = |ttl: Duration| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX);
    entry.workload_ttl_seconds = fields.ttl.map(seconds).or(entry.workload_ttl_seconds);
    entry.jwt_ttl_seconds = fields.jwt_ttl.map(seconds).or(entry.jwt_ttl_seconds);
    entry.hint = fields.hint.unwrap_or(entry.hint);
    entry.expires_at_ms = fields.expires.or(entry.expires_at_ms);
    if let Some(parent) = fields.parent_id {
        entry.parent_id = match parent.as_str() {
            "any" => None,
            id if id.contains("://") => Some(id.parse().with_context(|| format!("parent {id:?}"))?),
            name => Some(handfast_ca::node_id(
                entry.spiffe_id.trust_domain(),
                &name.parse()?,
            )?),
        };
    }
    let entry = admin.update_entry(&entry).await?;
    warn_of_unknown(admin, &entry).await?;
    show(&[entry], asked.output)
}

async fn delete(
    admin: &mut Admin,
    ids: &[String],
    reason: &str,
    dry_run: bool,
) -> anyhow::Result<()> {
    let entries = if dry_run {
        let mut entries = Vec::new();
        let mut named = HashSet::new();
        for id in ids.iter().filter(|id| named.insert(id.as_str())) {
            entries.push(admin.entry(id).await?);
        }
        entries
    } else {
        admin.delete_entries(ids, reason).await?
    };
    for entry in entries {
        let would = if dry_run { "would delete" } else { "deleted" };
        outln!("{would} entry {} of {}", entry.id, entry.spiffe_id);
    }
    if dry_run {
        outln!("nothing was changed");
    }
    Ok(())
}

/// Refuses what is true of no workload: an entry with it would be a slip that nobody notices.
fn possible(selector: &Selector) -> anyhow::Result<()> {
    match handfast_agent::identity::in_vain(&selector.kind, &selector.value) {
        None => Ok(()),
        Some(hint) => {
            anyhow::bail!("selector {selector} matches no workload: {hint}; nothing was changed")
        }
    }
}

/// A kind that agents of this version cannot look at is taken, since a newer agent may, and a trust domain that is not
/// federated with yet, since it may be soon; neither must pass unnoticed.
async fn warn_of_unknown(admin: &mut Admin, entry: &Entry) -> anyhow::Result<()> {
    for selector in &entry.selectors {
        if !handfast_agent::identity::SELECTOR_KINDS.contains(&selector.kind.as_str()) {
            eprintln!(
                "warning: no agent of this version looks at {selector}: the entry matches no workload there (kinds: {})",
                handfast_agent::identity::SELECTOR_KINDS.join(", ")
            );
        }
    }
    if entry.federates_with.is_empty() {
        return Ok(());
    }
    let known = admin.federations().await?;
    for domain in &entry.federates_with {
        if !known.iter().any(|one| one.trust_domain == domain.as_str()) {
            eprintln!(
                "warning: {domain} is not federated with: the workload gets its bundle once it is (`handfast federation create`)"
            );
        }
    }
    Ok(())
}

const HEADER: [&str; 7] = [
    "ENTRY",
    "SPIFFE ID",
    "PARENT",
    "SELECTORS",
    "LABELS",
    "EXPIRES",
    "REVISION",
];

fn row(entry: &Entry) -> Vec<String> {
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
        entry
            .expires_at_ms
            .map_or_else(|| "-".to_owned(), |end| timestamp(end / 1000)),
        entry.revision.to_string(),
    ]
}

fn show(entries: &[Entry], output: OutputArgs) -> anyhow::Result<()> {
    output.print(&entries, &HEADER, entries.iter().map(row))
}
