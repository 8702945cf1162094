//! `handfast entry`: which workload gets which identity.

mod file;

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use handfast_ca::client::admin::{Admin, NewEntry};
use handfast_ca::client::operators::{EntryFilter, FoundEntry};
use handfast_ca::model::{Entry, Labels, Selector};

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
        selector: Vec<String>,
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

/// What an entry says beside its identity and its selectors.
#[derive(Debug, Args)]
struct Fields {
    /// Where it applies: SPIFFE ID or name of a node, SPIFFE ID of other entries (wherever those apply), or any
    #[arg(long, value_name = "PARENT")]
    parent_id: Option<String>,
    /// A label of the identity, which policy selects by; again for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// How long X.509-SVIDs for the workload itself live (15m, 2h); 1h if not given
    #[arg(long, visible_alias = "x509-svid-ttl", value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How long its JWT-SVIDs live; 5m if not given
    #[arg(long, visible_alias = "jwt-svid-ttl", value_name = "TIME", value_parser = humantime::parse_duration)]
    jwt_ttl: Option<Duration>,
    /// A DNS name in certificates for the workload itself; again for more
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<String>,
    /// Tells several identities of one workload apart
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// A trust domain whose bundle the workload gets; again for more
    #[arg(long, value_name = "DOMAIN")]
    federates_with: Vec<String>,
    /// When it ends: a time from now (7d), or RFC 3339 (2030-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    expires: Option<u64>,
}

#[derive(Debug, Args)]
struct List {
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Only those with this parent (SPIFFE ID, name of a node, or any)
    #[arg(long, value_name = "PARENT")]
    parent_id: Option<String>,
    /// Only those with this selector; again for more
    #[arg(long, value_name = "KIND:VALUE")]
    selector: Vec<Selector>,
    /// Only those that federate with this trust domain
    #[arg(long, value_name = "DOMAIN")]
    federates_with: Option<String>,
    /// Only those with this hint
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// Only those that apply to this node, by whatever parent
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only those that have ended and are not deleted yet
    #[arg(long, conflicts_with = "expires_within")]
    expired: bool,
    /// Only those that end within this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires_within: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(CHANGES)))]
struct Update {
    /// The entry, as `entry list` shows it
    id: String,
    /// The identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// All of its selectors, instead of those that it has
    #[arg(long, value_name = "KIND:VALUE")]
    selector: Vec<Selector>,
    #[command(flatten)]
    fields: Fields,
    /// Take something away: labels, dns-names, federates-with, hint, ttl, jwt-ttl, expires; again for more
    #[arg(long, value_name = "WHAT", value_enum)]
    clear: Vec<Clear>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The options of [`Update`], one of which must be there.
const CHANGES: [&str; 11] = [
    "spiffe_id",
    "selector",
    "parent_id",
    "label",
    "ttl",
    "jwt_ttl",
    "dns_name",
    "hint",
    "federates_with",
    "expires",
    "clear",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Clear {
    Labels,
    DnsNames,
    FederatesWith,
    Hint,
    Ttl,
    JwtTtl,
    Expires,
}

impl Clear {
    /// Is the same set to something by the same command?
    fn contradicts(self, fields: &Fields) -> bool {
        match self {
            Self::Labels => !fields.label.is_empty(),
            Self::DnsNames => !fields.dns_name.is_empty(),
            Self::FederatesWith => !fields.federates_with.is_empty(),
            Self::Hint => fields.hint.is_some(),
            Self::Ttl => fields.ttl.is_some(),
            Self::JwtTtl => fields.jwt_ttl.is_some(),
            Self::Expires => fields.expires.is_some(),
        }
    }
}

impl Update {
    /// What is set and taken away by one command is neither.
    fn check(&self) -> Result<(), clap::Error> {
        let both = self
            .clear
            .iter()
            .find(|what| what.contradicts(&self.fields));
        let Some(name) = both.and_then(ValueEnum::to_possible_value) else {
            return Ok(());
        };
        Err(clap::Error::raw(
            clap::error::ErrorKind::ArgumentConflict,
            format!(
                "--clear {} cannot be used with the option that sets the same; nothing was changed\n",
                name.get_name()
            ),
        ))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A time from now, or a moment; unix milliseconds.
fn moment(text: &str) -> Result<u64, String> {
    let at = match humantime::parse_duration(text) {
        Ok(wait) => SystemTime::now() + wait,
        Err(_) => humantime::parse_rfc3339_weak(text)
            .map_err(|_| "write a time from now (7d, 12h) or RFC 3339 (2030-01-31T12:00:00Z)")?,
    };
    Ok(unix_ms(at))
}

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn labels(pairs: Vec<(String, String)>) -> anyhow::Result<Labels> {
    let mut labels = Labels::new();
    for (key, value) in pairs {
        if let Some(before) = labels.insert(key.clone(), value.clone()) {
            ensure!(
                before == value,
                "label {key} is given as {before:?} and as {value:?}; nothing was changed"
            );
        }
    }
    Ok(labels)
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
            for text in &selector {
                possible(&text.parse()?)?;
            }
            let entry = NewEntry {
                spiffe_id,
                parent: fields.parent_id.filter(|parent| parent != "any"),
                selectors: selector,
                labels: labels(fields.label)?,
                ttl: fields.ttl,
                dns_names: fields.dns_name,
                hint: fields.hint.unwrap_or_default(),
                federates_with: fields.federates_with,
                jwt_ttl: fields.jwt_ttl,
                expires_at_ms: fields.expires,
            };
            let entry = admin.create_entry(&entry).await?;
            warn_of_unknown(&entry);
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
    warn_of_unknown(&entry);
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    #[test]
    fn an_update_changes_something_and_does_not_contradict_itself() {
        let nothing = Line::try_parse_from(["update", "e1"]).unwrap_err();
        assert_eq!(
            nothing.kind(),
            clap::error::ErrorKind::MissingRequiredArgument
        );
        for good in [&["--hint", "h"][..], &["--ttl", "5m", "--clear", "jwt-ttl"]] {
            let line = Line::try_parse_from([&["update", "e1"], good].concat()).unwrap();
            line.update.check().unwrap();
        }
        for bad in [
            ["--ttl", "5m", "--clear", "ttl"],
            ["--jwt-ttl", "5m", "--clear", "jwt-ttl"],
            ["--hint", "h", "--clear", "hint"],
            ["--label", "a=b", "--clear", "labels"],
            ["--dns-name", "a.example", "--clear", "dns-names"],
            ["--federates-with", "b.example", "--clear", "federates-with"],
            ["--expires", "7d", "--clear", "expires"],
        ] {
            let line = Line::try_parse_from([&["update", "e1"][..], &bad].concat()).unwrap();
            let usage = line.update.check().unwrap_err().to_string();
            assert!(usage.contains(bad[3]), "{usage}");
        }
    }
}
