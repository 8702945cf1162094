//! `handfast demo`: everything handfast is for, on real programs and real packets, in namespaces of this machine.
//!
//! The demonstration uses this very binary through its command line, as a user would. What it claims it reads from
//! the kernel: counters, captured frames, what other programs print.

// Shared with the tests, which use more of it.
#[allow(dead_code)]
mod harness;
mod measure;
mod report;
mod stage;
mod steps;

use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use harness::{lab, requirements, wait};
use report::{Progress, Report, StepResult};
use stage::Stage;
use steps::Step;

/// Show it all on this machine: two nodes, a CA, real programs, every claim measured
///
/// Everything lives in network namespaces and leaves nothing behind. Needs root.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print the result as JSON, and nothing else, on standard output
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
    /// What carries packets between the two nodes
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    encryption: crate::agent::Kind,
    /// Remove what an earlier --keep left running
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    stop: bool,
}

/// Runs the command.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    if args.stop {
        return stop();
    }
    let encryption = args.encryption.to_string();
    let missing = requirements::missing_for(&encryption);
    if !missing.is_empty() {
        bail!(
            "the demonstration cannot run here, and nothing was changed; missing:\n  - {}",
            missing.join("\n  - ")
        );
    }
    clean_up_after_a_panic();
    let keep = args.keep;
    let mut show = tokio::task::spawn_blocking(move || perform(keep, &encryption));
    let (report, hints) = tokio::select! {
        done = &mut show => done.context("the demonstration ended unexpectedly")??,
        name = any_signal() => {
            wait::interrupt();
            // It notices within milliseconds, and takes everything away before it ends.
            let _ = show.await;
            bail!("ended by {}; everything was removed", name?);
        }
    };
    if args.json {
        outln!("{}", serde_json::to_string(&report)?);
    } else {
        outln!("{}", report.table());
    }
    if let Some(hints) = hints {
        eprintln!("{hints}");
    }
    if let Some(step) = report.steps.iter().find(|step| !step.ok) {
        bail!(
            "the demonstration failed at \"{}\": {}",
            step.name,
            step.detail
        );
    }
    Ok(())
}

/// Plays all steps on a stage of its own. The stage is gone when this returns, unless it is to be kept.
fn perform(keep: bool, encryption: &str) -> anyhow::Result<(Report, Option<String>)> {
    let progress = Progress::start(steps::ALL.len() as u64 + 1);
    progress.doing("building two nodes, a CA and their underlay");
    let start = Instant::now();
    let mut results = Vec::new();
    let (mut stage, facts) = match Stage::build(encryption) {
        Ok(built) => built,
        Err(error) => {
            progress.end();
            return Err(error.context("building the demonstration; everything was removed"));
        }
    };
    let set_up = result("set up: CA, two nodes, underlay", start, Ok(facts));
    progress.done(&set_up);
    results.push(set_up);
    let mut failed = false;
    for step in steps::ALL {
        if failed {
            results.push(StepResult {
                name: step.name,
                ok: false,
                detail: "not reached".into(),
                ms: 0,
            });
            continue;
        }
        progress.doing(step.name);
        let result = play(step, &mut stage);
        progress.done(&result);
        failed = !result.ok;
        results.push(result);
    }
    progress.end();
    wait::check_interrupt()?;
    if failed {
        eprintln!("{}", stage.evidence());
    }
    let hints = keep.then(|| stage.keep()).transpose()?;
    Ok((Report::new(results), hints))
}

fn play(step: &Step, stage: &mut Stage) -> StepResult {
    let start = Instant::now();
    let outcome = (step.run)(stage);
    result(step.name, start, outcome)
}

fn result(name: &'static str, start: Instant, outcome: anyhow::Result<String>) -> StepResult {
    let (ok, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(error) => (false, format!("{error:#}")),
    };
    StepResult {
        name,
        ok,
        detail,
        ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

fn stop() -> anyhow::Result<()> {
    let removed = lab::remove_kept()?;
    lab::sweep();
    match removed.len() {
        0 => outln!("no demonstration is running"),
        _ => outln!("removed {}", removed.join(", ")),
    }
    Ok(())
}

/// Where a panic ends the process at once, no destructor runs: the hook is the only chance.
fn clean_up_after_a_panic() {
    if cfg!(panic = "abort") {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            previous(info);
            lab::remove_own();
        }));
    }
}

async fn any_signal() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}
