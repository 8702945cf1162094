//! `handfast policy check`: errors, oddities, and what would cut handfast's own lifelines.

use anyhow::ensure;
use clap::Args;
use handfast_policies::tools::check::{Finding, Level, check};
use handfast_policies::{PolicyInfo, PolicySet, ReadError};
use serde::Serialize;

use super::input::{LifelineArgs, WorkloadArgs};
use super::{Paths, columns, files, refuse};
use crate::output::OutputArgs;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    workloads: WorkloadArgs,
    #[command(flatten)]
    lifelines: LifelineArgs,
    /// Accept policies that would cut agents from the CA, the CA from its store, or both from names
    #[arg(long)]
    allow_cut: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `check` says to programs.
#[derive(Serialize)]
struct Report {
    ok: bool,
    policies: Vec<PolicyInfo>,
    errors: Vec<ReadError>,
    findings: Vec<Finding>,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let (sources, mut errors) = files::read(&args.paths.paths)?;
    // A broken file hides the policies of no other, but all of them must fit together.
    let alone = sources
        .iter()
        .filter_map(|source| PolicySet::read(vec![source.clone()]).ok());
    let policies: Vec<_> = alone.flat_map(|set| set.policies().to_vec()).collect();
    let mut inventory = args.workloads.read()?;
    inventory.needs.extend(args.lifelines.needs());
    let findings = match PolicySet::read(sources) {
        Ok(set) => check(&set, &inventory),
        Err(mut found) => {
            errors.append(&mut found);
            Vec::new()
        }
    };
    let insisted = |found: &Finding| args.allow_cut && found.code == "cuts-lifeline";
    let refused = findings
        .iter()
        .filter(|found| found.level == Level::Refused && !insisted(found))
        .count();
    let report = Report {
        ok: errors.is_empty() && refused == 0,
        policies,
        errors,
        findings,
    };
    let rows = report.policies.iter().map(|policy| {
        let mut row = columns(policy);
        row.push(format!("{}:{}", policy.file, policy.line));
        row
    });
    args.output.print(
        &report,
        &["KIND", "NAMESPACE", "NAME", "INGRESS", "EGRESS", "PLACE"],
        rows,
    )?;
    for finding in &report.findings {
        eprintln!("{finding}");
    }
    refuse(&report.errors)?;
    ensure!(
        refused == 0,
        "these policies are refused; change them (what would cut handfast's own lifelines passes with --allow-cut)"
    );
    Ok(())
}
