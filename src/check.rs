//! `handfast check`: is this host fit to be a node.

use clap::Args;
use handfast_agent::check::{State, check};

use crate::agent::RunArgs;
use crate::output::OutputArgs;

/// Is this host fit: kernel, tools, ports, clock, identity, CA, peers
///
/// Changes nothing. Take the same options as for `handfast agent run`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    settings: RunArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub async fn run(args: CheckArgs) -> anyhow::Result<()> {
    let findings = check(&args.settings.into()).await;
    args.output.print(
        &findings,
        &["CHECK", "STATE", "DETAIL"],
        findings.iter().map(|finding| {
            let state = match finding.state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Failed => "FAILED",
                State::Unknown => "unknown",
            };
            vec![finding.what.clone(), state.into(), finding.detail.clone()]
        }),
    )?;
    let failed = findings.iter().filter(|f| f.state == State::Failed).count();
    let unknown = findings
        .iter()
        .filter(|f| f.state == State::Unknown)
        .count();
    anyhow::ensure!(
        unknown == 0,
        "this needs root: {unknown} of {} checks could not be made",
        findings.len()
    );
    anyhow::ensure!(failed == 0, "{failed} of {} checks failed", findings.len());
    Ok(())
}
