//! `handfast policy diff`: the flows of which two sets of policies say different things.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use handfast_policies::tools::diff::{Change, diff};

use super::input::{self, WorkloadArgs};
use crate::output::OutputArgs;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy diff policies-now/ policies-next/ --workloads workloads.yaml\n  handfast policy diff main.yaml branch.yaml --fail-on-widening"
)]
pub(super) struct DiffArgs {
    /// The policies as they are: a file or folder
    before: PathBuf,
    /// The policies as they are to be
    after: PathBuf,
    #[command(flatten)]
    workloads: WorkloadArgs,
    /// Fail if a flow passes afterwards that did not before, or with less proof
    #[arg(long)]
    fail_on_widening: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &DiffArgs) -> anyhow::Result<()> {
    let before = input::set(std::slice::from_ref(&args.before))?;
    let after = input::set(std::slice::from_ref(&args.after))?;
    let changes = diff(&before, &after, &args.workloads.read()?);
    if changes.is_empty() && !args.output.is_for_programs() {
        eprintln!("no flow's verdict differs");
    } else {
        print(&changes, args.output)?;
    }
    let wider = changes.iter().filter(|change| change.widens()).count();
    ensure!(
        wider == 0 || !args.fail_on_widening,
        "{wider} of {} changes widen access",
        changes.len()
    );
    Ok(())
}

/// Changes as a table or for programs.
pub(super) fn print(changes: &[Change], output: OutputArgs) -> anyhow::Result<()> {
    let header = [
        "FROM",
        "TO",
        "PROTOCOL",
        "PORTS",
        "BEFORE",
        "AFTER",
        "RULE BEFORE",
        "RULE AFTER",
    ];
    let rows = changes.iter().map(|change| {
        let rule = |rule: &Option<handfast_policies::RuleInfo>| {
            rule.as_ref()
                .map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        vec![
            change.from.clone(),
            change.to.clone(),
            change.protocol.clone(),
            change.ports.clone(),
            change.before.to_string(),
            change.after.to_string(),
            rule(&change.rule_before),
            rule(&change.rule_after),
        ]
    });
    output.print(&changes, &header, rows)
}
