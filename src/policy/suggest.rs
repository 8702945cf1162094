//! `handfast policy suggest`: from observed flows to the least that allows them.

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use handfast_policies::tools::suggest::{Proofs, suggest};

use super::input::{self, WorkloadArgs};
use super::write_out;
use crate::ca::CaSocket;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast observe --follow --output json > flows.jsonl\n  handfast policy suggest flows.jsonl --out suggested.yaml\n  handfast policy suggest examples/shop/observed.jsonl --workloads examples/shop/workloads.yaml"
)]
pub(super) struct SuggestArgs {
    /// Flows that were seen: a file written by `handfast observe --output json`
    #[arg(value_name = "FILE")]
    observed: PathBuf,
    #[command(flatten)]
    workloads: WorkloadArgs,
    /// Whether rules between workloads require proofs, or count what would be dropped
    #[arg(long, value_enum, default_value_t)]
    authentication: Mode,
    /// Where to write the policies; without, standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Passes without a proof, and is counted
    #[default]
    Audit,
    /// Passes only proven
    Required,
}

pub(super) async fn run(args: &SuggestArgs, ca: &CaSocket) -> anyhow::Result<()> {
    // Before the CA is asked for all of its entries.
    let seen = input::text(&args.observed)?;
    let known = args.workloads.read_or_ask(ca).await?;
    let observed = input::flows(&seen, &known)?;
    let proofs = match args.authentication {
        Mode::Audit => Proofs::Audit,
        Mode::Required => Proofs::Required,
    };
    let suggestion = suggest(&observed, &known, proofs)?;
    for note in &suggestion.notes {
        eprintln!("note: {note}");
    }
    ensure!(
        suggestion.documents > 0,
        "no flow of a known workload was seen to pass, so there is nothing to suggest"
    );
    write_out(args.out.as_deref(), &suggestion.yaml)
}
