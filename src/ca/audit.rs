//! `handfast ca audit`: what was done, by whom, and whether the log still says so.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args;
use handfast_agent::identity::NodeStore;
use handfast_ca::Error;
use handfast_ca::audit::{self, AuditHead, Filter, Outcome, Record, Verified};
use handfast_ca::authority::Authority;

use super::CaSocket;
use crate::output::{Format, timestamp, timestamp_ms};

/// Every issuance, refusal, rotation step and administrative act, oldest first
///
/// The running CA reads its log, or with --dir the files are read here, without a CA. JSON and YAML are one document
/// a record.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca audit --since 24h --refused\n  handfast ca audit --act entry --by uid:0 --output json\n  handfast ca audit --verify --head /var/lib/handfast/agent"
)]
pub struct AuditArgs {
    #[command(flatten)]
    socket: CaSocket,
    /// Read the log in this CA's folder instead of asking the running CA
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Not before: how long ago (24h, 15m), or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_parser = moment, value_name = "WHEN")]
    since: Option<u64>,
    /// Not after: how long ago, or a time
    #[arg(long, value_parser = moment, value_name = "WHEN")]
    until: Option<u64>,
    /// Only this act, or all of a noun: entry.create, entry, svid, node, token, policy, revocation, rotation
    #[arg(long, value_name = "ACT", value_parser = act)]
    act: Option<String>,
    /// Only what was done by an operator or node whose name contains this
    #[arg(long)]
    by: Option<String>,
    /// Only what concerns a subject whose name contains this
    #[arg(long)]
    subject: Option<String>,
    /// Only refusals
    #[arg(long)]
    refused: bool,
    /// Check every link of the log's chain instead of listing it; a broken one is named, and the exit status is 1
    #[arg(long, conflicts_with_all = ["since", "until", "act", "by", "subject", "refused"])]
    verify: bool,
    /// With --verify: an agent's folder, or a copy of the audit-heads.json in it: signed heads, which show what was cut
    /// off at the end; again for more agents
    #[arg(long, requires = "verify", value_name = "FOLDER|FILE")]
    head: Vec<PathBuf>,
    /// How to print
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Runs the command.
pub async fn run(args: AuditArgs) -> anyhow::Result<()> {
    if args.verify {
        return verify(&args).await;
    }
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since > until
    {
        bail!(
            "--since {} is after --until {}: nothing lies between them",
            timestamp(since / 1000),
            timestamp(until / 1000)
        );
    }
    let filter = Filter {
        since_ms: args.since,
        until_ms: args.until,
        act: args.act,
        by: args.by,
        subject: args.subject,
        refused: args.refused,
    };
    let printer = Printer::new(args.output);
    let mut outcome = Ok(true);
    let mut more = |record: &Record| {
        outcome = printer.print(record);
        matches!(outcome, Ok(true))
    };
    match &args.dir {
        Some(dir) => {
            audit::read(&folder(dir)?, &filter, |record| more(&record))?;
        }
        None => {
            let mut admin = args.socket.connect().await?;
            let told = admin.audit(&filter, |record| {
                if more(&record) {
                    return Ok(());
                }
                Err(Error::Protocol("the reader has gone".to_owned()))
            });
            let told = told.await;
            if matches!(outcome, Ok(true)) {
                told?;
            }
        }
    }
    outcome.map(drop)
}

async fn verify(args: &AuditArgs) -> anyhow::Result<()> {
    let mut heads = Vec::new();
    for place in &args.head {
        heads.extend(NodeStore::audit_heads_in(place)?);
    }
    let without = heads.is_empty();
    let verified = match &args.dir {
        Some(dir) => verify_files(dir, &heads).await?,
        None => {
            let mut admin = args.socket.connect().await?;
            match admin.verify_audit(heads).await? {
                Ok(verified) => verified,
                Err(problem) => bail!(problem),
            }
        }
    };
    print_verified(&verified, args.output)?;
    if without {
        eprintln!(
            "note: whether its end was cut off only the heads show that agents keep: --head FOLDER, such as /var/lib/handfast/agent of a node"
        );
    }
    Ok(())
}

/// Checks the files of a log here. Heads of other servers' logs say nothing of this one.
async fn verify_files(dir: &Path, heads: &[Vec<u8>]) -> anyhow::Result<Verified> {
    let folder = folder(dir)?;
    if heads.is_empty() {
        return Ok(audit::verify(&folder, &[])?);
    }
    let (server, bundle) = Authority::published(dir)
        .await
        .context("who signed the heads is not known")?;
    let mut positions = Vec::new();
    for head in heads {
        let head = AuditHead::from_bytes(head, &bundle)?;
        if head.server() == server {
            positions.push(head.position());
        }
    }
    Ok(audit::verify(&folder, &positions)?)
}

fn print_verified(verified: &Verified, output: Format) -> anyhow::Result<()> {
    match output {
        Format::Table => {
            outln!(
                "every link of {} records holds; the last is {}",
                verified.entries,
                verified.head
            );
            if verified.torn_bytes > 0 {
                outln!(
                    "{} bytes after it are a record that a crash cut short; the CA removes them when it starts",
                    verified.torn_bytes
                );
            }
        }
        Format::Json => outln!("{}", serde_json::to_string(verified)?),
        Format::Yaml => out!("{}", serde_norway::to_string(verified)?),
    }
    Ok(())
}

fn folder(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = dir.join(audit::FOLDER);
    if !folder.is_dir() {
        bail!(
            "{} holds no audit log; give the CA's folder, such as /var/lib/handfast/ca",
            dir.display()
        );
    }
    Ok(folder)
}

/// Prints records as they come.
struct Printer {
    output: Format,
}

impl Printer {
    fn new(output: Format) -> Self {
        if output == Format::Table {
            outln!(
                "{:24}  {:20}  {:7}  {:32}  SUBJECT",
                "TIME",
                "ACT",
                "OUTCOME",
                "BY"
            );
        }
        Self { output }
    }

    /// False if nobody reads any more.
    fn print(&self, record: &Record) -> anyhow::Result<bool> {
        match self.output {
            Format::Table => row(record),
            Format::Json => outln!("{}", serde_json::to_string(record)?),
            Format::Yaml => out!("---\n{}", serde_norway::to_string(record)?),
        }
        Ok(!crate::output::is_over())
    }
}

fn row(record: &Record) {
    let at = timestamp_ms(Duration::from_millis(record.at_ms).as_secs_f64());
    let (outcome, why) = match record.outcome {
        Outcome::Done => ("done", None),
        Outcome::Refused => ("refused", record.detail.get("refusal")),
    };
    let why = why
        .and_then(|why| why.as_str())
        .map(|why| format!(": {why}"));
    outln!(
        "{at:24}  {:20}  {outcome:7}  {:32}  {}{}",
        record.act,
        record.by,
        record.subject,
        why.unwrap_or_default()
    );
}

/// An act that the CA writes down, or the noun of some.
fn act(text: &str) -> Result<String, String> {
    let fits = |known: &&str| *known == text || known.split('.').next() == Some(text);
    if audit::ACTS.iter().any(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "no such act; there are {} (or the part before the dot for all of a noun)",
        audit::ACTS.join(", ")
    ))
}

/// Milliseconds since 1970, from a time or from how long ago it was.
fn moment(text: &str) -> Result<u64, String> {
    let time = humantime::parse_rfc3339_weak(text).or_else(|_| {
        humantime::parse_duration(text)
            .map(|ago| SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH))
            .map_err(|_| "write how long ago (24h) or a time (2026-01-31T12:00:00Z)".to_owned())
    })?;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_is_one_that_is_written_down_or_the_noun_of_some() {
        for good in ["entry", "entry.create", "rotation.taint", "svid"] {
            assert_eq!(act(good).unwrap(), good);
        }
        for bad in ["", "nosuch", "entry.", "entry.nosuch", "create", "entr"] {
            assert!(act(bad).unwrap_err().contains("entry.create"), "{bad}");
        }
    }
}
