//! `handfast policy`: what may talk to what, checked before it bites.

mod apply;
mod cases;
mod check;
mod confirm;
mod diff;
mod documents;
mod enforce;
mod explain;
mod files;
mod graph;
mod input;
mod migrate;
mod schema;
mod suggest;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use handfast_ca::model::PolicyDocument;
use handfast_policies::{PolicyInfo, PolicySet, ReadError, Source};
use serde::Serialize;

use crate::ca::CaSocket;
use crate::output::{OutputArgs, timestamp};

/// Policies: what may talk to what, and which flows need a proof
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    socket: CaSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read policies and say what is wrong with them; asks nobody and changes nothing
    Check(check::CheckArgs),
    /// What becomes of one flow, by which rule, and how its proof stands
    Explain(explain::ExplainArgs),
    /// Run test cases against policies, without a cluster
    Test(cases::TestArgs),
    /// The flows of which two sets of policies say different things
    Diff(diff::DiffArgs),
    /// Draw who may talk to whom, who does, and where the two differ
    Graph(graph::GraphArgs),
    /// The least that allows what was seen
    Suggest(suggest::SuggestArgs),
    /// From audit to required: only if every pair that was seen has a proof
    Enforce(enforce::EnforceArgs),
    /// From another enforcer's policies to HandfastPolicies, with what changes on the way
    Migrate(migrate::MigrateArgs),
    /// The JSON Schema of a kind of document, or the CustomResourceDefinition
    Schema(schema::SchemaArgs),
    /// Put policies in force on every node: all that the files hold or, on an error, none
    Apply(apply::ApplyArgs),
    /// What was put in force for a time (`apply --confirm-within`), and how long it has to be confirmed
    Status(confirm::StatusArgs),
    /// Keep what was put in force for a time
    Confirm(confirm::ConfirmArgs),
    /// Put back what was before `apply --confirm-within`, without waiting for its end
    Revert(confirm::RevertArgs),
    /// The policies in force
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take policies out of force: all that are named or, on an error, none
    Delete {
        /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME, as `policy list` shows them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Why; kept in the CA's audit log
        #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
        reason: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct Paths {
    /// Files, folders with *.yaml, *.yml and *.json, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
}

/// Runs the command.
pub async fn run(args: PolicyArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Check(check) => check::run(&check),
        Command::Explain(explain) => explain::run(&explain, &args.socket).await,
        Command::Test(test) => cases::run(&test),
        Command::Diff(diff) => diff::run(&diff),
        Command::Graph(graph) => graph::run(&graph, &args.socket).await,
        Command::Suggest(suggest) => suggest::run(&suggest, &args.socket).await,
        Command::Enforce(enforce) => enforce::run(&enforce, &args.socket).await,
        Command::Migrate(migrate) => migrate::run(&migrate),
        Command::Schema(schema) => schema::run(&schema),
        Command::Apply(apply) => apply::run(&apply, &args.socket).await,
        Command::Status(status) => confirm::status(&status, &args.socket).await,
        Command::Confirm(confirm) => confirm::confirm(&confirm, &args.socket).await,
        Command::Revert(revert) => confirm::revert(&revert, &args.socket).await,
        Command::List { output } => list(&args.socket, output).await,
        Command::Delete {
            names,
            reason,
            dry_run,
        } => delete(&args.socket, &names, &reason, dry_run).await,
    }
}

/// Writes a text to a file, or to standard output.
fn write_out(path: Option<&Path>, text: &str) -> anyhow::Result<()> {
    match path {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        }
        None => {
            out!("{text}");
            Ok(())
        }
    }
}

fn columns(policy: &PolicyInfo) -> Vec<String> {
    vec![
        policy.kind.to_string(),
        policy.namespace.clone().unwrap_or_else(|| "-".to_owned()),
        policy.name.clone(),
        policy.ingress.to_string(),
        policy.egress.to_string(),
    ]
}

/// Prints the errors, one a line, and fails if there are any.
fn refuse(errors: &[ReadError]) -> anyhow::Result<()> {
    for error in errors {
        eprintln!("{error}");
    }
    match errors.len() {
        0 => Ok(()),
        1 => bail!("1 error; nothing was changed"),
        more => bail!("{more} errors; nothing was changed"),
    }
}

fn suffix(dry_run: bool) -> &'static str {
    if dry_run {
        " (dry run: nothing was changed)"
    } else {
        ""
    }
}

/// A stored policy for people and programs.
#[derive(Serialize)]
struct Listed {
    key: String,
    #[serde(flatten)]
    policy: Option<PolicyInfo>,
    version: u64,
    changed_at: String,
}

async fn list(socket: &CaSocket, output: OutputArgs) -> anyhow::Result<()> {
    let stored = socket.connect().await?.policies().await?;
    let listed: Vec<_> = stored.into_iter().map(listed).collect();
    let rows = listed.iter().map(|listed| {
        let unread = || vec!["unreadable".to_owned(), "-".to_owned(), listed.key.clone()];
        let mut row = listed.policy.as_ref().map_or_else(unread, columns);
        row.resize(5, "-".to_owned());
        row.extend([listed.version.to_string(), listed.changed_at.clone()]);
        row
    });
    let header = &[
        "KIND",
        "NAMESPACE",
        "NAME",
        "INGRESS",
        "EGRESS",
        "VERSION",
        "CHANGED",
    ];
    output.print(&listed, header, rows)
}

fn listed(document: PolicyDocument) -> Listed {
    let source = Source {
        name: document.name.clone(),
        text: document.text,
    };
    let policy = PolicySet::read(vec![source])
        .ok()
        .and_then(|set| set.policies().first().cloned());
    Listed {
        key: document.name,
        policy,
        version: document.version,
        changed_at: timestamp(document.changed_at_ms / 1000),
    }
}

async fn delete(
    socket: &CaSocket,
    names: &[String],
    reason: &str,
    dry_run: bool,
) -> anyhow::Result<()> {
    let mut admin = socket.connect().await?;
    let stored = admin.policies().await?;
    let keys = stored
        .iter()
        .map(|policy| policy.name.as_str())
        .collect::<Vec<_>>();
    let mut found = names
        .iter()
        .map(|name| documents::find(&keys, name).map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()?;
    found.sort_unstable();
    found.dedup();
    if !dry_run {
        admin
            .delete_policies(&found, reason)
            .await
            .context("the CA deleted none")?;
    }
    for key in found {
        outln!("{key} deleted{}", suffix(dry_run));
        if documents::in_cluster(&key).is_some() {
            eprintln!(
                "note: while its object is in the cluster, and the CA follows that, it comes back at once"
            );
        }
    }
    Ok(())
}
