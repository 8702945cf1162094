//! `handfast ca rotate`: replace the root, the issuing CA or the JWT key, with every agent's confirmation.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use handfast_ca::NodeName;
use handfast_ca::client::admin::Admin;
use handfast_ca::client::rotation::{Force, NewRotation, Rotation, RotationPlan, Straggler};
use handfast_ca::rotation::{Stage, What};
use indicatif::{ProgressBar, ProgressStyle};

use super::CaSocket;
use crate::output::{Format, OutputArgs, timestamp};

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(250);
/// Stragglers that a line of progress names.
const NAMED: usize = 3;

/// Replace the root, the issuing CA or the JWT key: each step waits until every agent has confirmed the one before
///
/// The CA goes on by itself, also when this command ends or the CA restarts; an agent that does not confirm is named,
/// and nothing is taken away that it still needs.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast ca rotate --plan\n  handfast ca rotate --reason 'yearly'\n  handfast ca rotate --what jwt --no-wait\n  handfast ca rotate --force --node db7 --reason 'db7 burnt down'\n  handfast ca rotate --abort --reason 'the wrong week'"
)]
pub struct RotateArgs {
    /// What is replaced
    #[arg(long, value_enum, default_value_t)]
    what: WhatArg,
    /// Say what would happen and who would hold it up; change nothing
    #[arg(long, alias = "dry-run", conflicts_with_all = ["resume", "abort", "force"])]
    plan: bool,
    /// Go on with the rotation that is under way, to its end
    #[arg(long, conflicts_with = "abort")]
    resume: bool,
    /// Take the rotation back that is under way; only before it is activated
    #[arg(long, conflicts_with = "force", requires = "reason")]
    abort: bool,
    #[command(flatten)]
    force: ForceArgs,
    /// The present root's key is known to others: nothing that it signs is to be followed
    #[arg(long)]
    compromised: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    socket: CaSocket,
    #[command(flatten)]
    output: OutputArgs,
}

/// The options that pass stragglers.
#[derive(Debug, Args)]
pub struct ForceArgs {
    /// Pass whoever has not confirmed the last step; once, and kept in the journal with the reason
    #[arg(long, requires = "reason")]
    pub force: bool,
    /// With --force: pass this node alone, and go on waiting for all others (may be given more than once)
    #[arg(long = "node", value_name = "NAME", requires = "force")]
    pub nodes: Vec<NodeName>,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", value_parser = crate::reason::read)]
    pub reason: Option<String>,
}

impl ForceArgs {
    /// Whom the next step passes.
    pub fn whom(&self) -> Force {
        match (self.force, self.nodes.as_slice()) {
            (false, _) => Force::Nobody,
            (true, []) => Force::Everybody,
            (true, nodes) => Force::Nodes(nodes.to_vec()),
        }
    }
}

/// The options that say how long to stay.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Stay and show progress until it is done (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return at once; the CA goes on by itself
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after this long (such as 10m), name the stragglers and exit 1; the CA goes on
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum WhatArg {
    /// The root, and with it the issuing CA of every server
    #[default]
    Root,
    /// This server's issuing CA
    Issuing,
    /// This server's key for JWT-SVIDs
    Jwt,
}

impl From<WhatArg> for What {
    fn from(what: WhatArg) -> Self {
        match what {
            WhatArg::Root => Self::Root,
            WhatArg::Issuing => Self::Issuing,
            WhatArg::Jwt => Self::Jwt,
        }
    }
}

/// Runs the command.
pub async fn run(args: RotateArgs) -> anyhow::Result<()> {
    let reason = args.force.reason.as_deref().unwrap_or_default();
    let mut admin = args.socket.connect().await?;
    let what = What::from(args.what);
    if args.plan {
        let plan = admin.plan_rotation(what, args.compromised).await?;
        return show_plan(&plan, args.output);
    }
    if args.abort {
        let rotation = live(&mut admin, what).await?;
        let aborted = admin.abort_rotation(rotation.id, reason).await?;
        return show(&aborted, args.output);
    }
    let rotation = if args.resume || args.force.force {
        let found = live(&mut admin, what).await?;
        admin
            .steer_rotation(found.id, Stage::Revoked, &args.force.whom(), reason)
            .await?
    } else {
        let order = NewRotation {
            what,
            goal: Stage::Revoked,
            reason: reason.to_owned(),
            compromised: args.compromised,
            root: None,
        };
        admin.rotate(order).await.context("no rotation was begun")?
    };
    follow(
        &mut admin,
        &rotation,
        Stage::Revoked,
        &args.wait,
        args.output,
    )
    .await
}

/// The rotation of this kind that is under way.
pub async fn live(admin: &mut Admin, what: What) -> anyhow::Result<Rotation> {
    let live = admin.rotations().await?.live;
    let found = live
        .into_iter()
        .find(|rotation| rotation.what == what.name());
    found.with_context(|| {
        format!(
            "no rotation of the {} is under way (begin one with `handfast ca rotate --what {}`); nothing was changed",
            what.title(),
            what.name()
        )
    })
}

/// Stays with a rotation until it has reached a stage.
pub async fn follow(
    admin: &mut Admin,
    rotation: &Rotation,
    goal: Stage,
    wait: &WaitArgs,
    output: OutputArgs,
) -> anyhow::Result<()> {
    if wait.no_wait && !wait.wait {
        return show(rotation, output);
    }
    let progress = Progress::new();
    let since = tokio::time::Instant::now();
    loop {
        let seen = find(admin, rotation).await?;
        if reached(&seen, goal) {
            progress.end();
            return show(&seen, output);
        }
        if matches!(seen.stage.as_str(), "aborted" | "overtaken") {
            progress.end();
            bail!("the rotation was {} by somebody else", seen.stage);
        }
        progress.tell(&seen);
        if wait
            .timeout
            .is_some_and(|timeout| since.elapsed() >= timeout)
        {
            progress.end();
            bail!(
                "the rotation is still {}; it waits for:\n{}\nThe CA goes on by itself once they confirm. `handfast node evict` takes a node out of the count; `handfast ca rotate --what {} --force --node NAME --reason TEXT` passes that one, and without --node all of them, once",
                seen.stage,
                lines(&seen.stragglers),
                seen.what
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn find(admin: &mut Admin, followed: &Rotation) -> anyhow::Result<Rotation> {
    let status = admin.rotations().await.with_context(|| {
        format!(
            "the CA does not answer any more. The rotation stands in its journal and goes on when it runs again; follow \
             it with `handfast ca rotate --what {} --resume`",
            followed.what
        )
    })?;
    let all = status.live.into_iter().chain(status.ended);
    all.into_iter()
        .find(|rotation| rotation.id == followed.id)
        .context("the CA no longer knows this rotation")
}

fn reached(rotation: &Rotation, goal: Stage) -> bool {
    let stage = rotation.stage.parse::<Stage>();
    stage.is_ok_and(|stage| stage >= goal && stage <= Stage::Revoked)
}

fn lines(stragglers: &[Straggler]) -> String {
    let lines: Vec<String> = stragglers
        .iter()
        .map(|who| format!("  {}", who.reason))
        .collect();
    lines.join("\n")
}

/// A bar for eyes; a line at each change for logs.
struct Progress {
    bar: ProgressBar,
    last: std::cell::RefCell<String>,
    eyes: bool,
}

impl Progress {
    fn new() -> Self {
        let eyes = std::io::stderr().is_terminal();
        let bar = if eyes {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template(
            "{spinner} {prefix:<9} {bar:24} {pos}/{len} confirmed  {wide_msg}",
        ) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            bar,
            last: std::cell::RefCell::default(),
            eyes,
        }
    }

    fn tell(&self, rotation: &Rotation) {
        let confirmed = rotation.nodes.iter().filter(|node| node.confirmed).count();
        let named = rotation
            .stragglers
            .iter()
            .take(NAMED)
            .map(|who| who.reason.clone());
        let mut waiting = named.collect::<Vec<_>>().join("; ");
        if let Some(more) = rotation.stragglers.len().checked_sub(NAMED + 1) {
            waiting.push_str(&format!("; and {} more", more + 1));
        }
        self.bar.set_length(rotation.nodes.len() as u64);
        self.bar.set_position(confirmed as u64);
        self.bar.set_prefix(rotation.stage.clone());
        self.bar.set_message(waiting.clone());
        let line = format!(
            "{}: {confirmed}/{} confirmed{}{waiting}",
            rotation.stage,
            rotation.nodes.len(),
            if waiting.is_empty() { "" } else { "; " }
        );
        if !self.eyes && self.last.replace(line.clone()) != line {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// What has become of a rotation.
pub fn show(rotation: &Rotation, output: OutputArgs) -> anyhow::Result<()> {
    let rows = rotation.steps.iter().map(|step| {
        vec![
            step.step.clone(),
            timestamp(step.at_ms / 1000),
            step.by.clone(),
            step.reason.clone(),
            step.passed.join("; "),
        ]
    });
    output.print(rotation, &["STEP", "AT", "BY", "REASON", "PASSED"], rows)?;
    if output.output == Format::Table && !rotation.stragglers.is_empty() {
        outln!("\nwaits for:\n{}", lines(&rotation.stragglers));
    }
    Ok(())
}

fn show_plan(plan: &RotationPlan, output: OutputArgs) -> anyhow::Result<()> {
    if output.output != Format::Table {
        return output.print(plan, &[], Vec::new());
    }
    outln!("What would happen:");
    for step in &plan.steps {
        outln!("  {step}");
    }
    if plan.breaks.is_empty() {
        outln!("\nNobody would hold it up, as things are now.");
    } else {
        outln!("\nWho would hold it up, or be left behind:");
        outln!("{}", lines(&plan.breaks));
    }
    outln!("\nNothing was changed.");
    Ok(())
}
