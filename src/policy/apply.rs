//! `handfast policy apply`: policies in force on every node, if they fit and cut no lifeline.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use clap::Args;
use handfast_policies::tools::check::{Level, check};
use handfast_policies::{PolicySet, Source};

use super::documents::{self, Document};
use super::input::{LifelineArgs, WorkloadArgs};
use super::{Paths, files, refuse, suffix};
use crate::ca::CaSocket;

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    workloads: WorkloadArgs,
    #[command(flatten)]
    lifelines: LifelineArgs,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
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
    let stored = admin.policies().await?;
    let before: BTreeMap<_, _> = stored
        .iter()
        .map(|p| (p.name.as_str(), p.text.as_str()))
        .collect();
    let after = together(&before, &documents)?;
    let mut inventory = args.workloads.read_or_ask(socket).await?;
    inventory.needs.extend(args.lifelines.needs());
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
        admin
            .put_policies(&put)
            .await
            .context("the CA did not take them; nothing was changed")?;
    }
    for document in &documents {
        outln!(
            "{} {}{}",
            document.key,
            outcome(document),
            suffix(args.dry_run)
        );
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
