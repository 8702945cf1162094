//! `handfast policy test`: cases in YAML, run without a cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use handfast_policies::tools::cases::{Cases, Outcomes, junit};

use super::input;
use crate::output::OutputArgs;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy test examples/shop/tests.yaml\n  handfast policy test tests/*.yaml --junit report.xml\n  handfast policy test tests.yaml --policy proposed/"
)]
pub(super) struct TestArgs {
    /// Files of cases: policies, workloads, and tests with from, to, port and expect
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Policies to test in place of those that the files name
    #[arg(long, value_name = "FILE|DIR")]
    policy: Vec<PathBuf>,
    /// Write the outcome as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &TestArgs) -> anyhow::Result<()> {
    let mut suites = Vec::new();
    for file in &args.files {
        suites.push((file.display().to_string(), suite(args, file)?));
    }
    if let Some(path) = &args.junit {
        std::fs::write(path, junit(&suites))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let all: Vec<&Outcomes> = suites.iter().flat_map(|(_, outcomes)| outcomes).collect();
    let rows = all.iter().map(|outcome| {
        let (state, why) = match &outcome.failure {
            None => ("ok", ""),
            Some(why) => ("FAILED", why.as_str()),
        };
        vec![
            format!("{}:{}", outcome.file, outcome.line),
            outcome.name.clone(),
            state.to_owned(),
            why.to_owned(),
        ]
    });
    args.output
        .print(&all, &["PLACE", "TEST", "STATE", "WHY"], rows)?;
    let failed = all
        .iter()
        .filter(|outcome| outcome.failure.is_some())
        .count();
    ensure!(failed == 0, "{failed} of {} tests failed", all.len());
    Ok(())
}

fn suite(args: &TestArgs, file: &Path) -> anyhow::Result<Vec<Outcomes>> {
    let cases = Cases::read(&input::text(file)?).map_err(input::all)?;
    let beside = |path: &String| match file.parent() {
        Some(folder) => folder.join(path),
        None => PathBuf::from(path),
    };
    let paths = match args.policy.as_slice() {
        [] => cases.policies.iter().map(beside).collect(),
        given => given.to_vec(),
    };
    ensure!(
        !paths.is_empty(),
        "{} names no policies: list them under policies, or give --policy",
        file.display()
    );
    let set = input::set(&paths)?;
    match &cases.workloads {
        Some(path) => Ok(cases.run(&set, &input::inventory(&beside(path))?)),
        None => Ok(cases.run(&set, &cases.inventory)),
    }
}
