//! `handfast policy graph`: who may talk to whom, who does, and where the two differ.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use handfast_policies::tools::graph::{dot, graph, html, svg};

use super::input::{self, WorkloadArgs};
use super::write_out;
use crate::ca::CaSocket;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy graph --out mesh.html\n  handfast policy graph policies/ --workloads workloads.yaml --observed flows.jsonl --out mesh.html\n  handfast policy graph policies/ --format dot | dot -Tpdf > mesh.pdf"
)]
pub(super) struct GraphArgs {
    /// Policies to draw; without any, those that the CA has in force
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    workloads: WorkloadArgs,
    /// Flows that were seen: a file written by `handfast observe --output json`
    #[arg(long, value_name = "FILE")]
    observed: Option<PathBuf>,
    /// What to draw
    #[arg(long, value_enum, default_value_t)]
    format: GraphFormat,
    /// Draw what is open only because no policy closes it, too
    #[arg(long)]
    all: bool,
    /// Where to write it; without, standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The page's title
    #[arg(long, default_value = "Who may talk to whom")]
    title: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum GraphFormat {
    /// One page that can be searched and filtered, and needs no other file
    #[default]
    Html,
    /// A picture
    Svg,
    /// The language of Graphviz
    Dot,
    /// Nodes and edges for programs
    Json,
}

pub(super) async fn run(args: &GraphArgs, ca: &CaSocket) -> anyhow::Result<()> {
    let seen = args.observed.as_deref().map(input::text).transpose()?;
    let set = input::policies(&args.paths, ca).await?;
    let known = if args.paths.is_empty() {
        args.workloads.read_or_ask(ca).await?
    } else {
        args.workloads.read()?
    };
    let observed = seen
        .as_ref()
        .map(|seen| input::flows(seen, &known))
        .transpose()?;
    let graph = graph(&set, &known, observed.as_deref(), args.all);
    let text = match args.format {
        GraphFormat::Html => html(&graph, &args.title),
        GraphFormat::Svg => svg(&graph),
        GraphFormat::Dot => dot(&graph),
        GraphFormat::Json => serde_json::to_string_pretty(&graph)? + "\n",
    };
    write_out(args.out.as_deref(), &text)
}
