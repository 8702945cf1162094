//! `handfast policy check`: errors, oddities, and what would cut handfast's own lifelines.

use clap::Args;
use handfast_policies::tools::check::{Finding, check};
use handfast_policies::{PolicyInfo, PolicySet, ReadError};
use serde::Serialize;

use super::input::{LifelineArgs, WorkloadArgs};
use super::{Paths, columns, files, refuse};
use crate::output::OutputArgs;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy check web.yaml db.yaml\n  handfast policy check examples/shop/policies.yaml --workloads examples/shop/workloads.yaml\n  handfast policy check policies/ --ca-address 192.0.2.1:7251 --dns-address 192.0.2.53\n  kubectl get ciliumnetworkpolicies --all-namespaces --output yaml | handfast policy check -"
)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    workloads: WorkloadArgs,
    #[command(flatten)]
    lifelines: LifelineArgs,
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
    args.lifelines.add_to(&mut inventory);
    let findings = match PolicySet::read(sources) {
        Ok(set) => check(&set, &inventory),
        Err(mut found) => {
            errors.append(&mut found);
            Vec::new()
        }
    };
    let judgement = args.lifelines.judge(&findings);
    let report = Report {
        ok: errors.is_empty() && judgement.is_ok(),
        policies,
        errors,
        findings,
    };
    let rows = report.policies.iter().map(|policy| {
        let mut row = columns(policy);
        row.push(format!("{}:{}", policy.file, policy.line));
        row
    });
    if !report.policies.is_empty() || args.output.is_for_programs() {
        let header = ["KIND", "NAMESPACE", "NAME", "INGRESS", "EGRESS", "PLACE"];
        args.output.print(&report, &header, rows)?;
    } else if report.errors.is_empty() {
        // What a pipe that broke before us leaves to read.
        eprintln!("warning: there is no policy in what was read");
    }
    for finding in &report.findings {
        eprintln!("{finding}");
    }
    refuse(&report.errors)?;
    judgement
}
