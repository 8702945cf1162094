//! `handfast policy apply`: policies in force on every node, if they fit and cut no lifeline.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use handfast_policies::tools::check::{Level, check};
use handfast_policies::{PolicySet, Source};
use serde::Serialize;

use super::confirm::{self, Trial};
use super::documents::{self, Document};
use super::input::{LifelineArgs, WorkloadArgs};
use super::{Paths, files, refuse, suffix};
use crate::ca::CaSocket;
use crate::output::{Format, OutputArgs};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    workloads: WorkloadArgs,
    #[command(flatten)]
    lifelines: LifelineArgs,
    /// Put back what was before unless `handfast policy confirm` comes within that time (1s to 1day): whoever locks
    /// himself out cannot confirm
    #[arg(long, value_name = "DURATION", value_parser = within)]
    confirm_within: Option<Duration>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `apply` says to programs.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    policies: Vec<Applied>,
    /// Unset: what was put in force stays.
    on_trial: Option<Trial>,
}

#[derive(Serialize)]
struct Applied {
    key: String,
    outcome: &'static str,
}

/// The time that somebody has to confirm, as the CA takes it.
fn within(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_secs(1) || time > Duration::from_secs(86_400) {
        return Err("1s to 1day".to_owned());
    }
    Ok(time)
}

pub(super) async fn run(args: &ApplyArgs, socket: &CaSocket) -> anyhow::Result<()> {
    let (sources, mut errors) = files::read(&args.paths.paths)?;
    errors.extend(PolicySet::read(sources.clone()).err().into_iter().flatten());
    refuse(&errors)?;
    let documents = documents::of(&sources)?;
    ensure!(
        !documents.is_empty(),
        "there is no policy in these files; nothing was changed"
    );

    let mut admin = socket.connect().await?;
    let waiting = admin.policy_trial().await;
    // An older CA has no trials, and none under way.
    if let Some(trial) = waiting.or_else(|error| match args.confirm_within {
        None => Ok(None),
        Some(_) => Err(error).context("the CA knows no --confirm-within; nothing was changed"),
    })? {
        bail!(confirm::in_the_way(&trial));
    }
    let stored = admin.policies().await?;
    let before: BTreeMap<_, _> = stored
        .iter()
        .map(|p| (p.name.as_str(), p.text.as_str()))
        .collect();
    let after = together(&before, &documents)?;
    let mut inventory = args.workloads.read_or_ask(socket).await?;
    args.lifelines.add_to(&mut inventory);
    let findings = check(&after, &inventory);
    for finding in findings
        .iter()
        .filter(|found| found.level == Level::Refused)
    {
        eprintln!("{finding}");
    }
    args.lifelines
        .judge(&findings)
        .context("nothing was changed")?;
    let outcome = |document: &Document| match before.get(document.key.as_str()) {
        None => "created",
        Some(text) if *text == document.text => "unchanged",
        Some(_) => "changed",
    };
    if !args.dry_run {
        let put: Vec<_> = documents
            .iter()
            .map(|d| (d.key.clone(), d.text.clone()))
            .collect();
        let taken = match args.confirm_within {
            None => admin.put_policies(&put).await,
            Some(within) => admin.try_policies(&put, within).await,
        };
        taken.context("the CA did not take them; nothing was changed")?;
    }
    let on_trial = match args.confirm_within {
        Some(_) if !args.dry_run => admin.policy_trial().await?.map(Trial::from),
        _ => None,
    };
    let applied = |document: &Document| Applied {
        key: document.key.clone(),
        outcome: outcome(document),
    };
    let report = Report {
        dry_run: args.dry_run,
        policies: documents.iter().map(applied).collect(),
        on_trial,
    };
    print(&report, args)
}

fn print(report: &Report, args: &ApplyArgs) -> anyhow::Result<()> {
    if args.output.output != Format::Table {
        return args.output.print(report, &[], []);
    }
    for applied in &report.policies {
        outln!(
            "{} {}{}",
            applied.key,
            applied.outcome,
            suffix(args.dry_run)
        );
    }
    match &report.on_trial {
        Some(trial) => outln!(
            "what has changed goes back at {} unless `handfast policy confirm` keeps it",
            trial.until
        ),
        None if args.confirm_within.is_some() && !args.dry_run => {
            outln!("nothing has changed, so there is nothing to confirm");
        }
        None => {}
    }
    Ok(())
}

/// What would be in force; refuses documents that agents could not read together with those that are stored already.
fn together(before: &BTreeMap<&str, &str>, documents: &[Document]) -> anyhow::Result<PolicySet> {
    let mut after = before.clone();
    after.extend(documents.iter().map(|d| (d.key.as_str(), d.text.as_str())));
    let sources = after.into_iter().map(|(name, text)| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    });
    let read = PolicySet::read(sources.collect());
    refuse(read.as_ref().err().map_or(&[], Vec::as_slice))
        .context("the policies do not go together with those in force")?;
    Ok(read.unwrap_or_default())
}
